"""Ctrl-C and SIGTERM: both end a run early, and neither may tear a commit apart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def sigterm_is_ctrl_c() -> None:
    """From now on SIGTERM, as schedulers send it, does what Ctrl-C does. Call it in the main thread."""
    signal.signal(signal.SIGTERM, _as_ctrl_c)


def _as_ctrl_c(_: int, frame: FrameType | None) -> None:
    # Not by a SIGINT: Ray's job server starts its jobs with that blocked, a shell script those in its background with it ignored.
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C meanwhile is a KeyboardInterrupt at the end. Elsewhere than in the main thread there is none to hold back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts back what handles SIGTERM now: starting Ray sets a handler that exits on the spot."""
    handler: Any = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
