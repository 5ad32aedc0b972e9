"""Perceive: pixels and prompts to masks and region tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datagen.guard import Step
    from datagen.job import Job


def make_perceive_step(job: Job) -> Step:
    """The perceive step that the job asks for, not yet set up."""
    if job.perceive.engine == "fake":
        from datagen.perceive.fake import FakePerceiveStep

        return FakePerceiveStep(job.perceive)
    from datagen.perceive.pam import PamPerceiveStep

    return PamPerceiveStep(job.model, job.perceive)
