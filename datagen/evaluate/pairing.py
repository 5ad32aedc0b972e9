"""Which region answers which object of gold, in one picture. Never by position: orders differ, and regions are dropped.

In this order, each region and each object once: by the annotation's id (where the prompt's box is that annotation's); by what asked for the
region, which is the object's own prompt, box or mask; by mask, best IoU first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datagen.evaluate.gold import Truth
from datagen.evaluate.items import EVERYTHING, Asked, Item
from datagen.masks import Box, decode_mask, mask_iou, mask_overlap, rle_box
from datagen.records import RLE

TEXT_IOU = 0.5
"""A region that was found for itself, and not asked for, answers an object in words when their masks overlap at least so much."""

SAME_BOX_IOU = 0.5
"""A prompt's box is about an object when it overlaps the object's own box at least so much."""

CROWD_SHARE = 0.5
"""A region with at least this share of its pixels in a crowd is left out, as COCO does with detections."""


@dataclass(slots=True)
class Pair:
    """A gold object and the region that answers it, None where nothing does. iou: 0 then. counts: whether the region's texts do."""

    gold: Item
    found: Item | None
    iou: float
    counts: bool = True


@dataclass(slots=True)
class Paired:
    """All gold objects of a picture. extra: regions that answer none; ignored: those in crowds."""

    pairs: list[Pair]
    extra: int = 0
    ignored: int = 0


def pair_items(truth: Truth, found: Sequence[Item]) -> Paired:
    """Pair the objects of one picture with its regions. All masks are of one size."""
    gold = truth.items
    regions = [item for item in found if item.id is None or item.id not in truth.crowd_ids]
    iou = mask_iou([_mask(item) for item in gold], [_mask(item) for item in regions])
    pairs: dict[int, tuple[int, bool]] = {}
    for row, column in _by_id(gold, regions):
        pairs[row] = column, True
    for steps, counts in ((_by_asking(gold, regions, iou), True), (_by_mask(iou), False)):
        taken = {column for column, _ in pairs.values()}
        for row, column in steps:
            if row not in pairs and column not in taken:
                pairs[row] = column, counts
                taken.add(column)
    answers = []
    for row, item in enumerate(gold):
        column, counts = pairs.get(row, (-1, False))
        value = float(iou[row, column]) if column >= 0 else 0.0
        answers.append(Pair(item, regions[column] if column >= 0 else None, value, counts or value >= TEXT_IOU))
    left = [item for column, item in enumerate(regions) if column not in {column for column, _ in pairs.values()}]
    in_crowds = _in_crowds(left, truth)
    return Paired(answers, len(left) - in_crowds, in_crowds + len(found) - len(regions))


def unanswered(truth: Truth) -> Paired:
    """All gold objects of a picture that was not measured."""
    return Paired([Pair(item, None, 0.0) for item in truth.items])


def _by_id(gold: Sequence[Item], found: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Ids that name one on both sides, unless the prompt's place says that another file gave the same id to something else."""
    rows, columns = _unique(gold), _unique(found)
    for name in rows.keys() & columns.keys():
        row, column = rows[name], columns[name]
        asked, item = found[column].asked, gold[row]
        if (asked.box is None and asked.mask is None) or _fit(asked, item, _own_box(item)) > 0:
            yield row, column


def _by_asking(gold: Sequence[Item], found: Sequence[Item], iou: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """The best fit of what was asked first; equal ones by mask."""
    fits = [(-1.0, -float(iou[row, column]), row, column) for row, column in _pointed_at(gold, found)]
    for row, item in enumerate(gold):
        box = _own_box(item)
        for column, region in enumerate(found):
            if region.source != EVERYTHING and (fit := _fit(region.asked, item, box)) > 0:
                fits.append((-fit, -float(iou[row, column]), row, column))
    for _, _, row, column in sorted(fits):
        yield row, column


def _fit(asked: Asked, item: Item, box: Box | None) -> float:
    """How well a prompt asks for an object: 2 for gold's own prompt, an IoU of at least a half for its box or mask, else 0."""
    if asked.signature is not None and asked.signature == item.asked.signature:
        return 2.0
    if asked.box is not None:
        overlap = box_overlap(asked.box, box) if box is not None else 0.0
    elif asked.mask is not None and item.mask is not None and asked.mask["size"] == item.mask["size"]:
        overlap = float(mask_iou([asked.mask], [item.mask])[0, 0])
    else:
        return 0.0
    return overlap if overlap >= SAME_BOX_IOU else 0.0


def _pointed_at(gold: Sequence[Item], found: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Regions that points alone asked for, where one object only has all points inside in it and no other."""
    asking = [column for column, region in enumerate(found) if 1 in region.asked.labels and not (region.asked.box or region.asked.mask)]
    masks = [decode_mask(_mask(item)) for item in gold] if asking else []
    for column in asking:
        asked = found[column].asked
        rows = [row for row, mask in enumerate(masks) if all(_is_at(mask, x, y) == bool(label) for (x, y), label in asked.labelled)]
        if len(rows) == 1:
            yield rows[0], column


def _is_at(mask: NDArray[np.bool_], x: float, y: float) -> bool:
    row, column = (min(max(int(at), 0), side - 1) for at, side in ((y, mask.shape[0]), (x, mask.shape[1])))
    return bool(mask[row, column])


def _by_mask(iou: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = (int(index) for index in np.unravel_index(flat, iou.shape))
        if iou[row, column] <= 0:
            return
        yield row, column


def _in_crowds(regions: Sequence[Item], truth: Truth) -> int:
    if not regions or not truth.crowds:
        return 0
    shares = mask_overlap([_mask(item) for item in regions], truth.crowds)
    return int((shares.max(axis=1) >= CROWD_SHARE).sum())


def _unique(items: Iterable[Item]) -> dict[str, int]:
    """id -> place, of ids that are there once."""
    places = [(item.id, place) for place, item in enumerate(items) if item.id is not None]
    counts = Counter(name for name, _ in places)
    return {name: place for name, place in places if counts[name] == 1}


def _own_box(item: Item) -> Box | None:
    return item.box if item.box is not None or item.mask is None else rle_box(item.mask)


def _mask(item: Item) -> RLE:
    if item.mask is None:
        raise ValueError(f"object {item.number} of gold has no mask, as nobody says how large its picture is")
    return item.mask


def box_overlap(first: Box, second: Box) -> float:
    """Intersection over union of two XYXY boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return overlap / (areas - overlap) if areas > overlap else 0.0
