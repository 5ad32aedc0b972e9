"""The perceive step of videos: one asset in, its clips out, one after the other, each tracked as it is read.

Neither a video's frames nor a clip's are held. Reading the next frames goes on in the decoding child while the model works. The
reader is given, so that this step knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from datagen.errors import ClusterError, DatagenError, DecodeError, JobError, MemoryShortError, ModelLoadError, PromptError, StorageError
from datagen.ids import track_id_of
from datagen.perceive.clips import ClipFindings, ClipObject, ClipPerceiver, ClipScene
from datagen.perceive.prompted_frames import frame_numbers
from datagen.perceive.prompts import check_prompt, merge_prompts
from datagen.records import Asset, Clip, ClipSpan, DecodedFrame, Handover, Prompt, ResumePoint, Sample, Span, SpanPlan, VideoInfo
from datagen.stated import check_stated_size

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

    def span(self, start_s: float, clip_index: int) -> ClipSpan | None:
        """The clip that starts at `start_s`; None when the video ends there."""

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

    def __init__(self, load: Callable[[], ClipPerceiver], make_reader: Callable[[int], Reader]) -> None:
        self._load = load
        self._make_reader = make_reader

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
        resume = sample.resume or ResumePoint(0, 0.0, 0, [])
        at = Clip(resume.clip_index, resume.start_s, resume.start_s, 0, is_last=True, next_track=resume.next_track)
        if sample.asset.failure is not None:
            yield failed_clip(sample, at, sample.asset.failure.code, sample.asset.failure.message)
            return
        try:
            video = self._reader.open_video(sample.asset.uri, sample.asset.span)
            info = video.info
            check_stated_size(sample.asset, info.width, info.height, is_turned=info.rotation % 180 == 90)
            ids = _TrackIds(sample.asset.asset_id, resume.next_track)
            asked = _by_object(sample.asset, video, ids)
        except _STOPS:
            raise
        except DatagenError as error:
            yield failed_clip(sample, at, error.code, error.message)
            return
        yield from _Walk(self._perceiver, sample, video, asked, ids).clips(resume)


class _TrackIds:
    """Ids of new objects; numbers count up through all clips of an asset."""

    def __init__(self, asset_id: str, next_number: int) -> None:
        self.asset_id, self.next_number = asset_id, next_number

    def __call__(self) -> str:
        self.next_number += 1
        return track_id_of(self.asset_id, self.next_number - 1)


@dataclass(slots=True)
class _Asked:
    """One object that the asset's prompts ask for."""

    track_id: str
    prompts: list[Prompt]


class _FramesDiffer(Exception):
    """Other frames came than were planned: some did not decode."""


@dataclass(slots=True)
class _Walk:
    """The way through one video."""

    perceiver: ClipPerceiver
    sample: Sample
    video: OpenVideo
    asked: Sequence[_Asked]
    ids: _TrackIds

    def clips(self, resume: ResumePoint) -> Iterator[Sample]:
        clip_index, start_s, handovers = resume.clip_index, resume.start_s, resume.handovers
        while True:
            done = self._try(clip_index, start_s, handovers)
            yield done
            if done.clip is None or done.clip.is_last:
                return
            clip_index, start_s, handovers = clip_index + 1, done.clip.end_s, done.clip.handovers

    def _try(self, clip_index: int, start_s: float, handovers: Sequence[Handover]) -> Sample:
        """The next clip; whatever one video does costs that video alone."""
        at = self._clip(ClipSpan(clip_index, start_s, start_s, is_last=True))
        try:
            span = self.video.span(start_s, clip_index)
            return self._perceive(span, handovers) if span is not None else self._sample(at)
        except _STOPS:
            raise
        except DatagenError as error:
            return failed_clip(self._sample(at), at, error.code, error.message)
        except Exception as error:  # noqa: BLE001 (whatever one video does to the models must not cost the others)
            return failed_clip(self._sample(at), at, "perceive", f"{type(error).__name__}: {error}")

    def _perceive(self, span: ClipSpan, handovers: Sequence[Handover]) -> Sample:
        stream, plan, found = self._follow(span, handovers)
        done = self._sample(self._clip(span, len(plan.sampled), span.is_last and stream.truncated))
        done.tracks, done.dropped = found.tracks, dict(found.dropped)
        for reason, count in (("corrupt_packets", stream.corrupt_packets), ("missing_frame", stream.missing_frames)):
            if count:
                done.dropped[reason] = count
        if done.clip is not None:
            done.clip.missing_frames, done.clip.flags = stream.missing_frames, [*done.clip.flags, *stream.flags]
            done.clip.handovers = [] if span.is_last else found.handovers
        return done

    def _follow(self, span: ClipSpan, handovers: Sequence[Handover]) -> tuple[FrameStream, SpanPlan, ClipFindings]:
        """Read the clip and follow its objects; once more where frames are damaged or memory was short. Also what really came."""
        first, sampled = self.ids.next_number, None
        wanted = {prompt.frame_index for item in self.asked for prompt in item.prompts if prompt.frame_index is not None}
        while True:
            self.ids.next_number = first
            stream = self.video.frames(span, wanted)
            plan = stream.plan if sampled is None else replace(stream.plan, sampled=sampled)
            try:
                return stream, plan, self._look_at(span, plan, _exactly(stream, plan.sampled), handovers)
            except _FramesDiffer:
                if sampled is not None:
                    raise DecodeError("other frames decode each time that the file is read", code="corrupt") from None
                # Read once more, to know which frames there are.
                sampled = [(frame.frame_index, frame.timestamp_s) for frame in self.video.frames(span, wanted)]
            except MemoryShortError:
                continue

    def _look_at(self, span: ClipSpan, plan: SpanPlan, frames: Iterator[DecodedFrame], handovers: Sequence[Handover]) -> ClipFindings:
        found = ClipFindings()
        if plan.sampled:
            info, find = self.video.info, self.sample.asset.prompts is None
            scene = ClipScene(plan.sampled, span.end_s, info.width, info.height)
            objects = _objects_of(plan, self.asked, handovers)
            found = self.perceiver.perceive(scene, frames, objects, self.ids if find else None)
        for _ in frames:  # the end of the stream says how it ended
            pass
        return found

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


def _by_object(asset: Asset, video: OpenVideo, ids: _TrackIds) -> list[_Asked]:
    """The asset's prompts, each with its frame's number, those of one object together. They are numbered first, in every run alike.

    Raises PromptError.
    """
    objects: dict[Any, list[Prompt]] = {}
    prompts = asset.prompts or ()
    for position, (prompt, number) in enumerate(zip(prompts, frame_numbers(prompts, video), strict=True)):
        check_prompt(prompt, video.info.width, video.info.height)
        if isinstance(number, PromptError):
            raise number
        key = ("prompt", position) if prompt.object_id is None else ("object", prompt.object_id)
        objects.setdefault(key, []).append(replace(prompt, frame_index=number))
    ids.next_number = max(ids.next_number, len(objects))
    return [_Asked(track_id_of(asset.asset_id, number), prompts) for number, prompts in enumerate(objects.values())]


def _objects_of(plan: SpanPlan, asked: Sequence[_Asked], handovers: Sequence[Handover]) -> list[ClipObject]:
    """The clip's objects: those handed over, and those with prompts in it, each on its own frame."""
    handed = {item.track_id: item.prompt for item in handovers}
    objects = {track_id: ClipObject(track_id, {}) for track_id in handed}
    for item in asked:
        for prompt in item.prompts:
            if _is_in(prompt, plan):
                prompts = objects.setdefault(item.track_id, ClipObject(item.track_id, {})).prompts
                position = _nearest(prompt, plan)
                prompts[position] = merge_prompts(prompts[position], prompt) if position in prompts else prompt
    for track_id, prompt in handed.items():
        objects[track_id].prompts.setdefault(0, prompt)
    return list(objects.values())


def _is_in(prompt: Prompt, plan: SpanPlan) -> bool:
    return plan.first_frame <= (prompt.frame_index or 0) < plan.end_frame


def _nearest(prompt: Prompt, plan: SpanPlan) -> int:
    """Which of the sampled frames a prompt is about: its own, or the nearest where that does not decode."""
    distances = [abs(index - (prompt.frame_index or 0)) for index, _ in plan.sampled]
    return distances.index(min(distances))
