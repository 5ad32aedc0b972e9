"""One clip of a video to tracks: who is in it, who was handed over from the clip before, and who goes on into the next.

As a whole: each object is followed through the clip with one memory, and gets one event. As a stream (`segment_frames` set): the
clip is cut into segments, each tracked anew from the box of the last mask before it, as PAM's reference does it, and each segment
of an object is one event. An object without a mask at a cut is lost there: its track ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from datagen.job import PerceiveOptions
from datagen.masks import mask_iou
from datagen.pam.tracker import Tracker
from datagen.perceive.everything import find_candidates
from datagen.perceive.tracking import handover_prompt, track_clip
from datagen.records import DecodedFrame, Event, Frame, Handover, Prompt, Track, TrackFrame

_SAME_OBJECT_IOU = 0.5  # a candidate that overlaps a followed object this much is that object


@dataclass(slots=True)
class ClipObject:
    """One object to follow. prompts: position of the frame in the clip -> prompt."""

    track_id: str
    prompts: dict[int, Prompt]


@dataclass(slots=True)
class _Path:
    """What is known of one object so far. frame_index and timestamps are the video's; prompts by frame of the video."""

    prompts: dict[int, Prompt] = field(default_factory=dict)
    frames: list[TrackFrame] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def perceive_clip(
    tracker: Tracker,
    frames: Sequence[DecodedFrame],
    end_s: float,
    width: int,
    height: int,
    objects: Sequence[ClipObject],
    options: PerceiveOptions,
) -> tuple[list[Track], list[Handover]]:
    """The tracks of one clip in the order of `objects`, and what the next clip needs to go on with those seen at its end.

    frames: of this clip, at least one. end_s: where the clip ends,
    seconds. width and height: of the video, px. Raises PromptError for a prompt that makes no sense.
    """
    paths = {item.track_id: _Path() for item in objects}
    length = options.track.segment_frames or len(frames)
    starts = range(0, len(frames), length)
    carried: dict[str, Prompt] = {}
    for start in starts:
        segment = frames[start : start + length]
        until = frames[start + length].timestamp_s if start + length < len(frames) else end_s
        asked = _asked(objects, carried, start, len(segment))
        carried = _follow(tracker, segment, until, width, height, asked, paths, options)
    tracks = [_track(number, item.track_id, paths[item.track_id]) for number, item in enumerate(objects)]
    return tracks, _handovers(tracks, options, frames[-1].frame_index)


def find_objects(
    tracker: Tracker, frame: DecodedFrame, width: int, height: int, known: Sequence[Prompt], options: PerceiveOptions
) -> tuple[list[Prompt], dict[str, int]]:
    """Prompts for everything in a frame that none of the `known` objects' masks covers; also what was dropped, by reason."""
    front_end, everything = tracker.front_end, options.everything
    features = front_end.encode(torch.tensor(frame.pixels)[None])
    calls = min(everything.points_per_call, options.prompts_per_call)
    candidates, dropped = find_candidates(front_end, features, 0, width, height, everything, calls)
    masks = [prompt.mask for prompt in known if prompt.mask is not None]
    if masks and candidates:
        overlap = np.asarray(mask_iou([candidate.mask for candidate in candidates], masks)).max(axis=1)
        fresh = [candidate for candidate, iou in zip(candidates, overlap, strict=True) if iou < _SAME_OBJECT_IOU]
        dropped["already_followed"] = len(candidates) - len(fresh)
        candidates = fresh
    room = max(0, everything.max_regions - len(known))
    return [Prompt(box=candidate.box, source="everything") for candidate in candidates[:room]], dict(dropped)


def _asked(objects: Sequence[ClipObject], carried: Mapping[str, Prompt], start: int, length: int) -> list[ClipObject]:
    """The objects of a segment: those prompted in it, and those carried over from the one before."""
    asked = []
    for item in objects:
        prompts = {position - start: prompt for position, prompt in item.prompts.items() if start <= position < start + length}
        if item.track_id in carried:
            prompts.setdefault(0, carried[item.track_id])
        if prompts:
            asked.append(ClipObject(item.track_id, prompts))
    return asked


def _follow(
    tracker: Tracker,
    segment: Sequence[DecodedFrame],
    until_s: float,
    width: int,
    height: int,
    asked: Sequence[ClipObject],
    paths: Mapping[str, _Path],
    options: PerceiveOptions,
) -> dict[str, Prompt]:
    """Track one segment into `paths`; returns the box prompts for the next segment."""
    renumbered = [Frame(position, frame.timestamp_s, frame.pixels) for position, frame in enumerate(segment)]
    limits = options.track
    found = track_clip(
        tracker,
        renumbered,
        [item.prompts for item in asked],
        len(segment),
        width,
        height,
        objects_per_call=limits.objects_per_call,
        backward=limits.backward,
    )
    carried = {}
    for item, track in zip(asked, found, strict=True):
        path = paths[item.track_id]
        last = track.frames[-1]
        for seen in track.frames:
            seen.frame_index = segment[seen.frame_index].frame_index
        path.frames += track.frames
        path.prompts |= {segment[position].frame_index: prompt for position, prompt in item.prompts.items()}
        event = _event(track, segment, until_s)
        if event is not None:
            path.events.append(event)
        prompt = handover_prompt(last, "box")
        if prompt is not None:
            carried[item.track_id] = prompt
    return carried


def _event(track: Track, segment: Sequence[DecodedFrame], until_s: float) -> Event | None:
    """What the language model is asked about; nothing where the object is never seen."""
    if track.tokens is None or all(seen.mask is None for seen in track.frames):
        return None
    tokens = replace(track.tokens, frame_indices=[segment[position].frame_index for position in track.tokens.frame_indices])
    first, last = segment[0], segment[-1]
    return Event(first.timestamp_s, until_s, first.frame_index, last.frame_index, tokens)


def _track(number: int, track_id: str, path: _Path) -> Track:
    frames = [replace(seen, object_index=number) for seen in sorted(path.frames, key=lambda seen: seen.frame_index)]
    flags = [] if path.events else ["absent"]
    return Track(number, path.prompts, frames, None, track_id, path.events, flags)


def _handovers(tracks: Sequence[Track], options: PerceiveOptions, last_frame: int) -> list[Handover]:
    kind = "box" if options.track.segment_frames else options.track.handover
    found = []
    for track in tracks:
        # A track that was lost in an earlier segment has no frame at the clip's end.
        prompt = handover_prompt(track.frames[-1], kind) if track.frames and track.frames[-1].frame_index == last_frame else None
        if prompt is not None:
            found.append(Handover(track.track_id, prompt))
    return found
