"""The decoding child process: reads and decodes one file per request, until its standard input closes.

Wire format, both ways: a message is 4 bytes (big-endian length) and that much JSON; after `decoded` follow the pixels,
image_size * image_size * 3 bytes. Per request the answers are `read` (size and checksum), then `decoded` or `failed`.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import stat
import struct
import threading
from typing import Any, BinaryIO

from datagen.decode.image import Decoded, decode_image
from datagen.errors import DecodeError
from datagen.faults import fault_point
from datagen.job import DecodeOptions

LENGTH = struct.Struct(">I")

# No picture of n pixels needs more bytes than this times n (4 channels of 16 bits, uncompressed); more is not read.
_BYTES_PER_PIXEL = 8
_ROOM_FOR_METADATA = 64 << 20

_GRACE_S = 2.0


def main(options_json: str, image_size: int) -> None:
    """Serve requests {path, uri} on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = DecodeOptions.model_validate_json(options_json)
    # Whatever a library prints must not end up in the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    _send(answers, {"kind": "ready"})
    while True:
        request = requests.get()
        # The parent kills a child that hangs; should the parent be gone, the kernel does, whatever holds the interpreter.
        signal.setitimer(signal.ITIMER_REAL, options.timeout_s + _GRACE_S)
        _serve(answers, request["path"], request["uri"], options, image_size)
        signal.setitimer(signal.ITIMER_REAL, 0)


def read_file(path: str, max_pixels: int) -> bytes:
    """A file's bytes. Raises DecodeError with code `missing_file`, `unreadable`, or `bomb` when it is larger than any allowed picture."""
    limit = max_pixels * _BYTES_PER_PIXEL + _ROOM_FOR_METADATA
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError(f"{path!r} is not a regular file", code="unreadable")
        if status.st_size > limit:
            message = f"the file has {status.st_size} bytes, more than any picture of decode.max_pixels ({max_pixels}) needs"
            raise DecodeError(message, code="bomb")
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DecodeError(f"there is no file {path!r}", code="missing_file") from error
    except OSError as error:
        raise DecodeError(f"{path!r} cannot be read: {error.strerror}", code="unreadable") from error


def _serve(answers: BinaryIO, path: str, uri: str, options: DecodeOptions, image_size: int) -> None:
    try:
        data = read_file(path, options.max_pixels)
        _send(answers, {"kind": "read", "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        fault_point("decode", uri)
        decoded: Decoded = decode_image(data, options, image_size)
    except DecodeError as error:
        _send(answers, {"kind": "failed", "code": error.code, "message": error.message})
        return
    _send(answers, {"kind": "decoded", "width": decoded.width, "height": decoded.height}, decoded.pixels.tobytes())


def _send(answers: BinaryIO, message: dict[str, Any], payload: bytes = b"") -> None:
    body = json.dumps(message).encode()
    data = memoryview(LENGTH.pack(len(body)) + body + payload)
    while data:
        data = data[answers.write(data) :]


def _receive(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
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
