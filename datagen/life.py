"""Signs of life of what a worker's step does, and a step that gives none for too long.

A call that hangs inside native code cannot be ended from within. So a worker of Ray ends as a whole, and another one takes over; in this
process the call is left to its thread, and another step takes the place of the one that hangs.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from datagen.errors import EngineDiedError
from datagen.watchdog import Watchdog

T = TypeVar("T")

_heard: list[Callable[[], None]] = []
_TICK_S = 0.1
_END_S = 10.0  # for a call that is interrupted to come to an instruction of Python


def alive() -> None:
    """The step goes on: called before every call of a model, and with every answer of a decoder."""
    for heard in tuple(_heard):
        heard()


@contextmanager
def elsewhere() -> Iterator[None]:
    """What is done inside has time limits of its own, such as a file that is fetched."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(_TICK_S):
            alive()

    threading.Thread(target=tick, name="elsewhere", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        alive()


class Minder:
    """Runs the calls of one step, one at a time, and does not wait for ever.

    timeout_s: without a sign of life (four times as long before the first); None: no limit. here: a call that hangs raises
    EngineDiedError (`step_hung`); it keeps its thread, and must be given nothing that is used further. Else this process ends, after
    `last_words`.
    """

    def __init__(self, step: str, timeout_s: float | None, here: bool, last_words: Callable[[str], None]) -> None:
        self._step, self._here, self._last_words = step, here, last_words
        self._watchdog = None if timeout_s is None else Watchdog(timeout_s, self._on_hang)
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if self._watchdog is not None:
            _heard.append(self._watchdog.heard)

    def run(self, call: Callable[[], T]) -> T:
        """call(), or EngineDiedError when it hangs."""
        if self._watchdog is None:
            return call()
        with self._watchdog.waiting():
            return self._aside(call) if self._here else call()

    def close(self) -> None:
        """Watch no more. A thread that hangs is left."""
        if self._watchdog is not None:
            _heard.remove(self._watchdog.heard)
            self._watchdog.close()
        self._calls.put(None)

    def _aside(self, call: Callable[[], T]) -> T:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers = answers
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._step, daemon=True)
            self._thread.start()
        self._calls.put((call, answers))
        try:
            result, error = answers.get()
        except BaseException:  # Ctrl-C: the call ends as it would have in this thread
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(KeyboardInterrupt))
            with suppress(queue.Empty):
                answers.get(timeout=_END_S)
            raise
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def _serve(self) -> None:
        while (asked := self._calls.get()) is not None:
            call, answers = asked
            try:
                answers.put((call(), None))
            except BaseException as error:  # noqa: BLE001 (raised where the call was made)
                answers.put((None, error))

    def _on_hang(self, silent_s: float) -> None:
        message = f"the {self._step} step gave no sign of life for {silent_s:.0f} s ({self._step}.timeout_s)"
        self._last_words(message)
        if self._here:
            self._answers.put((None, EngineDiedError(message, code="step_hung")))
            return
        print(f"datagen: this worker ends: {message}", file=sys.stderr, flush=True)
        os._exit(1)
