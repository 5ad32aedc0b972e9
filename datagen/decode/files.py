"""Local files before they are decoded: refused with a reason, read, and their checksum."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable

from datagen.errors import DecodeError

# No picture of n pixels needs more bytes than this times n (4 channels of 16 bits, uncompressed); more is not read.
_BYTES_PER_PIXEL = 8
_ROOM_FOR_METADATA = 64 << 20
_CHUNK_BYTES = 4 << 20


def check_file(path: str) -> os.stat_result:
    """Make sure that a file can be read. Raises DecodeError with code `missing_file` or `unreadable`."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError(f"{path!r} is not a regular file", code="unreadable")
        with open(path, "rb"):
            return status
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DecodeError(f"there is no file {path!r}", code="missing_file") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def largest_image_bytes(max_pixels: int) -> int:
    """No file of an allowed picture is larger than this."""
    return max_pixels * _BYTES_PER_PIXEL + _ROOM_FOR_METADATA


def read_file(path: str, max_pixels: int) -> bytes:
    """An image file's bytes. Raises DecodeError as check_file does, and `bomb` when it is larger than any allowed picture."""
    status = check_file(path)
    if status.st_size > largest_image_bytes(max_pixels):
        message = f"the file has {status.st_size} bytes, more than any picture of decode.max_pixels ({max_pixels}) needs"
        raise DecodeError(message, code="bomb")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(path, error) from error


def checksum(path: str, alive: Callable[[], None]) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex) of a file of any size; `alive` is called after every few MiB. Raises DecodeError as check_file."""
    check_file(path)
    size, digest = 0, hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                size += len(chunk)
                digest.update(chunk)
                alive()
    except OSError as error:
        raise _unreadable(path, error) from error
    return size, digest.hexdigest()


def _unreadable(path: str, error: OSError) -> DecodeError:
    return DecodeError(f"{path!r} cannot be read: {error.strerror}", code="unreadable")
