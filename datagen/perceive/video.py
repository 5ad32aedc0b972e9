"""The perceive step of videos: one asset in, its clips out, one after the other, each tracked as it is read.

A clip's frames are held together (the tracker must know how many there are), a video's never. Reading the next frames goes on in
the decoding child while the model works. The reader is given, so that this step knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

import torch

from datagen.errors import DatagenError, DecodeError, JobError, ModelLoadError, PromptError
from datagen.job import Job
from datagen.pam.checkpoint import resolve_model
from datagen.pam.front_end import load_front_end
from datagen.pam.tracker import Tracker
from datagen.perceive.clips import ClipObject, find_objects, perceive_clip
from datagen.perceive.prompts import check_prompt
from datagen.records import Clip, ClipSpan, DecodedFrame, Handover, Prompt, ResumePoint, Sample, VideoInfo, track_id_of

_STOPS = (JobError, ModelLoadError, torch.AcceleratorError)


class OpenVideo(Protocol):
    """One video, open for reading. All raise DecodeError."""

    info: VideoInfo
    size_bytes: int | None
    sha256: str | None

    def spans(self, start_s: float, clip_index: int) -> Iterator[ClipSpan]:
        """The clips from `start_s` on."""

    def frames(self, span: ClipSpan) -> tuple[list[DecodedFrame], bool]:
        """The sampled frames of a clip, and whether the file ended early in it."""


class Reader(Protocol):
    """What opens videos."""

    def start(self) -> None:
        """Start the decoding process. Raises ClusterError."""

    def open_video(self, uri: str) -> OpenVideo:
        """Raises DecodeError when it is no video that can be read."""

    def close(self) -> None:
        """End the decoding process."""


@dataclass(slots=True)
class _Asked:
    """Prompts of one object that no clip has had yet, by the time of their frame where it is known, else by its number."""

    track_id: str
    prompts: list[Prompt]


class VideoPerceiveStep:
    """Samples of videos to samples of clips. `setup` and `teardown` as in `guard.Step`; `clips` in the place of `process`."""

    def __init__(self, job: Job, make_reader: Callable[[int], Reader]) -> None:
        self._job = job
        self._make_reader = make_reader

    def setup(self) -> None:
        """Load the weights and start the reader. Raises ModelLoadError or ClusterError."""
        options = self._job.perceive
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        bfloat16 = options.dtype == "bfloat16" or (options.dtype == "auto" and device.startswith("cuda"))
        front_end = load_front_end(resolve_model(self._job.model), device, torch.bfloat16 if bfloat16 else torch.float32)
        self._tracker = Tracker(front_end)
        self._reader = self._make_reader(front_end.image_size)
        self._reader.start()

    def teardown(self) -> None:
        """End the decoding process."""
        self._reader.close()

    def clips(self, sample: Sample) -> Iterator[Sample]:
        """The clips of one video from `sample.resume` on, the last one with `is_last`. An error makes the clip it hits a failed, last one."""
        resume = sample.resume or ResumePoint(0, 0.0, 0, [])
        if sample.asset.failure is not None:
            yield _failed(sample, resume.clip_index, resume.start_s, sample.asset.failure.code, sample.asset.failure.message)
            return
        try:
            video = self._reader.open_video(sample.asset.uri)
        except DecodeError as error:
            yield _failed(sample, resume.clip_index, resume.start_s, error.code, error.message)
            return
        yield from self._clips(sample, video, resume)

    def _clips(self, sample: Sample, video: OpenVideo, resume: ResumePoint) -> Iterator[Sample]:
        numbers = count(resume.next_track)
        at, start_s, handovers = resume.clip_index, resume.start_s, resume.handovers
        try:
            asked = _by_object(sample, video, numbers, resume)
            spans = video.spans(start_s, at)
            span = next(spans, None)
            while span is not None:
                # The next span is found before this clip's frames are read: it tells whether this one is the last.
                following = next(spans, None)
                at, start_s = span.clip_index, span.start_s
                done = self._clip(sample, video, span, following is None, asked, handovers, numbers)
                handovers = done.clip.handovers if done.clip else []
                yield done
                if done.clip is None or done.clip.is_last:
                    return
                span = following
        except _STOPS:
            raise
        except DatagenError as error:
            yield _failed(sample, at, start_s, error.code, error.message, video)
        except Exception as error:  # noqa: BLE001 (whatever one video does costs that video)
            yield _failed(sample, at, start_s, "perceive", f"{type(error).__name__}: {error}", video)

    def _clip(
        self,
        sample: Sample,
        video: OpenVideo,
        span: ClipSpan,
        is_last: bool,
        asked: list[_Asked],
        handovers: Sequence[Handover],
        numbers: Iterator[int],
    ) -> Sample:
        info, options = video.info, self._job.perceive
        frames, truncated = video.frames(span)
        clip = Clip(
            clip_index=span.clip_index,
            start_s=span.start_s,
            end_s=span.end_s,
            num_frames=len(frames),
            is_last=is_last or truncated,
            truncated=truncated,
            num_video_frames=info.num_frames,
            fps=info.fps,
            duration_s=info.duration_s,
        )
        done = _clip_sample(sample, clip, video)
        if not frames:
            return done
        objects = [ClipObject(item.track_id, {0: item.prompt}) for item in handovers]
        objects = _with_prompts(objects, asked, frames, clip)
        if sample.asset.prompts is None:
            known = [item.prompt for item in handovers]
            found, done.dropped = find_objects(self._tracker, frames[0], info.width, info.height, known, options)
            objects += [ClipObject(track_id_of(sample.asset.asset_id, next(numbers)), {0: prompt}) for prompt in found]
        done.tracks, clip.handovers = perceive_clip(self._tracker, frames, span.end_s, info.width, info.height, objects, options)
        if clip.is_last:
            clip.handovers = []
        return done


def _by_object(sample: Sample, video: OpenVideo, numbers: Iterator[int], resume: ResumePoint) -> list[_Asked]:
    """The asset's prompts, those of one object together, without those that lie before the resume point. Raises PromptError."""
    objects: dict[Any, list[Prompt]] = {}
    for position, prompt in enumerate(sample.asset.prompts or ()):
        check_prompt(prompt, video.info.width, video.info.height)
        time_s = _time_of(prompt, video.info)
        if time_s > video.info.duration_s:
            raise PromptError(f"a prompt asks about second {time_s:.2f}; the video has {video.info.duration_s:.2f} s", code="prompt_frame")
        key = ("object", prompt.object_id) if prompt.object_id is not None else ("prompt", position)
        objects.setdefault(key, []).append(prompt)
    asked = [_Asked(track_id_of(sample.asset.asset_id, number), prompts) for number, prompts in enumerate(objects.values())]
    # Given prompts are numbered first, in every run alike; what is found later counts on from there.
    for _ in range(len(asked) - resume.next_track):
        next(numbers)
    for item in asked:
        item.prompts = [prompt for prompt in item.prompts if _time_of(prompt, video.info) >= resume.start_s - 1e-3]
    return [item for item in asked if item.prompts]


def _with_prompts(objects: list[ClipObject], asked: list[_Asked], frames: Sequence[DecodedFrame], clip: Clip) -> list[ClipObject]:
    """The clip's objects with the prompts that lie in it, each on the nearest sampled frame; these are then taken off `asked`."""
    by_id = {item.track_id: item for item in objects}
    for item in asked:
        for prompt in list(item.prompts):
            position = _position(prompt, frames, clip)
            if position is not None:
                target = by_id.setdefault(item.track_id, ClipObject(item.track_id, {}))
                target.prompts[position] = prompt
                item.prompts.remove(prompt)
    return list(by_id.values())


def _position(prompt: Prompt, frames: Sequence[DecodedFrame], clip: Clip) -> int | None:
    """Which of the frames a prompt is about; None when it is about a later clip."""
    if prompt.frame_index is not None:
        distances = [abs(frame.frame_index - prompt.frame_index) for frame in frames]
        later = prompt.frame_index > frames[-1].frame_index + _spacing(frames) and not clip.is_last
    else:
        time_s = prompt.time_s or 0.0
        distances = [abs(frame.timestamp_s - time_s) for frame in frames]
        later = time_s >= clip.end_s and not clip.is_last
    return None if later else distances.index(min(distances))


def _spacing(frames: Sequence[DecodedFrame]) -> int:
    """Decoded frames from one sampled frame to the next, less one: those that belong to the last sampled one."""
    return frames[-1].frame_index - frames[-2].frame_index - 1 if len(frames) > 1 else 0


def _time_of(prompt: Prompt, info: VideoInfo) -> float:
    if prompt.frame_index is not None:
        return prompt.frame_index / info.fps if info.fps else 0.0
    return prompt.time_s or 0.0


def _clip_sample(sample: Sample, clip: Clip, video: OpenVideo | None) -> Sample:
    facts = (
        {"width": video.info.width, "height": video.info.height, "size_bytes": video.size_bytes, "sha256": video.sha256} if video else {}
    )
    return replace(sample, clip=clip, resume=None, tracks=[], regions=[], dropped={}, usage={}, **facts)


def _failed(sample: Sample, clip_index: int, start_s: float, code: str, message: str, video: OpenVideo | None = None) -> Sample:
    failed = _clip_sample(sample, Clip(clip_index, start_s, start_s, 0, is_last=True), video)
    failed.fail(code, message)
    return failed
