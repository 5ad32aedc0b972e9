"""Pure functions on masks, run-length encodings and boxes.

A mask is a boolean (H, W) array, True inside the object. A box is XYXY in pixels, origin top left, right and bottom exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pycocotools import mask as coco

from datagen.records import RLE

Box = tuple[float, float, float, float]
Logits = TypeVar("Logits")

_MAX_CHARACTERS_PER_RUN = 7


def encode_mask(mask: NDArray[np.bool_], top: int = 0, left: int = 0, height: int | None = None, width: int | None = None) -> RLE:
    """COCO run-length encoding of a mask.

    With `height` and `width` the mask is a piece of an otherwise empty image of that size, its corner at (`top`, `left`).
    Raises ValueError when the piece does not fit.
    """
    rows, columns = mask.shape
    height, width = height or top + rows, width or left + columns
    if top < 0 or left < 0 or top + rows > height or left + columns > width:
        raise ValueError(f"a mask of {rows} x {columns} at ({top}, {left}) does not fit into {height} x {width}")
    canvas = np.zeros((height, width), dtype=np.uint8, order="F")
    canvas[top : top + rows, left : left + columns] = mask
    return {"size": [height, width], "counts": coco.encode(canvas)["counts"].decode("ascii")}


def decode_mask(rle: RLE) -> NDArray[np.bool_]:
    """The (H, W) mask of a run-length encoding. Raises ValueError when it is damaged."""
    height, width = rle["size"]
    runs = _runs(rle)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def check_rle(rle: RLE) -> None:
    """Raise ValueError when an encoding is damaged: its runs must fill the picture. pycocotools trusts its input."""
    _runs(rle)


def rle_runs(counts: str) -> NDArray[np.int64]:
    """Run lengths, (runs,), of COCO's compressed string, down the columns, background first. Raises ValueError when it is none.

    5 bits per character (offset 48, low bits first); bit 6 says that more follow, bit 5 of the last one is the sign. From the
    fourth run on, the difference to the run two before is stored.
    """
    bits = np.frombuffer(counts.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    if not bits.size or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise ValueError("the mask's counts are no compressed run-length string")
    ends = np.flatnonzero((bits & 32) == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MAX_CHARACTERS_PER_RUN:
        raise ValueError("the mask's counts hold a number that no picture has")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts)
    runs -= np.where(bits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError("the mask's counts hold a negative run")
    return runs


def mask_area(rle: RLE) -> int:
    """Number of pixels inside, without decoding."""
    return int(coco.area(_compressed(rle)))


def rle_box(rle: RLE) -> Box | None:
    """The tight XYXY box around an encoded mask, without decoding; None when it is empty."""
    left, top, width, height = (float(value) for value in coco.toBbox(_compressed(rle)))
    return (left, top, left + width, top + height) if width > 0 and height > 0 else None


def mask_box(mask: NDArray[np.bool_]) -> Box | None:
    """The tight XYXY box around a mask, None when the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def mask_iou(first: Sequence[RLE], second: Sequence[RLE]) -> NDArray[np.float64]:
    """(N, M) intersection over union of every pair of masks of one image; 0 where both are empty. Raises ValueError for other sizes."""
    return _compared(first, second, of_first=False)


def mask_overlap(first: Sequence[RLE], second: Sequence[RLE]) -> NDArray[np.float64]:
    """(N, M) share of each first mask that lies in each second one; 0 where it is empty. Raises ValueError for other sizes."""
    return _compared(first, second, of_first=True)


def mask_prompt_logits(mask: NDArray[np.bool_], size: int) -> NDArray[np.float32]:
    """A mask as SAM 2's dense prompt: (size, size) logits, -10 outside to +10 inside, averaged where pixels are merged.

    Scale and bias are those with which sam2 turns a given mask into logits (`SAM2Base._use_mask_as_output`).
    """
    picture = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture, dtype=np.float32) * np.float32(20 / 255) - np.float32(10)


def stability_score(logits: Logits, offset: float) -> Logits:
    """How little a mask changes when its threshold moves: (pixels above +offset) / (pixels above -offset), 1 when the latter is 0.

    logits: (..., H, W), a NumPy array or a torch tensor; the result has the leading shape. Source: SAM's automatic mask generator.
    """
    values: Any = logits
    inner, outer = (values > offset).sum((-2, -1)), (values > -offset).sum((-2, -1))
    stability: Logits = inner / outer.clip(min=1) + (outer == 0)
    return stability


def box_iou(boxes: ArrayLike) -> NDArray[np.float32]:
    """(N, N) intersection over union of every pair of (N, 4) XYXY boxes; 0 for boxes without area."""
    corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    low, high = corners[:, :2], corners[:, 2:]
    sides = (np.minimum(high[:, None], high) - np.maximum(low[:, None], low)).clip(min=0)
    areas, overlap = (high - low).clip(min=0).prod(axis=1), sides.prod(axis=2)
    union = areas[:, None] + areas - overlap
    iou: NDArray[np.float32] = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


def non_maximum_suppression(iou: NDArray[np.floating[Any]], scores: ArrayLike, threshold: float) -> NDArray[np.intp]:
    """Indices that survive, best score first: of two that overlap by more than `threshold`, the better one stays.

    iou: (N, N) of boxes or of masks. scores: (N); equal scores keep their order.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    alive = np.ones(len(order), dtype=bool)
    kept = []
    for index in order:
        if alive[index]:
            kept.append(index)
            alive &= iou[index] <= threshold
    return np.asarray(kept, dtype=np.intp)


def _compared(first: Sequence[RLE], second: Sequence[RLE], *, of_first: bool) -> NDArray[np.float64]:
    if not first or not second:
        return np.zeros((len(first), len(second)))
    sizes = {tuple(rle["size"]) for rle in (*first, *second)}
    if len(sizes) > 1:  # pycocotools answers -1
        raise ValueError(f"masks of one image have one size, found {' and '.join(map(str, sorted(sizes)))} (height, width)")
    # What COCO calls a crowd is compared by the first mask's own area.
    shares = coco.iou([_compressed(rle) for rle in first], [_compressed(rle) for rle in second], [of_first] * len(second))
    return np.nan_to_num(np.asarray(shares, dtype=np.float64))


def _compressed(rle: RLE) -> dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}


def _runs(rle: RLE) -> NDArray[np.int64]:
    height, width = rle["size"]
    runs = rle_runs(rle["counts"])
    if runs.sum() != height * width:
        raise ValueError(f"the mask's runs add up to {runs.sum()} pixels, its size {height} x {width} to {height * width}")
    return runs
