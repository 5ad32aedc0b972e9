"""Parts of a file by position, wherever it is: here, in S3, or behind fsspec. For archives, whose members are read without unpacking."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from datagen import s3
from datagen.errors import StorageError
from datagen.job import S3Options
from datagen.remote import FileSystem, is_remote, scheme_of

_CHUNK_BYTES = 8 << 20


class _Ahead(NamedTuple):
    """How a file is read ahead, bytes: more and more, up to `most`, while what is needed lies within `near`; else `least`."""

    near: int
    least: int
    most: int


# A gap of 1 MiB costs about as much to read as a request.
_REMOTE, _LOCAL = _Ahead(1 << 20, 64 << 10, 8 << 20), _Ahead(64 << 10, 4 << 10, 256 << 10)


@dataclass
class Ranges:
    """One version of one file. size: bytes. version: as remote.version_of or uris.version_of_path gives it. fetch: (start, size)."""

    where: str
    size: int
    version: str
    fetch: Callable[[int, int], bytes]

    def at(self, start: int, size: int) -> bytes:
        """The bytes from `start` on, fewer at the end. Raises StorageError, with code `precondition` when the file is another by now."""
        size = min(size, self.size - start)
        if size <= 0:
            return b""
        data = self.fetch(start, size)
        if len(data) != size:
            raise StorageError(f"{self.where} has {start + len(data)} bytes, and had {self.size} when it was opened", code="precondition")
        return data

    def chunks(self, start: int, size: int) -> Iterator[bytes]:
        """The same, a few MiB at a time."""
        for position in range(start, start + size, _CHUNK_BYTES):
            yield self.at(position, min(_CHUNK_BYTES, start + size - position))


def open_ranges(place: str, options: S3Options, version: str = "") -> Ranges:
    """A local path or a remote URI. version: the only one that is wanted.

    Raises FileNotFoundError, OSError for a local file, StorageError, with code `precondition` for another version.
    """
    ranges = (
        _of_path(place) if not is_remote(place) else _of_s3(place, options, version) if scheme_of(place) == "s3" else _of(place, options)
    )
    if version and ranges.version != version:
        raise StorageError(f"{place} is not what it was when it was listed", code="precondition")
    return ranges


def _of_path(path: str) -> Ranges:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())

    def fetch(start: int, size: int) -> bytes:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            return file.read(size)

    return Ranges(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}", fetch)


def _of_s3(uri: str, options: S3Options, version: str) -> Ranges:
    bucket, key = s3.split_uri(uri)
    version = version or s3.object_version(options, uri)
    size, _, etag = version.partition("-")

    def fetch(start: int, size: int) -> bytes:
        request = {"Bucket": bucket, "Key": key, "IfMatch": etag, "Range": f"bytes={start}-{start + size - 1}"}
        data: bytes = s3.patiently(options, uri, lambda client: client.get_object(**request)["Body"].read())
        return data

    return Ranges(uri, int(size), version, fetch)


def _of(uri: str, options: S3Options) -> Ranges:
    fs = FileSystem(uri, options)
    found: dict[str, Any] = fs.info(uri)
    return Ranges(uri, int(found.get("size") or 0), fs.version(found), fs.reader(uri))


class Window:
    """Reads of a file that mostly go forward, by few requests: members that are small are read through, large ones jumped over."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self._start, self._held = 0, b""
        self._way = _REMOTE if is_remote(ranges.where) else _LOCAL
        self._ahead = self._way.least

    def read(self, start: int, size: int) -> bytes:
        """The bytes from `start` on, fewer at the file's end. Raises as Ranges.at does."""
        at = start - self._start
        if at < 0 or at + size > len(self._held):
            self._held = self.ranges.at(start, max(size, self._ahead_from(start)))
            self._start, at = start, 0
        return self._held[at : at + size]

    def _ahead_from(self, start: int) -> int:
        gap = start - self._start - len(self._held)
        self._ahead = min(2 * self._ahead, self._way.most) if abs(gap) <= self._way.near else self._way.least
        return self._ahead
