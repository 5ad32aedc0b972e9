"""The perceive step of videos: one asset in, its clips out, one after the other, each tracked as it is read.

Neither a video's frames nor a clip's are held. Reading the next frames goes on in the decoding child while the model works. The
reader is given, so that this step knows nothing of decoding.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from datagen.errors import ClusterError, DatagenError, DecodeError, JobError, MemoryShortError, ModelLoadError, PromptError, StorageError
from datagen.events import Note, log_event
from datagen.ids import track_id_of
from datagen.perceive.asked import AskedObject, clip_objects, num_behind, objects_of, refusal_of
from datagen.perceive.clips import ClipFindings, ClipObject, ClipPerceiver, ClipScene, Sighting
from datagen.records import SHOT_END, Clip, Handover, Prompt, ResumePoint, Sample, Span
from datagen.spans import ClipSpan, DecodedFrame, SpanPlan, VideoInfo
from datagen.stated import check_stated_size

ENDED_AT_CUT = "ended_at_cut"
"""A flag of a track, and counted of objects that the input asks for: the object was followed to a shot cut, and does not go on."""

LOST = "lost"
"""Counted: objects out of sight that cannot be looked for any more, as the frame in which they were seen does not decode again."""

_NAMED = 20
_MOMENT_S = 0.0015
_STOPS = (JobError, ModelLoadError, ClusterError, StorageError)


class FrameStream(Protocol):
    """The frames of a clip. `plan` says which will come if all decode; the others are known at the end, `flags` are those of the clip."""

    plan: SpanPlan
    truncated: bool
    corrupt_packets: int
    missing_frames: int
    flags: Sequence[str]

    def __iter__(self) -> Iterator[DecodedFrame]:
        """In order. Raises DecodeError."""


class OpenVideo(Protocol):
    """One video, open for reading. All raise DecodeError."""

    @property
    def info(self) -> VideoInfo:
        """What it is."""

    @property
    def size_bytes(self) -> int | None:
        """Of the file."""

    @property
    def sha256(self) -> str | None:
        """Of the file."""

    def span(self, start_s: float, clip_index: int, shot_start_s: float | None = None) -> ClipSpan | None:
        """The clip that starts at `start_s`, in a shot that began at `shot_start_s`; None when the video ends there."""

    def frames_at(self, times_s: Sequence[float]) -> list[int | None]:
        """See prompted_frames.TimedVideo."""

    def frames(self, span: ClipSpan, wanted: Collection[int] = ()) -> FrameStream:
        """The sampled frames of a clip, and those `wanted`, by number in the video, that lie in it."""


class Reader(Protocol):
    """What opens videos."""

    def start(self) -> None:
        """Start the decoding process. Raises ClusterError."""

    def open_video(self, uri: str, span: Span | None = None) -> OpenVideo:
        """Raises DecodeError when it is no video that can be read. span: as in Asset."""

    def close(self) -> None:
        """End the decoding process."""


class VideoPerceiveStep:
    """Samples of videos to samples of clips (guard.ClipStep). `load` gives the models, in the worker; `make_reader` a reader for their
    image size, px.
    """

    def __init__(self, load: Callable[[], ClipPerceiver], make_reader: Callable[[int], Reader], note: Note = log_event) -> None:
        self._load = load
        self._make_reader = make_reader
        self._note = note

    def setup(self) -> None:
        """Load the weights and start the reader. Raises ModelLoadError or ClusterError."""
        self._perceiver = self._load()
        self._reader = self._make_reader(self._perceiver.image_size)
        self._reader.start()

    def teardown(self) -> None:
        """End the decoding process."""
        self._reader.close()

    def clips(self, sample: Sample) -> Iterator[Sample]:
        """The clips of one video from `sample.resume` on, up to one with `is_last`. A clip that an error hits is a failed, last one."""
        resume = sample.resume or ResumePoint()
        at = Clip(resume.clip_index, resume.start_s, resume.start_s, 0, is_last=True, next_track=resume.next_track)
        if sample.asset.failure is not None:
            yield failed_clip(sample, at, sample.asset.failure.code, sample.asset.failure.message)
            return
        try:
            video = self._reader.open_video(sample.asset.uri, sample.asset.span)
            info = video.info
            is_turned = info.rotation % 180 == 90
            check_stated_size(sample.asset, info.width, info.height, is_turned=is_turned, pixel_aspect=info.pixel_aspect)
            asked, refused = objects_of(sample.asset, video)
            first_frame = video.frames_at([resume.start_s])[0] or 0 if asked else 0
        except _STOPS:
            raise
        except DatagenError as error:
            yield failed_clip(sample, at, error.code, error.message)
            return
        ids = _TrackIds(sample.asset.asset_id, max(resume.next_track, len(asked)))
        walk = _Walk(self._perceiver, sample, video, asked, ids, self._note, first_frame)
        if resume.clip_index == 0:  # otherwise the first clip has said so
            walk.refuse(refused)
            walk.count_refused_before()
        if (failure := refusal_of(sample.asset, asked, refused)) is not None:
            yield walk.failed(at, failure.code, failure.message)
            return
        yield from walk.clips(resume)


class _TrackIds:
    """Ids of new objects; numbers count up through all clips of an asset."""

    def __init__(self, asset_id: str, next_number: int) -> None:
        self.asset_id, self.next_number = asset_id, next_number

    def __call__(self) -> str:
        self.next_number += 1
        return track_id_of(self.asset_id, self.next_number - 1)


class _FramesDiffer(Exception):
    """Other frames came than were planned: some did not decode."""


@dataclass(slots=True)
class _Walk:
    """The way through one video. next_frame: number of the next clip's first. dropped: what the next clip has to count, by code."""

    perceiver: ClipPerceiver
    sample: Sample
    video: OpenVideo
    asked: Sequence[AskedObject]
    ids: _TrackIds
    note: Note
    next_frame: int
    dropped: Counter[str] = field(default_factory=Counter)

    def clips(self, resume: ResumePoint) -> Iterator[Sample]:
        while True:
            done = self._try(resume)
            yield done
            if done.clip is None or done.clip.is_last:
                return
            resume = resume.after(done.clip)

    def refuse(self, refused: Sequence[PromptError]) -> None:
        """Count prompts that cannot be used, and name them."""
        self.dropped.update(error.code for error in refused)
        for error in refused[:_NAMED]:
            self._tell(error.code, error.message)
        if len(refused) > _NAMED:
            more = f"{len(refused) - _NAMED} further prompts cannot be used; the first of them: {refused[_NAMED].message}"
            self._tell(refused[_NAMED].code, more)

    def count_refused_before(self) -> None:
        """Count what the source refused already, and name the first of it."""
        counts, problem = self.sample.asset.dropped, self.sample.asset.problem
        self.dropped.update(counts)
        if counts and problem:
            codes = ", ".join(f"{count} {code}" for code, count in sorted(counts.items()))
            self._tell(min(counts), f"refused where the input was read: {codes}; the first: {problem}")

    def failed(self, at: Clip, code: str, message: str) -> Sample:
        """The next clip as a failed, last one, with what is to be counted."""
        failed = failed_clip(self._sample(at), at, code, message)
        failed.dropped = dict(self.dropped)
        return failed

    def _tell(self, code: str, message: str) -> None:
        self.note("prompt_dropped", message, level=logging.WARNING, asset_id=self.sample.asset.asset_id, code=code)

    def _try(self, resume: ResumePoint) -> Sample:
        """The next clip; whatever one video does costs that video alone."""
        at = self._clip(ClipSpan(resume.clip_index, resume.start_s, resume.start_s, is_last=True))
        told = self.dropped.copy()
        try:
            span = self.video.span(resume.start_s, resume.clip_index, resume.shot_start_s)
            return self._perceive(span, resume.handovers) if span is not None else self._sample(at)
        except _STOPS:
            raise
        except DatagenError as error:
            failed = failed_clip(self._sample(at), at, error.code, error.message)
        except Exception as error:  # noqa: BLE001 (whatever one video does to the models must not cost the others)
            failed = failed_clip(self._sample(at), at, "perceive", f"{type(error).__name__}: {error}")
        failed.dropped = dict(told)
        if left := num_behind(self.asked, self.next_frame):
            failed.dropped["prompt_not_reached"] = left
            self._tell("prompt_not_reached", f"{left} prompts are about frame {self.next_frame} or later ones, which were not reached")
        return failed

    def _perceive(self, span: ClipSpan, handovers: Sequence[Handover]) -> Sample:
        stream, plan, found, refused = self._follow(span, handovers)
        self.refuse(refused)
        self.next_frame = plan.end_frame
        clip = self._clip(span, len(plan.sampled), span.is_last and stream.truncated)
        clip.missing_frames, clip.flags = stream.missing_frames, list(stream.flags)
        if span.ends_shot:
            clip.flags.append(SHOT_END)
            self._end_at_cut(found)
        elif not span.is_last:
            clip.handovers = found.handovers
        done = self._sample(clip)
        done.tracks = found.tracks
        done.dropped = dict(self.dropped + found.dropped)
        self.dropped.clear()
        for reason, count in (("corrupt_packets", stream.corrupt_packets), ("missing_frame", stream.missing_frames)):
            if count:
                done.dropped[reason] = count
        return done

    def _end_at_cut(self, found: ClipFindings) -> None:
        """Nothing goes on behind a shot cut: objects that would are marked, and those that the input asks for, and not again, counted.

        What only says where an object is not asks for none that has ended.
        """
        again = {item.track_id for item in self.asked if any(self._asks_again(*one) for one in item.prompts.items())}
        ended = {item.track_id for item in found.handovers} - again
        for track in found.tracks:
            if track.track_id in ended:
                track.flags.append(ENDED_AT_CUT)
        self.dropped[ENDED_AT_CUT] += len(ended & {item.track_id for item in self.asked})

    def _asks_again(self, frame: int, prompt: Prompt) -> bool:
        return frame >= self.next_frame and prompt.is_positive

    def _follow(self, span: ClipSpan, handovers: Sequence[Handover]) -> tuple[FrameStream, SpanPlan, ClipFindings, list[PromptError]]:
        """Read the clip and follow its objects; once more where frames are damaged or memory was short. Also what really came, and the
        prompts that cannot be used.
        """
        first, sampled = self.ids.next_number, None
        wanted = {frame for item in self.asked for frame in item.prompts if frame >= self.next_frame}
        sightings, vanished = self._sightings(handovers)
        handovers = [item for item in handovers if item.track_id not in vanished]
        while True:
            self.ids.next_number = first
            stream = self.video.frames(span, wanted)
            plan = stream.plan if sampled is None else replace(stream.plan, sampled=sampled)
            objects, refused = clip_objects(plan, self.asked, handovers, sightings)
            try:
                found = self._look_at(span, plan, _exactly(stream, plan.sampled), objects)
            except _FramesDiffer:
                if sampled is not None:
                    raise DecodeError("other frames decode each time that the file is read", code="corrupt") from None
                # Read once more, to know which frames there are.
                sampled = [(frame.frame_index, frame.timestamp_s) for frame in self.video.frames(span, wanted)]
            except MemoryShortError:
                continue
            else:
                found.dropped.update({LOST: len(vanished)} if vanished else {})
                return stream, plan, found, refused

    def _look_at(self, span: ClipSpan, plan: SpanPlan, frames: Iterator[DecodedFrame], objects: Sequence[ClipObject]) -> ClipFindings:
        found = ClipFindings()
        if plan.sampled:
            info, find = self.video.info, self.sample.asset.prompts is None
            scene = ClipScene(plan.sampled, span.end_s, info.width, info.height)
            found = self.perceiver.perceive(scene, frames, objects, self.ids if find else None)
        for _ in frames:  # the end of the stream says how it ended
            pass
        return found

    def _sightings(self, handovers: Sequence[Handover]) -> tuple[dict[str, Sighting], set[str]]:
        """Where the objects of the clip before were seen, of those asked for with pixels; and those of which these are gone."""
        asked = {item.track_id for item in self.asked}
        times = {item.track_id: [item.seen_s, *item.unseen_s] for item in handovers if item.seen_s is not None and item.track_id in asked}
        pictures = {}
        for seconds in sorted({second for some in times.values() for second in some}):
            frames = list(self.video.frames(ClipSpan(0, seconds, seconds + _MOMENT_S)))
            if frames:
                pictures[seconds] = frames[0].pixels
        sightings, vanished = {}, set()
        for item in handovers:
            if item.seen_s is None:
                continue
            shown = [pictures[second] for second in times.get(item.track_id, ()) if second in pictures]
            if len(shown) == 1 + len(item.unseen_s):
                sightings[item.track_id] = Sighting(item.prompt, item.seen_s, shown[0], shown[1:])
            elif item.lost:
                vanished.add(item.track_id)
            else:
                sightings[item.track_id] = Sighting(item.prompt, item.seen_s)
        return sightings, vanished

    def _clip(self, span: ClipSpan, num_frames: int = 0, truncated: bool = False) -> Clip:
        info = self.video.info
        return Clip(
            clip_index=span.clip_index,
            start_s=span.start_s,
            end_s=span.end_s,
            num_frames=num_frames,
            is_last=span.is_last,
            truncated=truncated,
            num_video_frames=info.num_frames,
            fps=info.fps,
            duration_s=info.duration_s,
            next_track=self.ids.next_number,
        )

    def _sample(self, clip: Clip) -> Sample:
        video = self.video
        done = _clip_sample(self.sample, clip)
        done.width, done.height, done.size_bytes, done.sha256 = video.info.width, video.info.height, video.size_bytes, video.sha256
        return done


def failed_clip(sample: Sample, clip: Clip, code: str, message: str) -> Sample:
    """The sample of a clip that failed; it is its video's last."""
    failed = _clip_sample(sample, clip)
    failed.fail(code, message)
    return failed


def _clip_sample(sample: Sample, clip: Clip) -> Sample:
    return replace(sample, clip=clip, resume=None, tracks=[], regions=[], dropped={}, usage={})


def _exactly(stream: FrameStream, planned: Sequence[tuple[int, float]]) -> Iterator[DecodedFrame]:
    """The stream's frames. Raises _FramesDiffer at the first that is not as planned."""
    count = 0
    for frame in stream:
        if count == len(planned) or frame.frame_index != planned[count][0]:
            raise _FramesDiffer
        count += 1
        yield frame
    if count < len(planned):
        raise _FramesDiffer
