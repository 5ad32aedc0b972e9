"""What must hold within a row of `clips`, and within the rows of `tracks` of one clip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from datagen.check.logprobs import track_logprob_problems
from datagen.check.masks import areas_and_boxes, box_problem, mask_problem
from datagen.check.report import Problem
from datagen.check.rows import outcome_problems, provenance_problems
from datagen.ids import clip_id_of, track_id_of
from datagen.write.versions import track_number

# Times come from frames, and decoders know when a frame appears to within this.
TOLERANCE_S = 1e-3

Row = Mapping[str, Any]


def clip_problems(row: Row, part: str, runs: set[str], deep: bool) -> Iterator[Problem]:
    """What is wrong with a row of `clips`. runs: ids of the runs that left a record. deep: also decode the hand-overs' masks."""
    clip_id = row["clip_id"]
    expected = clip_id_of(row["asset_id"], row["clip_index"])
    if clip_id != expected:
        yield "clip_id", f"should be {expected}", clip_id
    yield from provenance_problems(row, clip_id, part, runs)
    yield from outcome_problems(row, clip_id, "num_tracks")
    start_s, end_s, duration_s = row["start_s"], row["end_s"], row["duration_s"]
    if not 0 <= start_s <= end_s or (row["clip_index"] == 0 and start_s > 0):
        yield "clip_times", f"{start_s} to {end_s} s; clip 0 starts at 0, and none ends before it starts", clip_id
    if duration_s is not None and end_s > duration_s + TOLERANCE_S:
        yield "clip_times", f"it ends at {end_s} s, the video at {duration_s} s", clip_id
    for problem in _handover_problems(row, deep):
        yield "handover", problem, clip_id


def track_problems(rows: Sequence[Row], clip: Row, part: str, deep: bool) -> Iterator[Problem]:
    """What is wrong with rows of `tracks` in the part of their clip, each by itself. deep: also decode the masks, and
    compare the log-probabilities of tokens.
    """
    for row in rows:
        track_id = row["track_id"]
        if (row["asset_id"], row["clip_index"]) != (clip["asset_id"], clip["clip_index"]):
            yield "stray_track", f"of clip {row['clip_index']} of {row['asset_id']}, while the clips part has {clip['clip_id']}", track_id
            continue
        if row["part_id"] != part:
            yield "part_id", f"the row says it is in part {row['part_id']}", track_id
        if row["run_id"] != clip["run_id"]:
            yield "mixed_runs", f"run {row['run_id']}, while its clip is of run {clip['run_id']}", track_id
        problem = _id_problem(track_id, clip)
        if problem:
            yield "track_id", problem, track_id
        if (row["start_s"], row["end_s"]) != (clip["start_s"], clip["end_s"]):
            yield "track_times", f"{row['start_s']} to {row['end_s']} s, its clip {clip['start_s']} to {clip['end_s']} s", track_id
        yield from _order_problems(row, clip)
        for problem in _event_problems(row, clip):
            yield "event", problem, track_id
        for problem in track_logprob_problems(row) if deep else ():
            yield "token_logprobs", problem, track_id
        yield from _frame_problems(row, clip, deep)


def _handover_problems(clip: Row, deep: bool) -> Iterator[str]:
    seen = set()
    for handover in clip["handovers"]:
        track_id, mask = handover["track_id"], handover["prompt"]["mask"]
        problem = _id_problem(track_id, clip)
        if problem is None and deep and mask is not None:
            problem = mask_problem(mask, clip["height"], clip["width"])
        if track_id in seen:
            problem = "it is handed over twice"
        if problem:
            yield f"{track_id}: {problem}"
        seen.add(track_id)


def _id_problem(track_id: str, clip: Row) -> str | None:
    number = track_number(clip["asset_id"], track_id)
    if number is None:
        return f"should be {track_id_of(clip['asset_id'], 0)} or another number in at least six digits"
    if number >= clip["next_track"]:
        return f"next_track of its clip is {clip['next_track']}, so a later clip may give this number to another object"
    return None


def _order_problems(row: Row, clip: Row) -> Iterator[Problem]:
    """Frames and prompts: rising, and inside the clip."""
    track_id, num_frames, end_frame = row["track_id"], clip["num_frames"], clip["num_video_frames"]
    indices = [frame["frame_index"] for frame in row["frames"]]
    if not _rises(indices, 0, math.inf if end_frame is None else end_frame):
        yield "frame_index", f"frames {_short(indices)} are not rising numbers of frames of a video of {end_frame}", track_id
    if len(indices) > num_frames:
        yield "frame_index", f"{len(indices)} frames, while num_frames of its clip is {num_frames}", track_id
    times = [frame["timestamp_s"] for frame in row["frames"]]
    if not _rises(times, clip["start_s"] - TOLERANCE_S, clip["end_s"]):
        yield "timestamp", f"{_short(times)} s are not rising times in {clip['start_s']} to {clip['end_s']} s", track_id
    prompted = [prompt["frame_index"] for prompt in row["prompts"]]
    if not _rises(prompted, 0, math.inf) or not set(prompted) <= set(indices):
        yield "prompt_frame", f"prompted frames {_short(prompted)} are not rising numbers of its frames", track_id


def _rises(numbers: Sequence[float], low: float, high: float) -> bool:
    """Whether numbers rise strictly within [low, high)."""
    return not numbers or (low <= numbers[0] and numbers[-1] < high and all(one < other for one, other in pairwise(numbers)))


def _event_problems(row: Row, clip: Row) -> Iterator[str]:
    indices = [frame["frame_index"] for frame in row["frames"]] or [0]
    last_frame, last_s, end_frame = indices[0] - 1, clip["start_s"], indices[-1]
    for number, event in enumerate(row["events"]):
        frames, times = (event["start_frame"], event["end_frame"]), (event["start_s"], event["end_s"])
        if not last_frame < frames[0] <= frames[1] <= end_frame:
            before = f"; the event before ends at {last_frame}" if number else ""
            yield f"event {number} goes from frame {frames[0]} to {frames[1]}, the track from {indices[0]} to {end_frame}{before}"
        if not (last_s - TOLERANCE_S <= times[0] < times[1] <= clip["end_s"] + TOLERANCE_S):
            within = "the event before ends" if number else "the clip starts"
            yield f"event {number} goes from {times[0]} to {times[1]} s; {within} at {last_s} s, and the clip ends at {clip['end_s']} s"
        last_frame, last_s = frames[1], times[1]


def _frame_problems(row: Row, clip: Row, deep: bool) -> Iterator[Problem]:
    """Masks, boxes and scores of a track's frames."""
    track_id, decodable = row["track_id"], []
    for frame in row["frames"]:
        mask, box, where = frame["mask"], frame["box_xyxy"], f"frame {frame['frame_index']}: "
        if (mask is None) != (box is None):
            yield "box", where + ("a mask without a box" if box is None else f"no mask, but the box {box}"), track_id
        if mask is None:
            continue
        if not frame["object_score"] > 0:
            yield (
                "object_score",
                f"{where}object_score is {frame['object_score']}, which says that it is not there, but it has a mask",
                track_id,
            )
        if deep:
            problem = mask_problem(mask, clip["height"], clip["width"])
            if problem:
                yield "mask", where + problem, track_id
            elif box is not None:
                decodable.append(frame)
    areas, boxes = areas_and_boxes([frame["mask"] for frame in decodable])
    for frame, area, box in zip(decodable, areas, boxes, strict=True):
        where, problem = f"frame {frame['frame_index']}: ", box_problem(frame["box_xyxy"], box)
        if not area:
            yield "mask", where + "it holds no pixel; what is not seen has no mask", track_id
        elif problem:
            yield "box", where + problem, track_id


def _short(numbers: Sequence[float]) -> str:
    text = ", ".join(map(str, numbers[:8]))
    return f"{text}, ..." if len(numbers) > 8 else text
