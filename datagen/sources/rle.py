"""Masks that users give: COCO RLE (compressed or not) and polygons, checked before any C code sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pycocotools import mask as coco_mask

from datagen.masks import rle_runs
from datagen.records import RLE
from datagen.sources.values import shown

# pycocotools counts pixels in 32 bits.
_MAX_SIDE_PX = 2**20
_MAX_AREA_PX = 2**31 - 1
# It also takes about a hundred bytes for every pixel of an outline.
_MAX_OUTLINE_PX = 4_000_000


def parse_rle(value: Any) -> RLE:
    """A mask given as `{"size": [height, width], "counts": compressed string or list of run lengths}`.

    Raises ValueError saying what is wrong. The runs must add up to height x width: the C decoder trusts them. Runs of no pixel between
    others, which it compares wrongly, are left out.
    """
    if not isinstance(value, Mapping) or "size" not in value or "counts" not in value:
        raise ValueError(f"a mask is {{size: [height, width], counts: ...}}, found {shown(value)}")
    size = parse_size(value["size"])
    counts = value["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
    if isinstance(counts, str):
        runs = _compressed_runs(counts)
    else:
        counts, runs = "", _listed_runs(counts)
    _check_runs(runs, size)
    if counts and 0 not in runs[1:]:
        return RLE(size=size, counts=counts)
    return _as_rle(coco_mask.frPyObjects({"size": size, "counts": _without_empty(runs)}, *size))


def parse_polygons(value: Any, height: Any, width: Any) -> RLE:
    """A mask given as COCO polygons [[x1, y1, x2, y2, ...], ...] in pixels, united, at the picture's size (which is checked too).

    Raises ValueError saying what is wrong.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"a segmentation is a list of polygons or an RLE, found {shown(value)}")
    size = parse_size([height, width])
    for polygon in value:
        _check_polygon(polygon, size)
    return _as_rle(coco_mask.merge(coco_mask.frPyObjects(value, *size)))


def parse_size(value: Any) -> list[int]:
    """[height, width] px, from whole numbers, also as decimals or text. Raises ValueError."""
    sides = [whole_number(side) for side in value] if isinstance(value, (list, tuple)) else []
    fits = len(sides) == 2 and all(side is not None and 0 < side < _MAX_SIDE_PX for side in sides)
    if not fits:
        raise ValueError(f"a mask's size is [height, width] in pixels, less than {_MAX_SIDE_PX} each, found {shown(value)}")
    size = [side for side in sides if side is not None]
    if size[0] * size[1] > _MAX_AREA_PX:
        raise ValueError(f"a mask of {size[0]} x {size[1]} pixels is too large; at most {_MAX_AREA_PX} pixels are counted")
    return size


def whole_number(value: Any) -> int | None:
    """A whole number that may be written as a decimal or as text, up to 64 bits; None when it is none."""
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if len(text) < 20 and text.isascii() and text.removeprefix("-").isdecimal() else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < 2**53 else None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def is_number(value: Any) -> bool:
    """A JSON number; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_polygon(polygon: Any, size: Sequence[int]) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon is x, y, x, y, ... with at least three corners, found {shown(polygon)}")
    # Far coordinates are refused, not clipped: the C code takes memory for every pixel of a polygon's outline. NaN is below nothing.
    reach = 2 * max(size)
    if not all(is_number(c) and -reach <= c <= reach for c in polygon):
        far = next(c for c in polygon if not (is_number(c) and -reach <= c <= reach))
        raise ValueError(f"polygon coordinates are pixels of a {size[1]}x{size[0]} picture, found {shown(far)} in {shown(polygon)}")
    corners = list(zip(polygon[0::2], polygon[1::2], strict=True))
    outline = sum(max(abs(x - u), abs(y - v)) for (x, y), (u, v) in zip(corners, [*corners[1:], corners[0]], strict=True))
    if outline + len(corners) > _MAX_OUTLINE_PX:
        raise ValueError(f"a polygon of {len(corners)} corners has an outline of {outline:.0f} px; at most {_MAX_OUTLINE_PX} are drawn")


def _as_rle(encoded: Mapping[str, Any]) -> RLE:
    return RLE(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode("ascii"))


def _compressed_runs(counts: str) -> list[int]:
    if counts and "P" <= counts[-1] <= "o":
        raise ValueError(f"mask counts end in the middle of a number: {shown(counts)}")
    try:
        runs: list[int] = rle_runs(counts).tolist()
    except ValueError as error:
        raise ValueError(f"mask counts are not a compressed COCO string ({error}): {shown(counts)}") from error
    return runs


def _listed_runs(counts: Any) -> list[int]:
    runs = [whole_number(run) if is_number(run) else None for run in counts] if isinstance(counts, list) else [None]
    whole = [run for run in runs if run is not None]
    if len(whole) < len(runs):
        raise ValueError(f"mask counts are a compressed string or a list of whole numbers, found {shown(counts)}")
    return whole


def _check_runs(runs: Sequence[int], size: Sequence[int]) -> None:
    if any(run < 0 for run in runs):
        raise ValueError("mask counts hold a negative run")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"mask counts cover {sum(runs)} pixels, the size {list(size)} has {size[0] * size[1]}")


def _without_empty(runs: Sequence[int]) -> list[int]:
    """The same mask without runs of no pixel, but for the first: the two beside such a run are one."""
    merged, inside, last = [0], False, False
    for run in runs:
        if run and inside == last:
            merged[-1] += run
        elif run:
            merged.append(run)
            last = inside
        inside = not inside
    return merged
