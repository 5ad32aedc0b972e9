"""Ends an engine's processes when the worker that started them dies, however it dies.

vLLM's engine core outlives a parent that is killed with SIGKILL, and holds its GPU memory; the worker that Ray starts in its
place then finds none. So a small process waits on a pipe: when its other end closes, it kills whoever carries our mark.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_VARIABLE = "DATAGEN_ENGINE_MARK"


class Reaper:
    """Watches over the processes started inside `marking()`."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # -P: this folder's modules bear the names of libraries. A session of its own: Ctrl-C must not end it first.
        self._process = subprocess.Popen([sys.executable, "-P", __file__, self._mark], stdin=subprocess.PIPE, start_new_session=True)

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Processes started (not forked) by this process meanwhile, and their children, carry the mark."""
        os.environ[_VARIABLE] = self._mark
        try:
            yield
        finally:
            del os.environ[_VARIABLE]

    def close(self) -> None:
        """Kill what is left, and wait until that is done."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def kill_marked(mark: str) -> None:
    """SIGKILL every process of this user whose environment carries the mark."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(_VARIABLE) == mark:
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


if __name__ == "__main__":
    sys.stdin.read()
    kill_marked(sys.argv[1])
