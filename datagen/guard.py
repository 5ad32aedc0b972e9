"""The contract of a step, and what turns errors, crashes and hangs into rows."""

from __future__ import annotations

from typing import Protocol

from datagen.records import Sample


class Step(Protocol):
    """One step's worker code. It lives in one worker, is set up once, and sees many batches.

    `process` returns the same samples in the same order, each further along or failed; a failed sample that comes in is left
    alone. An error about one sample (DatagenError that is not fatal, or any Exception) becomes that sample's failure inside
    the step; ModelLoadError and JobError are raised and stop the job.
    """

    def setup(self) -> None:
        """Load what is heavy. Called once, before the first batch, in the worker."""

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Take a batch one step further."""

    def teardown(self) -> None:
        """Let go of processes and memory. Called once, after the last batch."""
