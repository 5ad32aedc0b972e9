"""Annotations of videos that are JSON: YouTube-VIS and OVIS (one file of a whole dataset), and SA-V's (one beside each video)."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datagen.errors import SourceError, StorageError
from datagen.frame_names import in_order
from datagen.job import S3Options, SourceOptions
from datagen.masks import mask_area
from datagen.records import RLE, Asset, Failure, Prompt
from datagen.remote import is_remote, list_files
from datagen.sources.mask_folders import ANNOTATION, BAD_ANNOTATION
from datagen.sources.rle import is_number, parse_polygons, parse_rle
from datagen.sources.rows import RowReader, absolute, open_source_file
from datagen.sources.uris import path_of_uri
from datagen.sources.values import parse_json, plain, shown

_HEAD_BYTES = 1 << 20
_VIDEOS = re.compile(rb'"videos"\s*:\s*\[')
_IMAGES = re.compile(rb'"images"\s*:\s*\[\s*\{')
_FRAMES_FOLDER = "JPEGImages"
_MOST_IDS = 2**31
CROWD = "crowd"


def is_of_videos(path: str, s3: S3Options) -> bool:
    """Whether a JSON file's beginning has `videos`, and no `images` before. Where it cannot be read, reading it will tell why."""
    try:
        with open_source_file(absolute(path), s3) as file:
            head = file.read(_HEAD_BYTES)
    except (OSError, StorageError):
        return False
    videos, images = _VIDEOS.search(head), _IMAGES.search(head)
    return videos is not None and (images is None or videos.start() < images.start())


class VideoJsonSource:
    """Videos of a YouTube-VIS or OVIS file in file order, each a folder of frames; an object's first mask becomes its prompt.

    Relative names start from source.media_root, or from beside the file, there also below `JPEGImages`. A frame of the folder that the
    file does not name counts all the same. `Asset.extra` gets the video's `id` and of each prompt the annotation's id and category.
    The file is one JSON document and is held in memory.
    """

    def __init__(self, path: str, options: SourceOptions, s3: S3Options) -> None:
        self.path = absolute(path)
        self.skipped: Counter[str] = Counter()
        self._with_masks, self._s3 = options.annotations != "none", s3
        self._reader = RowReader.of(self.path, options, s3)
        document = _document(self.path, s3)
        self._videos: Sequence[Any] = document["videos"]
        names = document.get("categories")
        self._categories = {entry.get("id"): plain(entry.get("name")) for entry in _records(names) if _is_id(entry.get("id"))}
        self._annotations: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        self._without_video = 0
        known = {video.get("id") for video in _records(self._videos) if _is_id(video.get("id"))}
        for annotation in _records(document.get("annotations")):
            owner = annotation.get("video_id")
            if _is_id(owner) and owner in known:
                self._annotations[owner].append(annotation)
            else:
                self._without_video += 1

    def describe(self) -> str:
        """One line for a person."""
        masks = "the objects' first masks are prompts" if self._with_masks else "no masks are read"
        return f"videos of {self.path}, folders of frames below {self._reader.roots.root}; {masks}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets; a video that makes no sense becomes an asset with its failure."""
        self.skipped.clear()
        seen: set[Any] = set()
        for number, video in enumerate(self._videos, start=1):
            yield self._asset(video, number, seen)
        if self._without_video:
            self.skipped["annotation of an unknown video"] = self._without_video

    def _asset(self, video: Any, number: int, seen: set[Any]) -> Asset:
        where = f"video {number} of {self.path}"
        problem, names = _problem(video), []
        if problem is None:
            names = [name.replace("\\", "/") for name in video["file_names"]]
            folders = {posixpath.dirname(name) for name in names}
            if len(folders) > 1 or folders == {""}:
                problem = f"its frames lie in {len(folders)} folders, found {shown(sorted(folders)[:3])}; a video is one folder of its own"
            elif video["id"] in seen:
                problem = f"another video before has its id, {shown(video['id'])}; give each its own"
            seen.add(video["id"])
        if problem is not None:
            return self._reader.unnamed(number, Failure("manifest_bad_row", f"{where}: {problem}"))
        asset, frames = self._located(posixpath.dirname(names[0]), where)
        asset.media_type = "video"
        size = video.get("width"), video.get("height")
        if all(isinstance(side, int) and 0 < side < _MOST_IDS for side in size):
            asset.stated_size = size[0] or 0, size[1] or 0
        asset.extra = {"video_id": plain(video["id"])}
        if asset.failure is None and self._with_masks:
            self._add_prompts(asset, video, [posixpath.basename(name) for name in names], frames, where)
        return asset

    def _located(self, folder: str, where: str) -> tuple[Asset, list[str]]:
        """The asset of a folder, where its frames are, and their names; beside the file, also below JPEGImages."""
        tried = []
        for place in (folder, posixpath.join(_FRAMES_FOLDER, folder)):
            asset = self._reader.located(f"{place}/", where)
            frames = [] if asset.failure else _frames_in(asset.uri, self._s3)
            if frames or asset.failure:
                return asset, frames
            tried.append(asset)
        asset = tried[0]
        message = f"{where}: there are no frames in {asset.uri}, nor in {tried[1].uri}; set source.media_root to the folder that has them"
        asset.failure = Failure("missing_file", message)
        return asset, []

    def _add_prompts(self, asset: Asset, video: Mapping[str, Any], names: list[str], frames: list[str], where: str) -> None:
        place = {name: number for number, name in enumerate(frames)}
        absent = [name for name in names if name not in place]
        if absent:
            asset.failure = Failure(
                "missing_file", f"{where}: {len(absent)} of its frames are not in {asset.uri}, first {shown(absent[0])}"
            )
            return
        prompts, told = [], []
        annotations = self._annotations.get(video["id"], [])
        for index, annotation in enumerate(annotations):
            found = self._first_mask(annotation, video)
            if isinstance(found, str):
                asset.dropped[found] = asset.dropped.get(found, 0) + 1
                continue
            number, mask = found
            name = annotation.get("id")
            object_id = name if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < _MOST_IDS else index
            prompt = Prompt(mask=mask, source=ANNOTATION, frame_index=place[names[number]], object_id=object_id, index=index)
            prompt.id = None if name is None else str(plain(name))
            prompts.append(prompt)
            told.append({"id": plain(name), "category": self._categories.get(annotation.get("category_id"))})
        if annotations:
            asset.prompts = prompts
            asset.extra["annotations"] = told

    def _first_mask(self, annotation: Mapping[str, Any], video: Mapping[str, Any]) -> tuple[int, RLE] | str:
        """The first frame, by its place in the video's list, where an object has a mask, and that mask; else why it has none, a code."""
        masks = annotation.get("segmentations")
        if annotation.get("iscrowd"):
            return CROWD
        if not isinstance(masks, list) or len(masks) > len(video["file_names"]) or not _is_category(annotation):
            return BAD_ANNOTATION
        for number, segmentation in enumerate(masks):
            if not segmentation:
                continue
            try:
                mask = _mask(segmentation, video)
            except ValueError:
                return BAD_ANNOTATION
            if mask_area(mask):
                return number, mask
        return "empty_annotation"


def put_masklets(asset: Asset, place: str, s3: S3Options) -> None:
    """Give a video of SA-V the prompts of the JSON file beside it: each object's first mask. A file that is none leaves it as it is,
    counted under `bad_annotation`.
    """
    try:
        with open_source_file(place, s3) as file:
            document = parse_json(file.read().decode("utf-8-sig"))
        frames, ids, count = document["masklet"], document.get("masklet_id"), int(document["video_frame_count"])
        step = max(round(count / len(frames)), 1)  # masks are at 6 frames a second, videos at 24
        num_objects = max(len(masks) for masks in frames)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        asset.dropped[BAD_ANNOTATION] = 1
        return
    prompts = []
    for index in range(num_objects):
        object_id = ids[index] if isinstance(ids, list) and index < len(ids) and isinstance(ids[index], int) else index
        try:
            found = next(_seen(frames, index), None)
        except ValueError:
            asset.dropped[BAD_ANNOTATION] = asset.dropped.get(BAD_ANNOTATION, 0) + 1
            continue
        if found is not None:
            prompt = Prompt(mask=found[1], source=ANNOTATION, frame_index=found[0] * step, object_id=int(object_id), index=index)
            prompts.append(prompt)
    asset.prompts = sorted(prompts, key=lambda prompt: prompt.index or 0)


def _seen(frames: list[Any], index: int) -> Iterator[tuple[int, RLE]]:
    for number, masks in enumerate(frames):
        if index < len(masks) and masks[index]:
            mask = parse_rle(masks[index])
            if mask_area(mask):
                yield number, mask


def _mask(segmentation: Any, video: Mapping[str, Any]) -> RLE:
    if isinstance(segmentation, Mapping):
        return parse_rle(segmentation)
    return parse_polygons(segmentation, video.get("height"), video.get("width"))


def _problem(video: Any) -> str | None:
    if not isinstance(video, Mapping) or not _is_id(video.get("id")):
        return f"a video is an object with an id, found {shown(video)}"
    names = video.get("file_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        return f"file_names is a list of the names of its frames, found {shown(names)}"
    return None


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or is_number(value)


def _is_category(annotation: Mapping[str, Any]) -> bool:
    return annotation.get("category_id") is None or _is_id(annotation["category_id"])


def _records(value: Any) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in value or () if isinstance(entry, Mapping))


def _frames_in(uri: str, s3: S3Options) -> list[str]:
    """The names of the frames of a folder, in order; none where there is no such folder. uri: ends with `/`."""
    if is_remote(uri):
        try:
            names = [file.uri.removeprefix(uri) for file in list_files(uri, s3)]
        except FileNotFoundError:
            return []
        return in_order(name for name in names if "/" not in name)
    try:
        with os.scandir(path_of_uri(uri)) as entries:
            return in_order(entry.name for entry in entries if entry.is_file())
    except OSError:
        return []


def _document(path: str, s3: S3Options) -> dict[str, Any]:
    try:
        with open_source_file(path, s3) as file:
            document = parse_json(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise SourceError(f"{path} is no list of videos: {error}") from error
    found = ", ".join(map(shown, list(document)[:8])) if isinstance(document, dict) else type(document).__name__
    if not isinstance(document, dict) or not isinstance(document.get("videos"), list):
        message = f"{path} is no YouTube-VIS file: it needs a list `videos` (and `annotations`, `categories`), found {found}"
        raise SourceError(message)
    if not all(document.get(name) is None or isinstance(document[name], list) for name in ("annotations", "categories")):
        raise SourceError(f"{path} is no YouTube-VIS file: `annotations` and `categories` are lists")
    return document
