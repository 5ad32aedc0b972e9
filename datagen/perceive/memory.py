"""How much goes through the model at once: less where the device's memory is short, and after a while as much as before."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from datagen.errors import MemoryShortError, ModelOutputError
from datagen.events import Note

_CALM = 16  # full calls without trouble before a larger size is tried
_LONGEST_CALM = 1024
# How libraries say it that do not raise torch.OutOfMemoryError: torch's allocator on the CPU, the driver, cuBLAS and cuDNN.
_SAID = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "ALLOC_FAILED")


class CallTooLargeError(MemoryShortError):
    """A call of `count` things did not fit. option: that of the CallSize it went by."""

    def __init__(self, option: str, count: int, message: str) -> None:
        super().__init__(message)
        self.option, self.count = option, count

    def __reduce__(self) -> tuple[Any, ...]:
        return CallTooLargeError, (self.option, self.count, self.message)

    def bare(self) -> CallTooLargeError:
        """The same without its traceback, which would keep the call's tensors alive."""
        return CallTooLargeError(self.option, self.count, str(self))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there was too little memory, on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


@contextmanager
def sized_by(option: str, count: int) -> Iterator[None]:
    """A call of so many things: turns any way of running out of memory into a CallTooLargeError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise CallTooLargeError(option, count, str(error)) from error
        raise


class CallSize:
    """How many things share a call of the model: `value`, at first `limit`, what `option` of the job says; halved when memory runs short.

    After 16 full calls that fit it is doubled, up to the limit. A doubled size that does not fit is tried again only after twice as many
    full calls as the last time, at most 1024; once the limit holds, that is forgotten. Every change is noted as `memory_short` or
    `memory_ample`.
    """

    def __init__(self, option: str, limit: int, note: Note) -> None:
        self.option, self.limit, self.value = option, limit, limit
        self._note = note
        self._calm, self._wanted = 0, _CALM
        self._grew = False

    def shrink(self, short: CallTooLargeError) -> bool:
        """A call did not fit. False when there is no smaller one."""
        failed = min(self.value, short.count)
        if failed == 1:
            return False
        if self._grew:
            self._wanted = min(2 * self._wanted, _LONGEST_CALM)
        self.value = failed // 2
        self._calm, self._grew = 0, False
        message = f"out of memory: {self.option} is {self.value} from now on, where the job says {self.limit}: {short}"
        self._note("memory_short", message, level=logging.WARNING, option=self.option, value=self.value, limit=self.limit)
        return True

    def fitted(self, count: int) -> None:
        """A call of so many things fitted. One that was not full says nothing."""
        if count < self.value or (self.value == self.limit and not self._grew):
            return
        self._calm += 1
        if self._calm < self._wanted:
            return
        self._calm = 0
        if self.value == self.limit:
            self._grew, self._wanted = False, _CALM
            return
        self.value, self._grew = min(2 * self.value, self.limit), True
        message = f"memory sufficed for a while: {self.option} is {self.value}, where the job says {self.limit}"
        self._note("memory_ample", message, option=self.option, value=self.value, limit=self.limit)


def does_not_fit(what: str, error: object) -> ModelOutputError:
    """The error of a sample that does not even fit alone."""
    ways = (
        "lower describe.gpu_memory_fraction where the text engine shares the GPU, perceive.everything.points_per_side, "
        "or decode.max_pixels, which leaves out such large pictures"
    )
    return ModelOutputError(f"{what} does not fit into the device's memory: {error}. To make room: {ways}", code="out_of_memory")


def free_cache() -> None:
    """Give back what torch holds in reserve, as it may lie in pieces. Call it when no failed call's tensors are alive any more."""
    torch.cuda.empty_cache()
