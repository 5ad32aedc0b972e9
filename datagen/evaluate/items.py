"""What is compared: objects of pictures and of clips, as a datagen dataset holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datagen.errors import SourceError
from datagen.masks import Box, check_rle
from datagen.records import LANGUAGES, RLE, TASKS
from datagen.write.done import read_parts
from datagen.write.layout import run_records
from datagen.write.parts import part_ids
from datagen.write.store import Store

TEXTS = tuple(f"{task}_{language}" for task in TASKS for language in LANGUAGES)
EVENTS = tuple(f"caption_{language}" for language in LANGUAGES)
EVERYTHING = "everything"


@dataclass(slots=True)
class Asked:
    """What asked for an object, px."""

    box: Box | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    mask: RLE | None = None

    @property
    def signature(self) -> tuple[Any, ...] | None:
        """The same for the same prompt; None where it names no place."""
        mask = None if self.mask is None else (*self.mask["size"], self.mask["counts"])
        whole = (self.box, self.points, self.labels, mask)
        return whole if self.box or self.points or mask else None

    @property
    def labelled(self) -> list[tuple[tuple[float, float], int]]:
        """Points with their labels, 1 inside the object and 0 outside."""
        return list(zip(self.points, self.labels, strict=False))


@dataclass(slots=True)
class Item:
    """One object of one image, of gold or of a dataset. texts: column -> the text, or the references. number: its place in the image.

    source: who prompted it, empty in a COCO file. id: the input's own name for it. box: gold's own box, px. mask is None for an object of
    gold whose picture is not there to give its size.
    """

    number: int
    mask: RLE | None
    texts: dict[str, list[str]]
    source: str = ""
    id: str | None = None
    asked: Asked = field(default_factory=Asked)
    box: Box | None = None


@dataclass(slots=True)
class TrackItem:
    """One object of one clip: frame index -> mask, None where it is not seen; what asked for it; and what is told of it."""

    asset_id: str
    clip_index: int
    track_id: str
    masks: dict[int, RLE | None]
    texts: dict[str, list[str]]
    asked: list[Asked] = field(default_factory=list)
    object_id: int | None = None


@dataclass(slots=True)
class Medium:
    """A picture or video of gold or of a dataset. ids: what else may name it. names: paths or URLs, as they are written.

    size: (width, height) px, None where not known.
    """

    key: str
    ids: tuple[str, ...]
    names: tuple[str, ...]
    size: tuple[int, int] | None = None
    sha256: str | None = None
    failed: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


def media_of(store: Store) -> dict[str, dict[str, Medium]]:
    """`image` and `video` -> asset id -> what it is. A video without a row yet is known by its clips."""
    found: dict[str, dict[str, Medium]] = {"image": {}, "video": {}}
    columns = ["asset_id", "uri", "media_type", "status", "extra", "width", "height", "sha256"]
    for row in _rows(store, "assets", columns):
        found["video" if row["media_type"] == "video" else "image"][row["asset_id"]] = _medium(row)
    for row in _rows(store, "clips", columns):
        found["video"].setdefault(row["asset_id"], _medium({**row, "status": "ok"}))
    return found


def items_of(store: Store) -> dict[str, list[Item]]:
    """asset id -> its regions, by number. `id` is known in schema v2; see `with_ids` for the earlier one."""
    found: dict[str, list[Item]] = {}
    for row in _rows(store, "regions", ["asset_id", "region_index", "prompt", "mask", *TEXTS]):
        prompt = row["prompt"]
        mask = _rle(row["mask"], store, row["asset_id"])
        item = Item(row["region_index"], mask, _texts(row, TEXTS), prompt["source"], prompt.get("id"), _asked(prompt))
        found.setdefault(row["asset_id"], []).append(item)
    for items in found.values():
        items.sort(key=lambda item: item.number)
    return found


def with_ids(items: Iterable[Item], extra: Mapping[str, Any]) -> list[Item]:
    """The regions of a picture that was listed from a COCO file, with their annotations' ids where an earlier schema has none."""
    listed = extra.get("coco_annotations")
    ids = [str(one.get("id")) if isinstance(one, Mapping) else None for one in listed] if isinstance(listed, list) else []
    found = list(items)
    for item in found:
        if item.id is None and item.source == "coco" and 0 <= item.number < len(ids):
            item.id = ids[item.number]
    return found


def tracks_of(store: Store) -> dict[str, list[TrackItem]]:
    """asset id -> its tracks, by clip and object."""
    found: dict[str, list[TrackItem]] = {}
    columns = ["track_id", "asset_id", "clip_index", "object_index", "object_id", "prompts", "frames", *EVENTS]
    rows = sorted(_rows(store, "tracks", columns), key=lambda row: (row["clip_index"], row["object_index"]))
    for row in rows:
        masks = {frame["frame_index"]: frame["mask"] and _rle(frame["mask"], store, row["asset_id"]) for frame in row["frames"]}
        asked = [_asked(prompt) for prompt in row["prompts"] if prompt["source"] not in ("handover", EVERYTHING)]
        item = TrackItem(row["asset_id"], row["clip_index"], row["track_id"], masks, _texts(row, EVENTS), asked, row.get("object_id"))
        found.setdefault(row["asset_id"], []).append(item)
    return found


def asked_texts(store: Store, columns: Iterable[str], told: Iterable[Mapping[str, Any]]) -> set[str]:
    """The text columns that a dataset was to fill: those that any row has, or, without any row, those that its jobs name."""
    rows = list(told)
    found = {column for texts in rows for column in texts}
    if rows:
        return found
    for record in _records(store):
        describe = (record.get("job") or {}).get("describe") or {}
        tasks, languages = describe.get("tasks") or (), describe.get("languages") or ()
        found |= {f"{task}_{language}" for task in (*tasks, "caption") for language in languages}
    return found & set(columns)


def _records(store: Store) -> Iterator[Mapping[str, Any]]:
    try:
        yield from run_records(store)
    except SourceError:  # `datagen check` names a damaged one; what was found is measured without
        return


def _medium(row: Mapping[str, Any]) -> Medium:
    size = (row["width"], row["height"]) if row["width"] is not None and row["height"] is not None else None
    try:
        extra = json.loads(row["extra"] or "{}")
    except (ValueError, RecursionError):  # `datagen check` names it
        extra = {}
    extra = extra if isinstance(extra, dict) else {}
    return Medium(row["asset_id"], (row["asset_id"],), (row["uri"],), size, row["sha256"], row["status"] == "failed", extra)


def _rows(store: Store, table: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    for part in read_parts(store, table, part_ids(store, table), columns):
        yield from part.to_pylist()


def _texts(row: Mapping[str, Any], columns: Iterable[str]) -> dict[str, list[str]]:
    return {column: [row[column]] for column in columns if row[column] is not None}


def _asked(prompt: Mapping[str, Any]) -> Asked:
    box, mask = prompt["box"], prompt.get("mask")
    points = tuple((float(x), float(y)) for x, y in prompt["points"] or ())
    corners = (float(box[0]), float(box[1]), float(box[2]), float(box[3])) if box else None
    return Asked(corners, points, tuple(prompt["labels"] or ()), _sound(mask) if mask else None)


def _rle(stored: Mapping[str, Any], store: Store, asset_id: str) -> RLE:
    """A stored mask, looked at before pycocotools takes it. Raises SourceError."""
    mask = _sound(stored)
    if mask is None:
        raise SourceError(f"{store.uri} has a damaged mask, of asset {asset_id}; `datagen check {store.uri}` names all damage")
    return mask


def _sound(stored: Mapping[str, Any]) -> RLE | None:
    mask = RLE(size=list(stored["size"]), counts=stored["counts"])
    try:
        check_rle(mask)
    except (ValueError, TypeError):
        return None
    return mask
