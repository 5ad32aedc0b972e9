"""Notices that a process was told to end and does not listen, and ends it: a process of its own, beside the one that it watches.

Python hears of SIGTERM between two of its instructions. A main thread inside a long call of native code does not come to one, and where
that call holds the interpreter's lock, no other thread runs either. But the C-level handler runs at once and writes the signal's number
into a pipe (signal.set_wakeup_fd). This process reads it, and waits for the word that Python has heard; when none comes in time it
says `leave`, for a thread of the watched process to end that with its own exit code, and where even this is not heard, kills it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

KILL_S = 5.0  # after `leave`
AGAIN_S = 10.0  # for the second SIGTERM and those after it


class Leaver:
    """Watches this process. first_s: how long the first SIGTERM may go unheard. leave: called in a thread then; it should not return."""

    def __init__(self, first_s: float, leave: Callable[[], None]) -> None:
        self._told, told = os.pipe()
        os.set_blocking(told, False)
        command = [sys.executable, "-I", "-S", __file__, str(self._told), str(first_s), str(os.getpid())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=(self._told,), start_new_session=True
        )
        os.close(self._told)
        self._told = told
        self._before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(leave,), name="leaver", daemon=True).start()

    def heard(self) -> None:
        """Python has heard of the signal."""
        with contextlib.suppress(OSError, ValueError):  # it is gone: killed by somebody
            self._process.stdin.write(b".")  # type: ignore[union-attr]

    def close(self) -> None:
        """Watch no more."""
        signal.set_wakeup_fd(self._before)
        os.close(self._told)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _listen(self, leave: Callable[[], None]) -> None:
        if self._process.stdout is not None and self._process.stdout.read(1):
            leave()


@contextmanager
def watched(first_s: float, leave: Callable[[], None]) -> Iterator[Leaver]:
    """A Leaver for the time of the context. Call it in the main thread."""
    leaver = Leaver(first_s, leave)
    try:
        yield leaver
    finally:
        leaver.close()


def watch(told: int, first_s: float, parent: int) -> None:
    """Read signals from `told` and words from standard input until that closes."""
    due, limit_s = None, first_s
    while True:
        wait_s = None if due is None else max(0.0, due - time.monotonic())
        ready = select.select([told, 0], [], [], wait_s)[0]
        if told in ready and signal.SIGTERM in os.read(told, 4096):
            due, limit_s = due or time.monotonic() + limit_s, AGAIN_S
        if 0 in ready:
            if not os.read(0, 4096):
                return
            due = None
        if due is not None and time.monotonic() >= due:
            os.write(1, b"l")
            if not select.select([0], [], [], KILL_S)[0] and os.getppid() == parent:
                os.kill(parent, signal.SIGKILL)
            return


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
