"""Ctrl-C and SIGTERM: both end a run early, and neither may tear a commit apart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Exit codes of a run that ends early, in good order: its budget is used up; it was told to.
STOPPED = 5
INTERRUPTED = 130

_sigterm_calls: list[Callable[[], None]] = []
_told_of_sigterm: list[Callable[[], None]] = []


def sigterm_is_ctrl_c() -> None:
    """From now on SIGTERM, as schedulers send it, does what Ctrl-C does, but for sigterm_calls. Call it in the main thread."""
    signal.signal(signal.SIGTERM, _on_sigterm)


@contextmanager
def sigterm_calls(function: Callable[[], None]) -> Iterator[None]:
    """Where SIGTERM would do what Ctrl-C does, it calls this function meanwhile: in the main thread, between any two instructions."""
    _sigterm_calls.append(function)
    try:
        yield
    finally:
        _sigterm_calls.remove(function)


@contextmanager
def sigterm_tells(function: Callable[[], None]) -> Iterator[None]:
    """Meanwhile this is called first whenever Python hears of SIGTERM, whatever it does then."""
    _told_of_sigterm.append(function)
    try:
        yield
    finally:
        _told_of_sigterm.remove(function)


def as_ctrl_c(frame: FrameType | None = None) -> None:
    """Do what Ctrl-C does. Call it in the main thread."""
    # Not by a SIGINT: Ray's job server starts its jobs with that blocked, a shell script those in its background with it ignored.
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def interrupt_main_thread() -> None:
    """The main thread does what Ctrl-C does, also when it waits in a system call. For other threads."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM if is_command() else signal.SIGINT)


def is_command() -> bool:
    """Whether this process is a command of ours, and not somebody's program that calls us: whether sigterm_is_ctrl_c was called."""
    return signal.getsignal(signal.SIGTERM) is _on_sigterm


def _on_sigterm(_: int, frame: FrameType | None) -> None:
    for tell in _told_of_sigterm:
        tell()
    if _sigterm_calls:
        _sigterm_calls[-1]()
    else:
        as_ctrl_c(frame)


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
