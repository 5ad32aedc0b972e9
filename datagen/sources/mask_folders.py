"""Annotations of videos that are pictures, a folder of them per video: an object's first mask becomes its prompt."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple

from pycocotools import mask as coco_mask

from datagen.decode.copies import LocalCopies
from datagen.decode.object_masks import MaskReader
from datagen.errors import DecodeError
from datagen.frame_names import in_order
from datagen.job import S3Options
from datagen.records import RLE, Asset, Prompt
from datagen.remote import is_remote, list_files
from datagen.sources.uris import uri_of

BAD_ANNOTATION = "bad_annotation"
"""What `dropped` calls masks that cannot be read."""

ANNOTATION = "annotation"
"""Who asked, of prompts that come from a dataset's masks."""

_LARGEST_BYTES = 1 << 30
# Many tools leave out an object's border with it. Alone it is the object itself, as in DAVIS of 2016.
_VOID = 255
_DIGITS = 10


class _Picture(NamedTuple):
    """An annotation picture: the frame it is of, by the stem of its name, and its object, where it has a folder of its own."""

    stem: str
    place: str
    object_id: int | None


class MaskFolders:
    """Reads annotation pictures, in a child process that ends with the context."""

    def __init__(self, s3: S3Options) -> None:
        self._s3 = s3
        self._reader = MaskReader()
        self._copies = LocalCopies(s3, _LARGEST_BYTES)
        self._open = ExitStack()

    def __enter__(self) -> MaskFolders:
        self._open.callback(self._copies.close)
        self._open.callback(self._reader.close)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._open.close()

    def put_into(self, asset: Asset, folder: str, frames: list[str], skipped: Counter[str]) -> bool:
        """Give an asset the prompts of the masks in a folder, a path or remote URI; False where there is no such folder.

        frames: the names of the asset's frames, in order. skipped: pictures of no frame are counted there.
        """
        pictures = sorted(_pictures(folder, self._s3), key=lambda picture: picture.object_id or 0)
        if not pictures:
            return False
        numbers = {os.path.splitext(name)[0]: number for number, name in enumerate(frames)}
        first: dict[int, tuple[int, RLE]] = {}
        done: set[int] = set()
        for picture in pictures:
            number = numbers.get(picture.stem)
            if number is None:
                skipped["annotation of no frame"] += 1
            elif picture.object_id not in done:
                found = self._masks(asset, picture)
                first |= {value: (number, mask) for value, mask in found.items() if value not in first}
                done |= found.keys() & {picture.object_id}
        if len(first) > 1 and all(picture.object_id is None for picture in pictures):
            first.pop(_VOID, None)
        asked = sorted(first.items(), key=lambda item: (item[1][0], item[0]))
        asset.prompts = [
            Prompt(mask=mask, source=ANNOTATION, frame_index=number, object_id=value, index=index)
            for index, (value, (number, mask)) in enumerate(asked)
        ]
        return True

    def _masks(self, asset: Asset, picture: _Picture) -> dict[int, RLE]:
        try:
            with self._copies.copy(uri_of(picture.place)) as path:
                found = self._reader.read(path)
        except DecodeError:
            asset.dropped[BAD_ANNOTATION] = asset.dropped.get(BAD_ANNOTATION, 0) + 1
            return {}
        if picture.object_id is None or not found:
            return found
        # One object: whatever is not 0 is it.
        return {picture.object_id: united(list(found.values()))}


def _pictures(folder: str, s3: S3Options) -> Iterator[_Picture]:
    """The annotation pictures of a video, in the order of its frames; where each object has a folder of its own, object by object."""
    own: list[str] = []
    objects: dict[str, list[str]] = defaultdict(list)
    for name in _names(folder, s3):
        inner, _, file = name.rpartition("/")
        if not inner:
            own.append(file)
        elif _is_number(inner):
            objects[inner].append(file)
    yield from (_Picture(os.path.splitext(name)[0], f"{folder}/{name}", None) for name in in_order(own))
    for inner in sorted(objects, key=int) if not own else ():
        for name in in_order(objects[inner]):
            yield _Picture(os.path.splitext(name)[0], f"{folder}/{inner}/{name}", int(inner))


def united(masks: list[RLE]) -> RLE:
    """One mask of several of one size."""
    merged = coco_mask.merge([{"size": mask["size"], "counts": mask["counts"].encode()} for mask in masks])
    return RLE(size=[int(side) for side in merged["size"]], counts=merged["counts"].decode("ascii"))


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < _DIGITS


def _names(folder: str, s3: S3Options) -> Iterator[str]:
    """The files of a folder and of the folders in it."""
    if is_remote(folder):
        try:
            yield from (file.uri.removeprefix(f"{folder}/") for file in list_files(f"{folder}/", s3))
        except FileNotFoundError:
            return
        return
    if not os.path.isdir(folder):
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir() and _is_number(entry.name):
                yield from (f"{entry.name}/{name}" for name in os.listdir(entry.path))
            elif entry.is_file():
                yield entry.name
