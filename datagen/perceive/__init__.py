"""Perceive: pixels and prompts to masks and region tokens; videos to clips of tracks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from datagen.events import Note, log_event

if TYPE_CHECKING:
    from datagen.guard import ClipStep, Step
    from datagen.job import Job
    from datagen.perceive.clips import ClipPerceiver
    from datagen.perceive.video import Reader


def make_perceive_step(job: Job, note: Note = log_event) -> Step:
    """The perceive step of images that the job asks for, not yet set up. note: is told where memory is short, and of useless prompts."""
    if job.perceive.engine == "fake":
        from datagen.perceive.fake import FakePerceiveStep

        return FakePerceiveStep(job.perceive)
    from datagen.perceive.pam import PamPerceiveStep

    return PamPerceiveStep(job.model, job.perceive, note)


def make_video_step(job: Job, image_size: int, make_reader: Callable[[int], Reader], note: Note = log_event) -> ClipStep:
    """The same for videos. image_size: side of the model's square input, px, as `make_reader` takes it."""
    from datagen.perceive.video import VideoPerceiveStep

    def load() -> ClipPerceiver:
        if job.perceive.engine == "fake":
            from datagen.perceive.fake import FakeClipPerceiver

            return FakeClipPerceiver(job.perceive, image_size)
        from datagen.pam.tracker import Tracker
        from datagen.perceive.pam import front_end_for
        from datagen.perceive.pam_clips import PamClipPerceiver

        return PamClipPerceiver(Tracker(front_end_for(job.model, job.perceive)), job.perceive, note)

    return VideoPerceiveStep(load, make_reader, note)
