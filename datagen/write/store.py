"""Where a dataset lies: one small interface, so that nothing else knows about paths, renames or locks.

Paths are relative to the dataset and use `/`. Reading raises OSError (FileNotFoundError when absent), writing raises WriteError;
a bucket that refuses or does not answer raises StorageError for either.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from datagen.errors import WriteError
from datagen.job import S3Options
from datagen.s3 import SCHEME as S3_SCHEME

META = "_datagen"
STAGING = "_staging"
TEMP_PREFIX = ".tmp-"


class Store(Protocol):
    """A dataset's files. Every method may be called by any process; small and picklable, so that workers can carry it."""

    @property
    def uri(self) -> str:
        """Where it is, for messages."""

    def read(self, path: str) -> bytes:
        """Whole content of a file."""

    def open_input(self, path: str) -> pa.NativeFile:
        """The file for random access, as Parquet readers want it."""

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Create or replace a file. It is absent (or as before) or whole, whatever happens, also after a power cut."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, size in bytes) of every file under the folder `prefix`, in the order of names. Nothing where there is no folder."""

    def move(self, src: str, dst: str) -> None:
        """Give a file another name, replacing what had it. The new name is absent or whole; after a crash the old one may be left."""

    def delete(self, path: str) -> None:
        """Remove a file. One that is absent is no error."""

    def delete_tree(self, prefix: str) -> None:
        """Remove a folder with all it holds. One that is absent is no error."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def clean(self) -> Sequence[str]:
        """Remove what killed writers left half-written; returns the paths. Only under the lease."""

    def lease(self, owner: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Be the only run that writes here, for as long as the context lasts or the process lives.

        `owner` describes the run to one that comes second. Raises OutputBusyError when another run holds the lease, WriteError
        when the place cannot be written or holds something that is no dataset. Where a lease can be lost (to another run, after
        this one was cut off or stopped for long), moving files and writing tables through this store raises OutputBusyError; in a folder
        that was moved, removed or replaced since, WriteError.
        """


def open_store(uri: str, s3: S3Options | None = None) -> Store:
    """The store at a local path, a file:// URI or s3://bucket/prefix; nothing is created yet. Raises WriteError for another scheme."""
    from datagen.write.local import LocalStore

    parts = urlsplit(uri)
    if "://" not in uri:
        return LocalStore(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(unquote(parts.path))
    if uri.startswith(S3_SCHEME):
        from datagen.write.s3 import S3Store

        return S3Store(uri, s3 or S3Options())
    allowed = "a path such as corpus/photos, file:///data/corpus/photos, or s3://bucket/corpus/photos"
    raise WriteError(f"a dataset is a local folder or in a bucket of S3, found {parts.scheme}://. Allowed: {allowed}")


def checked_path(path: str, where: str) -> str:
    """The path, which stays inside the dataset. Raises WriteError otherwise."""
    if path.startswith("/") or ".." in path.split("/"):
        raise WriteError(f"{path!r} is not a path inside the dataset {where}")
    return path


def owner_facts(owner: Mapping[str, Any]) -> dict[str, Any]:
    """What a lease says of its holder: this process, its machine, the time, and what the run says of itself."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started, **owner}


def who_is(owner: Mapping[str, Any]) -> str:
    """The facts of a holder, for a message."""
    return ", ".join(f"{key} {value}" for key, value in owner.items() if value is not None)


def refuse_foreign(where: str, found: Sequence[str]) -> None:
    """Raises WriteError for a place that holds these names, and no dataset."""
    if found:
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise WriteError(
            f"{where} holds something that is no datagen dataset ({shown}; there is no {META}/). "
            "Choose a new or empty folder for --output, or the folder of a dataset to continue."
        )
