"""One clip of a video to tracks, with SAM 2 and the Semantic Perceiver: who is in it, and who goes on into the next.

As a whole: each object is followed through the clip with one memory, and gets one event. As a stream (`segment_frames` set): the
clip is cut into segments, each tracked anew from the box of the last mask before it, as PAM's reference does it, and each segment
of an object is one event. An object without a mask at a segment's end is looked for in the next by what is remembered of it where the
input asks for it; one that was found without being asked for ends there.

Frames come as a stream and are let go at once, so a clip's length costs no memory; how many will come is known from the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from datagen.errors import ClusterError, MemoryShortError
from datagen.events import Note, log_event
from datagen.job import PerceiveOptions
from datagen.masks import box_iou, mask_area, mask_iou, rle_box
from datagen.pam.tracker import FrameMemory, ObjectMemory, Tracker
from datagen.perceive.asked import carried_on
from datagen.perceive.clips import ClipFindings, ClipObject, ClipScene, NewTrackId, Sighting, handover_prompt
from datagen.perceive.everything import Candidate, find_sized
from datagen.perceive.memory import CallSize, CallTooLargeError, does_not_fit, free_cache, sized_by
from datagen.perceive.tracking import ClipTracking, follow, remember
from datagen.records import Event, Frame, Handover, Prompt, Track, TrackFrame
from datagen.spans import DecodedFrame

_SAME_OBJECT_IOU = 0.5  # a candidate that overlaps a followed object this much is that object


@dataclass(slots=True)
class _Path:
    """What is known of one object so far. frame_index is the video's; prompts by frame of the video.

    memory: by which an object that is out of sight is looked for.
    """

    prompts: dict[int, Prompt] = field(default_factory=dict)
    frames: list[TrackFrame] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    memory: ObjectMemory | None = None


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
        remembered = self._remembered(objects, scene)
        objects, frames = self._still_there(scene, frames, objects, remembered)
        paths = {item.track_id: _Path(memory=remembered.get(item.track_id)) for item in objects}
        self._follow_all(scene, frames, objects, paths)
        for number, item in enumerate(objects):
            self._close(found, item, _track(number, item, paths[item.track_id]), scene)
        return found

    def _remembered(self, objects: Sequence[ClipObject], scene: ClipScene) -> dict[str, ObjectMemory]:
        """What is remembered, by track, of the objects of the clip before."""
        lost = {item.track_id: item.last for item in objects if item.last is not None and item.last.seen is not None}
        wanted: dict[int, NDArray[np.uint8]] = {}  # objects share frames, and each is encoded once
        for last in lost.values():
            wanted |= {id(pixels): pixels for pixels in (last.seen, *last.unseen) if pixels is not None}
        frames: dict[str, dict[int, FrameMemory]] = {track_id: {} for track_id in lost}
        for key, pixels in wanted.items():
            with sized_by(self._objects.option, 1):
                features = self._tracker.encode(torch.tensor(pixels))
                for track_id, last in lost.items():
                    if pixels is last.seen or any(pixels is other for other in last.unseen):
                        prompt = last.prompt if pixels is last.seen else None
                        frames[track_id][key] = remember(self._tracker, features, prompt, scene.width, scene.height)
        return {
            track_id: ObjectMemory(frames[track_id][id(last.seen)], tuple(frames[track_id][id(pixels)] for pixels in last.unseen))
            for track_id, last in lost.items()
        }

    def _still_there(
        self, scene: ClipScene, frames: Iterator[DecodedFrame], objects: Sequence[ClipObject], remembered: dict[str, ObjectMemory]
    ) -> tuple[list[ClipObject], Iterator[DecodedFrame]]:
        """Of the objects handed over in sight, those that have gone are looked for: their box would find something else there.

        Gone is what memory does not find on the first frame, and of which the answer to its prompt does not even touch the box that it was
        seen in. The others are asked for as they were handed over, and no longer `remembered`.
        """
        handed = [item for item in objects if item.track_id in remembered and 0 in item.prompts]
        head: list[Frame] = []
        if handed:
            first = next(frames)
            head, frames = [Frame(0, first.timestamp_s, first.pixels)], chain([first], frames)
        doubtful = [item for item in handed if item.prompts[0].source == "handover"]
        found = self._on_first(scene, head, [{} for _ in doubtful], {n: remembered[item.track_id] for n, item in enumerate(doubtful)})
        doubtful = [item for item, seen in zip(doubtful, found, strict=True) if seen.mask is None]
        found = self._on_first(scene, head, [{0: item.prompts[0]} for item in doubtful], {})
        # A mask alone is its own answer, and says nothing of this frame.
        gone = {
            item.track_id
            for item, seen in zip(doubtful, found, strict=True)
            if item.prompts[0].type == "mask" or not _touches(seen, item.last)
        }
        for item in handed:
            if item.track_id not in gone:
                del remembered[item.track_id]
        return [_without_handover(item) if item.track_id in gone else item for item in objects], frames

    def _on_first(
        self, scene: ClipScene, head: Sequence[Frame], prompts: Sequence[Mapping[int, Prompt]], memories: Mapping[int, ObjectMemory]
    ) -> list[TrackFrame]:
        """Objects on the clip's first frame alone."""
        if not prompts:
            return []
        limit, size = self._objects.value, (scene.width, scene.height)
        with sized_by(self._objects.option, len(prompts)):
            tracking = ClipTracking(self._tracker, prompts, len(scene.sampled), *size, objects_per_call=limit, memories=memories)
            return sorted(tracking.push(head[0]), key=lambda seen: seen.object_index)

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
        tracks, _ = self._track(scene, _renumbered(head), [prompts for prompts in early if prompts], len(head), {})
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
            asked = _asked(objects, carried, paths, start, len(segment))
            carried = self._follow(replace(scene, sampled=segment, end_s=until_s), islice(frames, len(segment)), asked, paths)

    def _follow(
        self, segment: ClipScene, frames: Iterator[DecodedFrame], asked: Sequence[ClipObject], paths: Mapping[str, _Path]
    ) -> dict[str, Prompt]:
        """Track one segment into `paths`; returns the box prompts for the next one."""
        indices = [index for index, _ in segment.sampled]
        memories = {number: memory for number, item in enumerate(asked) if (memory := paths[item.track_id].memory) is not None}
        tracks, kept = self._track(segment, _renumbered(frames), [item.prompts for item in asked], len(indices), memories)
        carried = {}
        for item, track, memory in zip(asked, tracks, kept, strict=True):
            path, last = paths[item.track_id], track.frames[-1]
            for seen in track.frames:
                seen.frame_index = indices[seen.frame_index]
            path.frames += track.frames
            path.prompts |= {indices[position]: prompt for position, prompt in item.prompts.items()}
            path.events += _events(track, segment, indices)
            prompt = handover_prompt(last, "box")
            if prompt is not None:
                carried[item.track_id] = prompt
            path.memory = memory if prompt is None and item.is_asked else None
        return carried

    def _track(
        self,
        scene: ClipScene,
        frames: Iterable[Frame],
        prompts: Sequence[Mapping[int, Prompt]],
        num_frames: int,
        memories: Mapping[int, ObjectMemory],
    ) -> tuple[list[Track], list[ObjectMemory]]:
        """The objects' tracks, and what is best remembered of each."""
        if not prompts:
            for _ in frames:  # the stream goes on behind them
                pass
            return [], []
        with sized_by(self._objects.option, len(prompts)):
            tracking = ClipTracking(
                self._tracker,
                prompts,
                num_frames,
                scene.width,
                scene.height,
                objects_per_call=self._objects.value,
                backward=self._options.track.backward,
                memories=memories,
            )
            tracks = follow(tracking, frames)
            kept = [tracking.memory(number) for number in range(len(prompts))]
        self._objects.fitted(len(prompts))
        return tracks, kept

    def _close(self, found: ClipFindings, item: ClipObject, track: Track, scene: ClipScene) -> None:
        """Take a finished track, unless it is to be dropped, and what the next clip goes on with."""
        handover = self._handover(item, track, scene)
        if handover is not None:
            found.handovers.append(handover)
        if self._options.drop_absent and not track.events:
            found.dropped["absent"] += 1
        else:
            found.tracks.append(track)

    def _handover(self, item: ClipObject, track: Track, scene: ClipScene) -> Handover | None:
        """How the next clip finds an object: by what was last seen, or, for one that the input asks for, by where it was seen before."""
        last, options = track.frames[-1] if track.frames else None, self._options.track
        kind: Literal["box", "mask", "box+mask"] = "box" if options.segment_frames else options.handover
        # A track that ended in an earlier segment has no frame at the clip's end.
        if last is not None and last.frame_index == scene.sampled[-1][0]:
            prompt = handover_prompt(last, kind)
            if prompt is not None:
                return Handover(track.track_id, prompt, item.object_id, last.timestamp_s)
        sighting = _sighting(item, track, kind) if item.is_asked else None
        if sighting is None:
            return None
        seen = max((number for number, frame in enumerate(track.frames) if frame.mask is not None), default=-1)
        unseen = [frame.timestamp_s for frame in track.frames[seen + 1 :]][-self._tracker.feature_reach :]
        return Handover(track.track_id, sighting.prompt, item.object_id, sighting.seen_s, unseen)


def _renumbered(frames: Iterable[DecodedFrame]) -> Iterator[Frame]:
    for position, frame in enumerate(frames):
        yield Frame(position, frame.timestamp_s, frame.pixels)


def _is_known(candidate: Candidate, known: Sequence[Prompt]) -> bool:
    masks = [prompt.mask for prompt in known if prompt.mask is not None]
    if masks and np.asarray(mask_iou([candidate.mask], masks)).max() >= _SAME_OBJECT_IOU:
        return True
    boxes = [prompt.box for prompt in known if prompt.mask is None and prompt.box is not None]
    return bool(boxes) and box_iou([candidate.box, *boxes])[0, 1:].max() >= _SAME_OBJECT_IOU


def _asked(
    objects: Sequence[ClipObject], carried: Mapping[str, Prompt], paths: Mapping[str, _Path], start: int, length: int
) -> list[ClipObject]:
    """The objects of a segment: those prompted in it, those carried over from the one before, and those that are looked for."""
    asked = []
    for item in objects:
        prompts = {position - start: prompt for position, prompt in item.prompts.items() if start <= position < start + length}
        if item.track_id in carried:
            prompts[0] = carried_on(carried[item.track_id], prompts.get(0))
        if prompts or paths[item.track_id].memory is not None:
            asked.append(replace(item, prompts=prompts))
    return asked


def _touches(seen: TrackFrame, last: Sighting | None) -> bool:
    """Whether an object is seen, and within the box that it was in before."""
    if seen.box_xyxy is None or last is None:
        return False
    before = last.prompt.box or (rle_box(last.prompt.mask) if last.prompt.mask is not None else None)
    return before is None or bool(box_iou([seen.box_xyxy, before])[0, 1] > 0)


def _without_handover(item: ClipObject) -> ClipObject:
    """An object without what the clip before asks for it on the first frame; what the input says of it there stays."""
    prompt = replace(item.prompts[0], box=None, mask=None, source="manifest")
    own = {0: prompt} if prompt.type else {}
    return replace(item, prompts={**{at: other for at, other in item.prompts.items() if at}, **own})


def _sighting(item: ClipObject, track: Track, kind: Literal["box", "mask", "box+mask"]) -> Sighting | None:
    """Where an object that is out of sight is best seen: where it was prompted last, on the frame that has most of it; None if nowhere.

    What was asked there is asked again, so that the same is remembered of it.
    """
    seen = [frame for frame in track.frames if frame.mask is not None]
    prompted = [frame for frame in seen if frame.frame_index in track.prompts and track.prompts[frame.frame_index].is_positive]
    if not prompted and (not seen or (item.last is not None and item.last.seen is not None)):
        return item.last
    best = max(prompted or seen, key=lambda frame: mask_area(frame.mask) if frame.mask is not None else 0)
    prompt = track.prompts[best.frame_index] if prompted else handover_prompt(best, kind)
    return None if prompt is None else Sighting(prompt, best.timestamp_s)


def _events(track: Track, segment: ClipScene, indices: Sequence[int]) -> list[Event]:
    """What the language model is asked about; nothing where the object is never seen."""
    if track.tokens is None or all(seen.mask is None for seen in track.frames):
        return []
    tokens = replace(track.tokens, frame_indices=[indices[position] for position in track.tokens.frame_indices])
    start_frame, start_s = segment.sampled[track.tokens.frame_indices[0]]
    return [Event(start_s, segment.end_s, start_frame, indices[-1], tokens)]


def _track(number: int, item: ClipObject, path: _Path) -> Track:
    frames = [replace(seen, object_index=number) for seen in sorted(path.frames, key=lambda seen: seen.frame_index)]
    flags = [] if path.events else ["absent"]
    return Track(number, path.prompts, frames, None, item.track_id, path.events, flags, item.object_id)
