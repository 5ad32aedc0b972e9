"""A folder, recursively: every file with an image extension (or a video extension), in the order of names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from datagen.errors import SourceError
from datagen.ids import asset_id_of
from datagen.job import S3Options
from datagen.records import Asset
from datagen.sources.listing import count_other, refuse_nothing, without_companions, without_outputs
from datagen.sources.uris import media_type_of, uri_of_path, version_of_path


class FolderSource:
    """Images or videos below `folder`, sorted by name within each folder; one folder's entries are in memory at a time.

    A link to a folder inside the tree is not followed (its files are listed where they are); a folder outside is listed once.
    """

    def __init__(self, folder: str, media: Literal["image", "video", "any"] = "image", *, reprocess_changed: bool = False) -> None:
        if not os.path.isdir(folder):
            raise SourceError(f"{folder} is not a folder; for a manifest or a COCO file leave `source.kind` at auto")
        self.media = media
        self.folder = os.path.abspath(folder)
        self.reprocess_changed = reprocess_changed
        self.skipped: Counter[str] = Counter()

    def describe(self) -> str:
        """One line for a person."""
        kinds = "images and videos" if self.media == "any" else f"{self.media}s"
        return f"{kinds} in the folder {self.folder}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when the folder itself cannot be listed, or has none; other folders are skipped."""
        self.skipped.clear()
        is_empty = True
        for path in without_companions(self.files(), self.skipped):
            if count_other(self.skipped, path, self.media):
                continue
            uri, is_video = uri_of_path(path), media_type_of(path, self.media) == "video"
            version = version_of_path(path) if self.reprocess_changed else ""
            is_empty = False
            yield Asset(asset_id_of(uri, version), uri, "video" if is_video else "image")
        if is_empty:
            refuse_nothing(f"in {self.folder}", self.media, self.skipped)

    def files(self) -> Iterator[str]:
        """The paths of all files, also of other kinds, without datasets that datagen wrote."""
        return without_outputs(self._walk(), self.skipped, S3Options())

    def _walk(self) -> Iterator[str]:
        root = os.path.realpath(self.folder)
        listed_outside: set[str] = set()
        pending = self._entries(self.folder)
        while pending:
            entry = pending.pop()
            if not _is_folder(entry):
                yield entry.path
            elif self._is_to_list(entry.path, root, listed_outside):
                pending += self._entries(entry.path)

    def _is_to_list(self, folder: str, root: str, listed_outside: set[str]) -> bool:
        """Every real folder once, also with links that make a loop: inside the tree under its own name, outside at first sight."""
        real = os.path.realpath(folder)
        if real == root or real.startswith(root.rstrip("/") + "/"):
            return real == os.path.join(root, os.path.relpath(folder, self.folder))
        if real in listed_outside:
            return False
        listed_outside.add(real)
        return True

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """The entries, last name first (the walk takes them from the end)."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if folder == self.folder:
                raise SourceError(f"the folder {folder} cannot be listed: {error.strerror}") from error
            self.skipped["unreadable folder"] += 1
            return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # A link is asked through os.path, which answers False for one that leads nowhere or to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
