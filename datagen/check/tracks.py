"""What must hold within a row of `clips`, and within the rows of `tracks` of one clip."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from datagen.check.logprobs import track_logprob_problems
from datagen.check.masks import areas_and_boxes, box_problem, mask_problem
from datagen.check.prompts import prompt_problems
from datagen.check.report import Problem
from datagen.check.rows import outcome_problems, provenance_problems
from datagen.check.runs import RunFacts
from datagen.check.texts import track_text_problems
from datagen.check.values import flag_problems, is_share, value_problems
from datagen.ids import clip_id_of, track_id_of
from datagen.write.versions import track_number

# Times come from frames, and decoders know when a frame appears to within this.
TOLERANCE_S = 1e-3

Row = Mapping[str, Any]


def clip_problems(row: Row, part: str, runs: Collection[str], deep: bool) -> Iterator[Problem]:
    """What is wrong with a row of `clips`. runs: ids of the runs that left a record. deep: also decode the hand-overs' masks."""
    clip_id = row["clip_id"]
    expected = clip_id_of(row["asset_id"], row["clip_index"])
    if clip_id != expected:
        yield "clip_id", f"should be {expected}", clip_id
    yield from provenance_problems(row, clip_id, part, runs)
    yield from outcome_problems(row, clip_id, "num_tracks")
    yield from value_problems(row, clip_id)
    if row["num_frames"] < 0 or row.get("missing_frames", 0) < 0:
        yield "value", f"num_frames is {row['num_frames']}, missing_frames {row.get('missing_frames')}", clip_id
    for problem in flag_problems("clips", row.get("flags", ())):
        yield "flags", problem, clip_id
    start_s, end_s, duration_s = row["start_s"], row["end_s"], row["duration_s"]
    if not 0 <= start_s <= end_s or (row["clip_index"] == 0 and start_s > 0):
        yield "clip_times", f"{start_s} to {end_s} s; clip 0 starts at 0, and none ends before it starts", clip_id
    if duration_s is not None and end_s > duration_s + TOLERANCE_S:
        yield "clip_times", f"it ends at {end_s} s, the video at {duration_s} s", clip_id
    if row["is_last"] and row["handovers"]:
        yield "handover", "it is the video's last clip, and hands objects over", clip_id
    for problem in _handover_problems(row, deep):
        yield "handover", problem, clip_id


class Timeline(NamedTuple):
    """When a track is followed. frames: (frame_index, timestamp_s) of each of its frames."""

    track_id: str
    frames: list[tuple[int, float]]

    @classmethod
    def of(cls, row: Row) -> Timeline:
        """That of a row of `tracks`."""
        return cls(row["track_id"], [(frame["frame_index"], frame["timestamp_s"]) for frame in row["frames"]])


def timeline_problems(timelines: Sequence[Timeline], clip: Row, run: RunFacts | None) -> Iterator[Problem]:
    """What is wrong with the tracks of a clip together: one frame has one time, and none is left out within a track.

    A stream follows an object segment by segment, so one that is lost may be without whole segments. run: of the clip.
    """
    times: dict[int, float] = {}
    for track_id, frames in timelines:
        differing = [(index, time_s) for index, time_s in frames if times.setdefault(index, time_s) != time_s]
        for index, time_s in differing[:1]:
            yield "timestamp", f"frame {index} is at {time_s} s, for another object of the clip at {times[index]} s", track_id
    sampled, num_frames = sorted(times), clip["num_frames"]
    if len(sampled) > num_frames:
        yield "frame_index", f"its tracks have {len(sampled)} frames, num_frames of the clip is {num_frames}", clip["clip_id"]
    length = run.segment_frames if run is not None else None
    positions = {index: position for position, index in enumerate(sampled)}
    for track_id, frames in timelines:
        places = [positions[index] for index, _ in frames]
        gaps = [(one, other) for one, other in pairwise(places) if other - one > 1]
        if length and len(sampled) == num_frames:
            gaps = [(one, other) for one, other in gaps if (one + 1) % length or other % length]
        if gaps and (not length or len(sampled) == num_frames):
            one, other = gaps[0]
            yield "frame_gap", f"it is without the frames between {sampled[one]} and {sampled[other]} that other objects have", track_id
        elif run is not None and run.backward and not length and len(frames) != num_frames:
            yield "frame_gap", f"it has {len(frames)} of the {num_frames} frames of its clip", track_id
    is_whole = run is not None and run.every_frame and not length and clip.get("missing_frames") == 0
    if is_whole and sampled and len(sampled) != sampled[-1] - sampled[0] + 1:
        message = f"its tracks have {len(sampled)} of the frames {sampled[0]} to {sampled[-1]}, and missing_frames is 0"
        yield "frame_gap", message, clip["clip_id"]


def track_problems(rows: Sequence[Row], clip: Row, part: str, run: RunFacts | None, deep: bool) -> Iterator[Problem]:
    """What is wrong with rows of `tracks` in the part of their clip, each by itself. run: what the run of the clip was asked for.
    deep: also decode the masks, and compare the log-probabilities of tokens.
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
        for code, problem in track_text_problems(row, run):
            yield code, problem, track_id
        for problem in track_logprob_problems(row) if deep else ():
            yield "token_logprobs", problem, track_id
        for prompt in row["prompts"]:
            for problem in prompt_problems(prompt, clip["width"], clip["height"]):
                yield "prompt", f"frame {prompt['frame_index']}: {problem}", track_id
        for problem in _flag_problems(row, clip, run):
            yield "flags", problem, track_id
        yield from _frame_problems(row, clip, deep)


def _flag_problems(row: Row, clip: Row, run: RunFacts | None) -> Iterator[str]:
    """Flags are known, and those that follow from the frames are there. In schema v1 nothing says where a mask was left without a pixel."""
    yield from flag_problems("tracks", row["flags"])
    if run is not None and not run.is_truth and ("absent" in row["flags"]) == any(frame["mask"] is not None for frame in row["frames"]):
        yield f"the flags are {row['flags']}: it is absent when it is seen in no frame, and only then"
    is_emptied = any(frame["mask"] is None and frame["object_score"] > 0 for frame in row["frames"])
    if "missing_frames" in clip and "empty_mask" in row["flags"] and not is_emptied:
        yield "it has the flag empty_mask, and no frame with a positive object_score is without a mask"


def _handover_problems(clip: Row, deep: bool) -> Iterator[str]:
    seen = set()
    for handover in clip["handovers"]:
        track_id, mask = handover["track_id"], handover["prompt"]["mask"]
        problem = _id_problem(track_id, clip)
        if problem is None and deep and mask is not None:
            problem = mask_problem(mask, clip["height"], clip["width"])
        problem = problem or next(prompt_problems(handover["prompt"], clip["width"], clip["height"]), None)
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
    if not indices:
        yield "frame_index", "it has no frame", track_id
    if not _rises(indices, 0, math.inf if end_frame is None else end_frame):
        yield "frame_index", f"frames {_short(indices)} are not rising numbers of frames of a video of {end_frame}", track_id
    if len(indices) > num_frames:
        yield "frame_index", f"{len(indices)} frames, while num_frames of its clip is {num_frames}", track_id
    times = [frame["timestamp_s"] for frame in row["frames"]]
    if not _rises(times, clip["start_s"] - TOLERANCE_S, clip["end_s"], or_stay=True):  # a file may have several frames of one time
        yield "timestamp", f"{_short(times)} s are times that fall, or are not in {clip['start_s']} to {clip['end_s']} s", track_id
    prompted = [prompt["frame_index"] for prompt in row["prompts"]]
    if not _rises(prompted, 0, math.inf) or not set(prompted) <= set(indices):
        yield "prompt_frame", f"prompted frames {_short(prompted)} are not rising numbers of its frames", track_id


def _rises(numbers: Sequence[float], low: float, high: float, *, or_stay: bool = False) -> bool:
    """Whether numbers rise within [low, high); strictly, or with equal ones among them."""
    if numbers and not (low <= numbers[0] and numbers[-1] < high):
        return False
    return all(one < other or (or_stay and one == other) for one, other in pairwise(numbers))


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
        if not is_share(frame["predicted_iou"]) or not math.isfinite(frame["object_score"]):
            yield "score", f"{where}predicted_iou is {frame['predicted_iou']}, object_score {frame['object_score']}", track_id
        if mask is None:
            # In tables of schema v1 nothing tells a mask that was left without a pixel from one that is lost.
            if frame["object_score"] > 0 and "missing_frames" in clip and "empty_mask" not in row["flags"]:
                yield (
                    "object_score",
                    f"{where}object_score is {frame['object_score']}, which says that it is there, but it has no mask",
                    track_id,
                )
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
