"""Ends an engine's processes when the worker that started them dies, however it dies.

vLLM's engine core outlives a parent that is killed with SIGKILL, and holds its GPU memory; the worker that Ray starts in its
place then finds none. So a small process notes who is started with our mark in the environment, and waits on a pipe: when
the other end closes, it kills them.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_VARIABLE = "DATAGEN_ENGINE_MARK"
_SCAN_EVERY_S = 0.1
_YOUNG_S = 5.0


class Reaper:
    """Watches over the processes started inside `marking()`."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # -P: this folder's modules bear the names of libraries. A session of its own: Ctrl-C must not end it first.
        self._process = subprocess.Popen([sys.executable, "-P", __file__, self._mark], stdin=subprocess.PIPE, start_new_session=True)

    @contextmanager
    def marking(self) -> Iterator[None]:
        """Processes started (not forked) by this process meanwhile, and their children, carry the mark. For one use."""
        os.environ[_VARIABLE] = self._mark
        try:
            yield
        finally:
            del os.environ[_VARIABLE]
            self._tell(b"all are started\n")

    def close(self) -> None:
        """Kill what is left, and wait until that is done."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line)
            self._process.stdin.flush()


def watch(mark: str) -> None:
    """Note marked processes until told that all are started; wait for the end of standard input; kill them."""
    marked: set[psutil.Process] = set()
    while not select.select([sys.stdin], [], [], _SCAN_EVERY_S)[0]:
        marked |= _young_and_marked(mark)
    sys.stdin.read()
    for process in marked | _young_and_marked(mark):
        try:
            process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _young_and_marked(mark: str) -> set[psutil.Process]:
    """Only young processes can be asked: vLLM's overwrite their environment with a title once they have imported it."""
    found, now = set(), time.time()
    for process in psutil.process_iter():
        try:
            if now - process.create_time() < _YOUNG_S and process.environ().get(_VARIABLE) == mark:
                found.add(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


if __name__ == "__main__":
    watch(sys.argv[1])
