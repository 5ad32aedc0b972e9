"""The parent's side of the decoding child: a broken file may crash or hang it, and costs only itself."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import datagen
from datagen.decode.image import Decoded
from datagen.decode.worker import LENGTH
from datagen.errors import ClusterError, DecodeError
from datagen.job import DecodeOptions

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0
_TRIES = 2
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


@dataclass(slots=True)
class Outcome:
    """What is known after one file: size and checksum once it was read, then either `decoded` or `error`."""

    size_bytes: int | None = None
    sha256: str | None = None
    decoded: Decoded | None = None
    error: DecodeError | None = None


class DecoderProcess:
    """One long-lived child that reads and decodes files one at a time; started when first needed, replaced when it dies or hangs.

    The child ends when this is closed or collected, and when this process dies in whatever way.
    """

    def __init__(self, options: DecodeOptions, image_size: int) -> None:
        self._options = options
        self._image_size = image_size
        self._child: _Child | None = None

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

    def decode(self, path: str, uri: str) -> Outcome:
        """Read and decode one file. When the child dies the file is tried once more, as it need not be the cause; a hang is final.

        The outcome's error codes are those of `decode_image` and `read_file`, `decoder_crashed` and `decode_timeout`.
        """
        for _ in range(_TRIES):
            outcome = self._try(path, uri)
            if outcome.error is None or outcome.error.code != "decoder_crashed":
                break
        return outcome

    def _try(self, path: str, uri: str) -> Outcome:
        outcome, child = Outcome(), self._running()
        try:
            self._exchange(child, path, uri, outcome)
        except TimeoutError:
            outcome.error = DecodeError(
                f"decoding took longer than decode.timeout_s ({self._options.timeout_s:g} s)", code="decode_timeout"
            )
        except EOFError:
            outcome.error = DecodeError(f"decoding killed its process, {_TRIES} times in a row: {child.epitaph()}", code="decoder_crashed")
        except BaseException:
            # Such as Ctrl-C: an answer may be half read, so this child cannot be asked again.
            self._discard()
            raise
        else:
            return outcome
        self._discard()
        return outcome

    def _discard(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(kill=True)

    def _running(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._options, self._image_size)
        return self._child

    def _exchange(self, child: _Child, path: str, uri: str, outcome: Outcome) -> None:
        deadline = time.monotonic() + self._options.timeout_s
        child.send({"path": path, "uri": uri})
        answer = child.receive(deadline)
        if answer["kind"] == "read":
            outcome.size_bytes, outcome.sha256 = answer["size_bytes"], answer["sha256"]
            answer = child.receive(deadline)
        if answer["kind"] == "failed":
            outcome.error = DecodeError(answer["message"], code=answer["code"])
            return
        pixels = np.empty((self._image_size, self._image_size, 3), dtype=np.uint8)
        child.fill(pixels.data.cast("B"), deadline)
        outcome.decoded = Decoded(width=answer["width"], height=answer["height"], pixels=pixels)


class _Child:
    """One process and its pipes. A dead one shows as EOFError, a late one as TimeoutError."""

    def __init__(self, options: DecodeOptions, image_size: int) -> None:
        root = str(Path(datagen.__file__).resolve().parent.parent)
        command = [sys.executable, "-P", "-c", _PROGRAM, root, options.model_dump_json(), str(image_size)]
        # Arithmetic libraries would start a thread per core in every child.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            self._stderr = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (lives as long as the process)
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0, env=environment
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


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)
