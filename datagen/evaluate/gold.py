"""Gold to measure against: a datagen dataset, or a COCO or LVIS JSON file, as objects per image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from datagen.errors import SourceError
from datagen.masks import rle_from_coco
from datagen.records import LANGUAGES, RLE, TASKS
from datagen.sources.uris import file_name
from datagen.write import open_dataset
from datagen.write.done import read_parts
from datagen.write.marker import check_marker
from datagen.write.parts import part_ids
from datagen.write.store import Store

TEXTS = tuple(f"{task}_{language}" for task in TASKS for language in LANGUAGES)
EVENTS = tuple(f"caption_{language}" for language in LANGUAGES)
TrackKey = tuple[str, int, int]
"""(asset id, clip index, object index)"""


@dataclass(slots=True)
class Item:
    """One object of one image, of gold or of a dataset. texts: column -> the text, or the references. number: its place in the image.

    source: who prompted it, empty in gold.
    """

    number: int
    mask: RLE
    texts: dict[str, list[str]]
    source: str = ""


@dataclass(slots=True)
class TrackItem:
    """One object of one clip: frame index -> mask, None where it is not seen; and what is told of it."""

    masks: dict[int, RLE | None]
    texts: dict[str, list[str]]


@dataclass(slots=True)
class Gold:
    """images: by key -> objects. key_of: what of an asset's row says which image it is. tracks: by key."""

    images: dict[str, list[Item]]
    is_coco: bool = False
    tracks: dict[TrackKey, TrackItem] = field(default_factory=dict)

    def key_of(self, asset: Mapping[str, Any]) -> str:
        """The key of an asset's image: its id; for a COCO file the id of the image that it was listed from, else the file's name."""
        if not self.is_coco:
            return str(asset["asset_id"])
        listed = json.loads(asset["extra"] or "{}").get("coco_image_id")
        name = file_name(asset["uri"])
        return f"id:{listed}" if listed is not None and f"id:{listed}" in self.images else f"name:{name}"


def read_gold(where: str) -> Gold:
    """Gold from a dataset's folder or a COCO/LVIS `.json`. Raises SourceError when it is neither, or has no object."""
    path = Path(where)
    gold = _from_coco(path) if path.suffix == ".json" else _from_dataset(open_dataset(where))
    if not any(gold.images.values()) and not gold.tracks:
        raise SourceError(f"{where} has no object to measure against")
    return gold


def assets_of(store: Store) -> Iterator[dict[str, Any]]:
    """Rows of `assets` that tell which image each is."""
    yield from _rows(store, "assets", ["asset_id", "uri", "media_type", "status", "extra"])


def items_of(store: Store) -> dict[str, list[Item]]:
    """asset id -> its regions, by number."""
    found: dict[str, list[Item]] = {}
    for row in _rows(store, "regions", ["asset_id", "region_index", "prompt", "mask", *TEXTS]):
        item = Item(row["region_index"], _rle(row["mask"]), _texts(row, TEXTS), row["prompt"]["source"])
        found.setdefault(row["asset_id"], []).append(item)
    for items in found.values():
        items.sort(key=lambda item: item.number)
    return found


def tracks_of(store: Store) -> dict[TrackKey, TrackItem]:
    """Tracks by asset, clip and object."""
    found = {}
    for row in _rows(store, "tracks", ["asset_id", "clip_index", "object_index", "frames", *EVENTS]):
        masks = {frame["frame_index"]: frame["mask"] and _rle(frame["mask"]) for frame in row["frames"]}
        found[row["asset_id"], row["clip_index"], row["object_index"]] = TrackItem(masks, _texts(row, EVENTS))
    return found


def _from_dataset(store: Store) -> Gold:
    check_marker(store)
    return Gold(items_of(store), tracks=tracks_of(store))


def _from_coco(path: Path) -> Gold:
    """Annotations in file order, which is the order of the prompts when the dataset was listed from this file."""
    document = _document(path)
    names = {category["id"]: str(category.get("name", "")).replace("_", " ") for category in document.get("categories", [])}
    images = {image["id"]: image for image in document["images"]}
    found: dict[Any, list[Item]] = {image_id: [] for image_id in images}
    for annotation in document["annotations"]:
        image = images.get(annotation.get("image_id"))
        if image is None:
            raise SourceError(f"{path}: annotation {annotation.get('id')} is of image {annotation.get('image_id')}, which the file has not")
        items = found[image["id"]]
        items.append(Item(len(items), _coco_mask(path, annotation, image), _coco_texts(annotation, names)))
    keyed: dict[str, list[Item]] = {}
    for image_id, items in found.items():
        keyed[f"id:{image_id}"] = items
        keyed[f"name:{PurePosixPath(str(images[image_id].get('file_name') or images[image_id].get('coco_url', ''))).name}"] = items
    return Gold(keyed, is_coco=True)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read the gold {path}: {error}") from error
    if not isinstance(document, dict) or not all(isinstance(document.get(key), list) for key in ("images", "annotations")):
        raise SourceError(f"{path} is no COCO or LVIS file: it needs the lists `images` and `annotations`")
    return document


def _coco_mask(path: Path, annotation: Mapping[str, Any], image: Mapping[str, Any]) -> RLE:
    try:
        return rle_from_coco(annotation.get("segmentation"), image["height"], image["width"])
    except (KeyError, ValueError) as error:
        raise SourceError(f"{path}: annotation {annotation.get('id')} has no usable segmentation: {error}") from error


def _coco_texts(annotation: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, list[str]]:
    """The category's name as the label; captions from `caption` or, as in RefCOCOg, `sentences`."""
    label = names.get(annotation.get("category_id"))
    captions = [annotation["caption"]] if annotation.get("caption") else []
    captions += [one["sent"] if isinstance(one, dict) else str(one) for one in annotation.get("sentences", [])]
    texts = {"label_en": [label] if label else [], "caption_en": captions}
    return {column: references for column, references in texts.items() if references}


def _rows(store: Store, table: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    for part in read_parts(store, table, part_ids(store, table), columns):
        yield from part.to_pylist()


def _texts(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, list[str]]:
    return {column: [row[column]] for column in columns if row[column] is not None}


def _rle(stored: Mapping[str, Any]) -> RLE:
    return {"size": list(stored["size"]), "counts": stored["counts"]}
