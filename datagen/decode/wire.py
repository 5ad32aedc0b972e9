"""The child's end of its pipes.

Both ways a message is 4 bytes (big-endian length) and that much JSON; after `decoded` and `frame` follow the pixels,
image_size * image_size * 3 bytes. A request has a `kind`, a `path` and mostly a `uri`. The answers are, for `masks`: `masks` (value ->
mask of an annotation picture); for an `image`: `read` (size and
checksum), then `decoded`; for a `probe`: `read`, then `probed`; for `at`: `frames_at`; for `clips`: a `clip` each, then `end`; for
`frames`: the `plan`, a `frame` each, then `end`. `failed` may take the place of any. `busy`, at any time with a video, says that the work
goes on.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import threading
import time
from typing import Any, BinaryIO

from datagen.job import DecodeOptions

LENGTH = struct.Struct(">I")

_GRACE_S = 2.0
_SIGN_OF_LIFE_S = 0.5


class Answers:
    """The way back to the parent. A few frames wait in a queue while the parent is busy; when it is full, decoding waits, too.

    The clock runs while this process works and stops while it waits. The parent kills a child that hangs; should the parent be
    gone or busy, the kernel does when the clock runs out, whatever holds the interpreter.
    """

    def __init__(self, pipe: BinaryIO, options: DecodeOptions) -> None:
        self._pipe = pipe
        self._limit_s = options.timeout_s + _GRACE_S
        self._told_at = 0.0
        self._queue: queue.Queue[bytes] = queue.Queue(options.prefetch_frames)
        threading.Thread(target=self._write, daemon=True).start()

    def start_clock(self) -> None:
        """From now on the next sign of life, answer or rest must come within the time limit."""
        signal.setitimer(signal.ITIMER_REAL, self._limit_s)

    def stop_clock(self) -> None:
        """There is nothing to do for this process."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def alive(self) -> None:
        """Start the clock again, and now and then let the parent start its own again."""
        self.start_clock()
        now = time.monotonic()
        if now > self._told_at + _SIGN_OF_LIFE_S and self._queue.empty():
            self._told_at = now
            self.push({"kind": "busy"})

    def push(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Put a message, with the bytes that follow it, into the queue; waits while it is full."""
        body = json.dumps(message).encode()
        self.stop_clock()
        self._queue.put(LENGTH.pack(len(body)) + body + payload)
        self.start_clock()

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Push, and wait until everything is in the pipe: what comes next may kill this process."""
        self.push(message, payload)
        self.stop_clock()
        self._queue.join()
        self.start_clock()

    def _write(self) -> None:
        while True:
            data = memoryview(self._queue.get())
            try:
                while data:
                    data = data[self._pipe.write(data) :]
            except BrokenPipeError:
                os._exit(0)
            self._queue.task_done()


def receive_requests(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Put every request from standard input into `requests`; ends the process when the parent is gone."""
    while header := _read(LENGTH.size):
        requests.put(json.loads(_read(LENGTH.unpack(header)[0])))
    # The parent closed the pipe or died, even by SIGKILL: leave at once, also in the middle of a decoding.
    os._exit(0)


def _read(size: int) -> bytes:
    """`size` bytes of standard input, fewer when it closed. Unbuffered: a thread waiting in sys.stdin would abort the exit."""
    data = b""
    while len(data) < size and (more := os.read(0, size - len(data))):
        data += more
    return data
