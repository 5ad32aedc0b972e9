"""Where the pictures of a COCO file are: tools write names for their own machine, and folders are moved.

Tried in this order: the name as it stands; with `/` for Windows' `\\`; the last two parts of a URL or of another machine's path, then
the last alone, unless two names of the file end so. Whole paths of this machine are what they are; the others are looked for below
`source.media_root` where the job sets it. Else beside the file; then, when the file lies in a folder such as `annotations`, beside that
folder; and last, where only one of the folders there has it, in that.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote

from datagen.errors import SourceError
from datagen.job import S3Options
from datagen.remote import is_remote, joined, version_of
from datagen.sources.coco_document import CocoImage
from datagen.sources.uris import Roots, inside, path_of_uri

_WINDOWS = re.compile(r"^[A-Za-z]:[\\/]|^\\\\")
_URL = re.compile(r"^https?://[^/]*/", re.IGNORECASE)
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_FILE_URI = re.compile(r"^file://", re.IGNORECASE)
_LABEL_STUDIO = re.compile(r"^(?:https?://[^/]*)?/data/local-files/\?d=([^&#]+)", re.IGNORECASE)
# What is named so lies beside the pictures' folders; beside any other folder, another data set may lie.
_OF_ANNOTATIONS = re.compile(r"^(ann|anno|annotation|label|json)s?([_-].*)?$", re.IGNORECASE)
_MOST_FOLDERS = 200


class Place(NamedTuple):
    """Where a picture is, as a manifest would write it, empty when its entry names no file. missing: why it is not there."""

    uri: str
    missing: str = ""


@dataclass(slots=True)
class MediaFinder:
    """Finds the pictures of one file. Names of folders' files are read once per folder and kept."""

    roots: Roots
    s3: S3Options
    images: Sequence[CocoImage]
    _ends_of: dict[str, set[str]] = field(default_factory=dict)
    _files: dict[str, frozenset[str]] = field(default_factory=dict)
    _folders: list[str] | None = None
    _layout: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        """Note how many names end alike."""
        for image in self.images:
            for name in (image.text("file_name"), image.text("coco_url")):
                for end in _ends(name):
                    self._ends_of.setdefault(end, set()).add(name)

    def find(self, image: CocoImage) -> Place:
        """Where an image's picture is."""
        given, url = image.text("file_name"), image.text("coco_url")
        if not given and not url:
            return Place("")
        if is_remote(given) or inside(given) or self._is_here(given):
            return Place(given)
        ends = [end for name in (given, url) for end in _ends(name) if len(self._ends_of[end]) == 1]
        names = list(dict.fromkeys([*_spellings(given), *ends]))
        if not names:
            return Place(given or url)  # what is to be used as it stands, or cannot be used, which Roots says
        if is_remote(self.roots.root):
            return Place(self._in_bucket(names))
        if not self.roots.local_allowed:
            return Place(names[0])
        for root in self._near():
            for name in names:
                if self._is_there(root, name):
                    return Place(os.path.join(root, name))
        return self._only_one(names, given or url)

    def _near(self) -> list[str]:
        root = self.roots.root
        above, _, name = root.rpartition("/")
        if self.roots.confined or not _OF_ANNOTATIONS.match(name) or not above or above.endswith("/"):  # `s3://bucket` has none above
            return [root]
        return [root, above]

    def _is_here(self, given: str) -> bool:
        """Whether it is the whole path of a file of this machine. Outside of what the job allows nobody looks."""
        path = _path(given)
        if not path or not self.roots.local_allowed or (self.roots.confined and not path.startswith(self.roots.root.rstrip("/") + "/")):
            return False
        return self._is_there("", path)

    def _only_one(self, names: Sequence[str], given: str) -> Place:
        """In a folder below; in none where several have it."""
        first, option = (
            given if _path(given) else os.path.join(self.roots.root, names[0]),
            "set source.media_root to the folder that the file's names start from",
        )
        for name in names:
            found = [folder for folder in self._below() if self._is_there(folder, name)]
            if len(found) > 1:
                return Place(first, f"{given!r} is in {found[0]} and in {found[1]}; {option}")
            if found:
                return Place(os.path.join(found[0], name))
        return Place(first, f"there is no file {given!r} in {' or '.join(self._near())}; {option}")

    def _below(self) -> list[str]:
        if self._folders is None:
            self._folders = [folder for root in self._near() for folder in _folders_in(root)]
        return self._folders

    def _is_there(self, root: str, name: str) -> bool:
        folder, _, base = os.path.join(root, name).rpartition("/")
        if folder not in self._files:
            try:
                self._files[folder] = frozenset(os.listdir(folder or "/"))
            except (OSError, ValueError):
                self._files[folder] = frozenset()
        return base in self._files[folder]

    def _in_bucket(self, names: Sequence[str]) -> str:
        """A layout that holds for the first picture is taken for all: every look into a bucket is a request."""
        if self._layout is None:
            tries = [(root, place, name) for root in self._near() for place, name in enumerate(names)]
            found = next(((root, place) for root, place, name in tries if len(tries) == 1 or self._is_stored(root, name)), None)
            self._layout = found or (self.roots.root, 0)
        root, place = self._layout
        name = names[min(place, len(names) - 1)]
        try:
            return name if root == self.roots.root else joined(root, name)
        except SourceError:  # that leads out of the bucket, which Roots says
            return name

    def _is_stored(self, root: str, name: str) -> bool:
        try:
            return version_of(joined(root, name), self.s3) != ""
        except SourceError:
            return False


def _spellings(name: str) -> Iterator[str]:
    """Relative paths that a name is; none for one that is absolute or of elsewhere."""
    if name and not (name.startswith("/") or _SCHEME.match(name) or _WINDOWS.match(name)):
        yield name
        if "\\" in name:
            yield posixpath.normpath(name.replace("\\", "/"))


def label_studio_path(name: str) -> str:
    """How Label Studio names a file of its own machine is by a query: the path below its root, else an empty text."""
    found = _LABEL_STUDIO.match(name)
    return unquote(found[1]).lstrip("/") if found else ""


def _path(name: str) -> str:
    """The whole path that a name is, normalised, empty where it is none."""
    if not name.startswith("/") and not _FILE_URI.match(name):
        return ""
    try:
        return os.path.abspath(path_of_uri(name))
    except SourceError:  # Roots says why
        return ""


def _ends(name: str) -> Iterator[str]:
    """What may be left of a name that begins on another machine: of a URL, or of a whole path."""
    if below := label_studio_path(name):
        yield below
        yield from _tails(below)
    elif _URL.match(name):
        path = _URL.sub("", name).partition("?")[0].partition("#")[0]
        for spelling in dict.fromkeys((path, unquote(path))):
            yield from _tails(spelling)
    elif _WINDOWS.match(name):
        yield from _tails(name.replace("\\", "/"))
    else:
        yield from _tails(_path(name))


def _tails(path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part and part != ".." and not part.endswith(":")]
    if len(parts) > 1:
        yield "/".join(parts[-2:])
    if parts:
        yield parts[-1]


def _folders_in(root: str) -> list[str]:
    try:
        with os.scandir(root) as entries:
            found = sorted(entry.path for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []
    return found if len(found) <= _MOST_FOLDERS else []
