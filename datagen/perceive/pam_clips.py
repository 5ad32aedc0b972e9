"""One clip of a video to tracks, with SAM 2 and the Semantic Perceiver: who is in it, and who goes on into the next.

As a whole: each object is followed through the clip with one memory, and gets one event. As a stream (`segment_frames` set): the
clip is cut into segments, each tracked anew from the box of the last mask before it, as PAM's reference does it, and each segment
of an object is one event. An object without a mask at a cut is lost there: its track ends.

Frames come as a stream and are let go at once, so a clip's length costs no memory; how many will come is known from the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
import torch

from datagen.errors import ClusterError, MemoryShortError
from datagen.events import Note, log_event
from datagen.job import PerceiveOptions
from datagen.masks import box_iou, mask_iou
from datagen.pam.tracker import Tracker
from datagen.perceive.clips import ClipFindings, ClipObject, ClipScene, NewTrackId, handover_prompt
from datagen.perceive.everything import Candidate, find_sized
from datagen.perceive.memory import CallSize, CallTooLargeError, does_not_fit, free_cache, sized_by
from datagen.perceive.tracking import track_clip
from datagen.records import DecodedFrame, Event, Frame, Handover, Prompt, Track, TrackFrame

_SAME_OBJECT_IOU = 0.5  # a candidate that overlaps a followed object this much is that object


@dataclass(slots=True)
class _Path:
    """What is known of one object so far. frame_index is the video's; prompts by frame of the video."""

    prompts: dict[int, Prompt] = field(default_factory=dict)
    frames: list[TrackFrame] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


class PamClipPerceiver:
    """Implements clips.ClipPerceiver. Where memory is short, fewer objects or prompts share a call for a while: see CallSize."""

    def __init__(self, tracker: Tracker, options: PerceiveOptions, note: Note = log_event) -> None:
        self.image_size = tracker.front_end.image_size
        self._tracker = tracker
        self._options = options
        self._objects = CallSize("perceive.track.objects_per_call", options.track.objects_per_call, note)
        self._prompts = CallSize("perceive.prompts_per_call", options.prompts_per_call, note)
        self._is_last_try = False

    def perceive(
        self, scene: ClipScene, frames: Iterator[DecodedFrame], objects: Sequence[ClipObject], new_track_id: NewTrackId | None
    ) -> ClipFindings:
        """See clips.ClipPerceiver."""
        try:
            found = self._perceive(scene, frames, objects, new_track_id)
        except torch.AcceleratorError as error:
            raise ClusterError(f"the device of the perceive step failed: {error}; rerun to resume") from error
        except CallTooLargeError as error:
            short = error.bare()
        else:
            self._is_last_try = False
            return found
        free_cache()
        if not self._ask_less(short):
            self._is_last_try = not self._is_last_try
            if not self._is_last_try:
                raise does_not_fit("one object of one frame", short)
        raise MemoryShortError("the clip is tried again with less in a call")

    def _ask_less(self, short: CallTooLargeError) -> bool:
        return (self._prompts if short.option == self._prompts.option else self._objects).shrink(short)

    def _perceive(
        self, scene: ClipScene, frames: Iterator[DecodedFrame], objects: Sequence[ClipObject], new_track_id: NewTrackId | None
    ) -> ClipFindings:
        found = ClipFindings()
        objects = list(objects)
        if new_track_id is not None:
            position = min(int(self._options.track.find_at * len(scene.sampled)), len(scene.sampled) - 1)
            head = list(islice(frames, position + 1))
            prompts, found.dropped = self._find(scene, head, objects)
            objects += [ClipObject(new_track_id(), {position: prompt}) for prompt in prompts]
            frames = chain(head, frames)
        paths = {item.track_id: _Path() for item in objects}
        self._follow_all(scene, frames, objects, paths)
        for number, item in enumerate(objects):
            self._close(found, _track(number, item.track_id, paths[item.track_id]), scene)
        return found

    def _find(self, scene: ClipScene, head: Sequence[DecodedFrame], objects: Sequence[ClipObject]) -> tuple[list[Prompt], Counter[str]]:
        """Prompts for everything in the last frame of `head` that none of the `objects` covers there."""
        known = self._seen_at_end(scene, head, objects)
        front_end, everything = self._tracker.front_end, self._options.everything
        with sized_by(self._objects.option, 1):
            features = front_end.encode(torch.tensor(head[-1].pixels)[None])
        candidates, dropped = find_sized(front_end, features, 0, scene.width, scene.height, everything, self._prompts)
        fresh = [candidate for candidate in candidates if not _is_known(candidate, known)]
        dropped["already_followed"] = len(candidates) - len(fresh)
        kept = fresh[: max(0, everything.max_regions - len(known))]
        dropped["max_regions"] += len(fresh) - len(kept)
        return [Prompt(box=candidate.box, source="everything") for candidate in kept], +dropped

    def _seen_at_end(self, scene: ClipScene, head: Sequence[DecodedFrame], objects: Sequence[ClipObject]) -> list[Prompt]:
        """Where the objects are in the last frame of `head`: their own prompts there, or, later in the clip, a short track towards it."""
        last = len(head) - 1
        if not last:
            return [item.prompts[0] for item in objects if 0 in item.prompts]
        early = [{at: prompt for at, prompt in item.prompts.items() if at <= last} for item in objects]
        tracks = self._track(scene, _renumbered(head), [prompts for prompts in early if prompts], len(head))
        return [prompt for track in tracks if (prompt := handover_prompt(track.frames[-1], "box+mask")) is not None]

    def _follow_all(
        self, scene: ClipScene, frames: Iterator[DecodedFrame], objects: Sequence[ClipObject], paths: Mapping[str, _Path]
    ) -> None:
        """Track segment after segment into `paths`; a clip that is no stream is one segment."""
        length = self._options.track.segment_frames or len(scene.sampled)
        carried: dict[str, Prompt] = {}
        for start in range(0, len(scene.sampled), length):
            segment = scene.sampled[start : start + length]
            following = scene.sampled[start + length : start + length + 1]
            until_s = following[0][1] if following else scene.end_s
            asked = _asked(objects, carried, start, len(segment))
            carried = self._follow(replace(scene, sampled=segment, end_s=until_s), islice(frames, len(segment)), asked, paths)

    def _follow(
        self, segment: ClipScene, frames: Iterator[DecodedFrame], asked: Sequence[ClipObject], paths: Mapping[str, _Path]
    ) -> dict[str, Prompt]:
        """Track one segment into `paths`; returns the box prompts for the next one."""
        indices = [index for index, _ in segment.sampled]
        tracks = self._track(segment, _renumbered(frames), [item.prompts for item in asked], len(indices))
        carried = {}
        for item, track in zip(asked, tracks, strict=True):
            path, last = paths[item.track_id], track.frames[-1]
            for seen in track.frames:
                seen.frame_index = indices[seen.frame_index]
            path.frames += track.frames
            path.prompts |= {indices[position]: prompt for position, prompt in item.prompts.items()}
            path.events += _events(track, segment, indices)
            prompt = handover_prompt(last, "box")
            if prompt is not None:
                carried[item.track_id] = prompt
        return carried

    def _track(self, scene: ClipScene, frames: Iterable[Frame], prompts: Sequence[Mapping[int, Prompt]], num_frames: int) -> list[Track]:
        if not prompts:
            for _ in frames:  # the stream goes on behind them
                pass
            return []
        with sized_by(self._objects.option, len(prompts)):
            tracks = track_clip(
                self._tracker,
                frames,
                prompts,
                num_frames,
                scene.width,
                scene.height,
                objects_per_call=self._objects.value,
                backward=self._options.track.backward,
            )
        self._objects.fitted(len(prompts))
        return tracks

    def _close(self, found: ClipFindings, track: Track, scene: ClipScene) -> None:
        """Take a finished track, unless it is to be dropped, and the hand-over of one that reaches the clip's end."""
        if self._options.drop_absent and not track.events:
            found.dropped["absent"] += 1
            return
        found.tracks.append(track)
        options = self._options.track
        # A track that was lost in an earlier segment has no frame at the clip's end.
        if track.frames and track.frames[-1].frame_index == scene.sampled[-1][0]:
            prompt = handover_prompt(track.frames[-1], "box" if options.segment_frames else options.handover)
            if prompt is not None:
                found.handovers.append(Handover(track.track_id, prompt))


def _renumbered(frames: Iterable[DecodedFrame]) -> Iterator[Frame]:
    for position, frame in enumerate(frames):
        yield Frame(position, frame.timestamp_s, frame.pixels)


def _is_known(candidate: Candidate, known: Sequence[Prompt]) -> bool:
    masks = [prompt.mask for prompt in known if prompt.mask is not None]
    if masks and np.asarray(mask_iou([candidate.mask], masks)).max() >= _SAME_OBJECT_IOU:
        return True
    boxes = [prompt.box for prompt in known if prompt.mask is None and prompt.box is not None]
    return bool(boxes) and box_iou([candidate.box, *boxes])[0, 1:].max() >= _SAME_OBJECT_IOU


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


def _events(track: Track, segment: ClipScene, indices: Sequence[int]) -> list[Event]:
    """What the language model is asked about; nothing where the object is never seen."""
    if track.tokens is None or all(seen.mask is None for seen in track.frames):
        return []
    tokens = replace(track.tokens, frame_indices=[indices[position] for position in track.tokens.frame_indices])
    start_frame, start_s = segment.sampled[track.tokens.frame_indices[0]]
    return [Event(start_s, segment.end_s, start_frame, indices[-1], tokens)]


def _track(number: int, track_id: str, path: _Path) -> Track:
    frames = [replace(seen, object_index=number) for seen in sorted(path.frames, key=lambda seen: seen.frame_index)]
    return Track(number, path.prompts, frames, None, track_id, path.events, [] if path.events else ["absent"])
