"""The decoding child process as its parent sees it: pipes, deadlines, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datagen
from datagen.decode.limits import child_environment
from datagen.decode.wire import LENGTH
from datagen.errors import ClusterError
from datagen.job import DecodeOptions

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0
_STDERR_SHOWN_CHARS = 300

# An isolated start: the child finds this very package, and nothing in the current folder can stand in for a module.
_PROGRAM = """
import sys
root, options, image_size = sys.argv[1:]
if root not in sys.path:
    sys.path.insert(0, root)
from datagen.decode.worker import main
main(options, int(image_size))
"""


class Child:
    """One process and its pipes. A dead one shows as EOFError, a late one as TimeoutError."""

    def __init__(self, options: DecodeOptions, image_size: int) -> None:
        root = str(Path(datagen.__file__).resolve().parent.parent)
        command = [sys.executable, "-P", "-c", _PROGRAM, root, options.model_dump_json(), str(image_size)]
        try:
            self._stderr = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (lives as long as the process)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env=child_environment(),
                close_fds=True,
            )
        except OSError as error:
            raise ClusterError(f"the decoding process cannot be started with {sys.executable}: {error}") from error
        self.pid = self._process.pid
        try:
            self.receive(time.monotonic() + _START_TIMEOUT_S)
        except (EOFError, TimeoutError) as error:
            message = f"the decoding process does not start: {self.epitaph()}"
            self.end(kill=True)
            raise ClusterError(message) from error

    def send(self, message: dict[str, Any]) -> None:
        """Write one message, and forget what the process said about earlier ones (it shares the file's position)."""
        self._stderr.seek(0)
        self._stderr.truncate()
        body = json.dumps(message).encode()
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(LENGTH.pack(len(body)) + body)
            except BrokenPipeError as error:
                raise EOFError from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """Read one message before `deadline` (time.monotonic seconds)."""
        header = bytearray(LENGTH.size)
        self.fill(memoryview(header), deadline)
        body = bytearray(LENGTH.unpack(header)[0])
        self.fill(memoryview(body), deadline)
        answer: dict[str, Any] = json.loads(body)
        return answer

    def fill(self, view: memoryview, deadline: float) -> None:
        """Read exactly as many bytes as `view` has room for."""
        if self._process.stdout is None:
            raise EOFError
        descriptor = self._process.stdout.fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        while view:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not poller.poll(remaining_s * 1000):
                raise TimeoutError
            count = os.readv(descriptor, [view])
            if not count:
                raise EOFError
            view = view[count:]

    def ended_by(self, number: signal.Signals) -> bool:
        """Whether the process, whose pipe has closed, was ended by this signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        return self._process.returncode == -number

    def ran_out_of_memory(self) -> bool:
        """Whether the process, which has ended, said that it got no memory: libraries in C++ end with that, others crash without a word."""
        self._stderr.seek(0)
        return any(word in self._stderr.read() for word in (b"bad_alloc", b"Cannot allocate memory", b"MemoryError"))

    def epitaph(self) -> str:
        """How the process ended, with the end of what it wrote to standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        status = self._process.returncode
        if status is None:
            ended = "it still runs and does not answer"
        elif status < 0:
            ended = f"signal {_signal_name(-status)}" + (", often the machine's lack of memory" if status == -signal.SIGKILL else "")
        else:
            ended = f"exit status {status}"
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "replace").strip()[-_STDERR_SHOWN_CHARS:]
        return f"{ended}; it said: {said}" if said else ended

    def end(self, *, kill: bool = False) -> None:
        """Let the process leave by closing its input, or kill it; then wait for it."""
        if kill:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


class ChildOwner:
    """Owns one long-lived child, started when first needed and replaced when it dies or hangs.

    The child ends when this is closed or collected, and when this process dies in whatever way.
    """

    def __init__(self, options: DecodeOptions, image_size: int) -> None:
        self._options = options
        self._image_size = image_size
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the child unless there is one. Raises ClusterError when that fails: the machine is broken, not a file."""
        self._running()

    def close(self) -> None:
        """End the child and wait for it."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _running(self) -> Child:
        if self._child is None:
            self._child = Child(self._options, self._image_size)
        return self._child

    def _discard(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(kill=True)


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)
