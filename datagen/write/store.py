"""Where a dataset lies: one small interface, so that nothing else knows about paths, renames or locks.

Paths are relative to the dataset and use `/`. Reading raises OSError (FileNotFoundError when absent); writing raises WriteError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from datagen.errors import WriteError

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
        """Give a file another name in one step, replacing what had it."""

    def delete(self, path: str) -> None:
        """Remove a file. One that is absent is no error."""

    def delete_tree(self, prefix: str) -> None:
        """Remove a folder with all it holds. One that is absent is no error."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def lease(self, owner: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Be the only run that writes here, for as long as the context lasts or the process lives.

        `owner` describes the run to one that comes second. Raises OutputBusyError when another run holds the lease, WriteError
        when the place cannot be written or holds something that is no dataset.
        """


def open_store(uri: str) -> Store:
    """The store at a local path or file:// URI; nothing is created yet. Raises WriteError for any other scheme."""
    from datagen.write.local import LocalStore

    parts = urlsplit(uri)
    if "://" not in uri:
        return LocalStore(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(unquote(parts.path))
    raise WriteError(f"a dataset is a local folder, found {uri}. Allowed: a path such as corpus/photos, or file:///data/corpus/photos")
