"""Masks that users give: COCO RLE (compressed or not) and polygons, checked before any C code sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pycocotools import mask as coco_mask

from datagen.records import RLE


def parse_rle(value: Any) -> RLE:
    """A mask given as `{"size": [height, width], "counts": compressed string or list of run lengths}`.

    Raises ValueError saying what is wrong. The runs must add up to height x width: the C decoder trusts them.
    """
    if not isinstance(value, Mapping) or "size" not in value or "counts" not in value:
        raise ValueError(f"a mask is {{size: [height, width], counts: ...}}, found {_short(value)}")
    size = _parse_size(value["size"])
    counts = value["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if isinstance(counts, str):
        _check_runs(_decompressed(counts), size)
        return RLE(size=size, counts=counts)
    if not isinstance(counts, list) or not all(isinstance(run, int) and not isinstance(run, bool) for run in counts):
        raise ValueError(f"mask counts are a compressed string or a list of whole numbers, found {_short(counts)}")
    _check_runs(counts, size)
    return _as_rle(coco_mask.frPyObjects({"size": size, "counts": counts}, *size))


def parse_polygons(value: Any, height: Any, width: Any) -> RLE:
    """A mask given as COCO polygons [[x1, y1, x2, y2, ...], ...] in pixels, united, at the picture's size (which is checked too).

    Raises ValueError saying what is wrong.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"a segmentation is a list of polygons or an RLE, found {_short(value)}")
    size = _parse_size([height, width])
    reach = 2 * max(size)
    for polygon in value:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon is x, y, x, y, ... with at least three corners, found {_short(polygon)}")
        # Far coordinates are refused, not clipped: the C code takes memory for every pixel of a polygon's outline.
        if not all(is_number(c) and math.isfinite(c) and abs(c) <= reach for c in polygon):
            raise ValueError(f"polygon coordinates are pixels of a {width}x{height} picture, found {_short(polygon)}")
    return _as_rle(coco_mask.merge(coco_mask.frPyObjects(value, *size)))


def is_number(value: Any) -> bool:
    """A JSON number; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _as_rle(encoded: Mapping[str, Any]) -> RLE:
    return RLE(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode("ascii"))


def _parse_size(value: Any) -> list[int]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(side, int) and 0 < side < 2**20 for side in value):
        raise ValueError(f"a mask's size is [height, width] in pixels, found {_short(value)}")
    if value[0] * value[1] >= 2**32:
        raise ValueError(f"a mask of {value[0]} x {value[1]} pixels is too large; runs are counted in 32 bits")
    return [int(side) for side in value]


def _check_runs(runs: list[int], size: list[int]) -> None:
    if any(run < 0 for run in runs):
        raise ValueError("mask counts hold a negative run")
    if any(run > size[0] * size[1] for run in runs):
        raise ValueError(f"mask counts hold a run that is longer than the mask of size {size}")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"mask counts cover {sum(runs)} pixels, the size {size} has {size[0] * size[1]}")


def _decompressed(counts: str) -> list[int]:
    """Run lengths of COCO's compressed string: 5 bits per character (offset 48), bit 6 says more follow, bit 5 of the last is the sign.

    From the fourth run on, the difference to the run two before it is stored.
    """
    deltas: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"mask counts are not a compressed COCO string: {_short(counts)}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        deltas.append(value - (1 << shift) if bits & 16 else value)
        value = shift = 0
    if shift:
        raise ValueError(f"mask counts end in the middle of a number: {_short(counts)}")
    runs: list[int] = []
    for delta in deltas:
        runs.append(delta + runs[-2] if len(runs) > 2 else delta)
    return runs


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
