"""Files that hold many assets each, tars or tables: one, those below a folder, or those that a pattern names."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterator

from datagen.errors import SourceError
from datagen.job import S3Options
from datagen.remote import is_remote
from datagen.sources.folder import FolderSource
from datagen.sources.listing import remote_files

_WILD = frozenset("*?[")


def is_pattern(place: str) -> bool:
    """Whether the last part of a path or URI has `*`, `?` or `[...]`, and is no file of that very name."""
    return bool(_WILD & set(place.rpartition("/")[2])) and not os.path.exists(place)


class Files:
    """Paths or URIs in a fixed order. place: a file, a folder or prefix (recursively), or a folder and a pattern of names in it.

    skipped: folders that could not be listed, and datasets that datagen wrote, of the latest listing.
    Raises SourceError when there is nothing.
    """

    def __init__(self, place: str, s3: S3Options, suffixes: tuple[str, ...]) -> None:
        self.place = place if is_remote(place) else os.path.abspath(place)
        self.skipped: Counter[str] = Counter()
        self._s3 = s3
        self._folder, _, name = self.place.rpartition("/")
        self._pattern = name if is_pattern(self.place) else ""
        self.is_one = not self._pattern and not os.path.isdir(self.place) and self.place.lower().endswith(suffixes)
        if not self.is_one and next(iter(self), None) is None:
            raise SourceError(f"there is nothing {'that matches' if self._pattern else 'below'} {self.place}; check the name")

    def __iter__(self) -> Iterator[str]:
        if self.is_one:
            yield self.place
            return
        for file in self._below(self._folder if self._pattern else self.place):
            if not self._pattern or fnmatch.fnmatchcase(file.removeprefix(f"{self._folder}/"), self._pattern):
                yield file

    def _below(self, folder: str) -> Iterator[str]:
        self.skipped.clear()
        if not is_remote(folder):
            source = FolderSource(folder)
            yield from source.files()
            self.skipped.update(source.skipped)
            return
        try:
            for file in remote_files(folder, self._s3, self.skipped):
                yield file.uri
        except FileNotFoundError:
            return
