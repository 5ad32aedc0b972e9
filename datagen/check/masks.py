"""Stored masks against the size, area and box stored beside them; masks are decoded, not trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datagen.masks import check_rle
from datagen.records import RLE

_MASKS_PER_CALL = 255  # pycocotools counts the masks of a call in one byte
_BOX_TOLERANCE_PX = 0.01

Mask = Mapping[str, Any]


def mask_problem(mask: Mask, height: int | None, width: int | None) -> str | None:
    """Why a stored mask is none of a picture of this size, None when it is one. What passes is safe for pycocotools."""
    size = list(mask["size"])
    if size != [height, width]:
        return f"its size is {size}, the picture's is {[height, width]} (height, width)"
    try:
        check_rle(RLE(size=size, counts=mask["counts"]))
    except ValueError as error:
        return str(error)
    return None


def areas_and_boxes(masks: Sequence[Mask]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) pixels and (n, 4) XYXY boxes of masks as pycocotools reads them; a mask without a pixel has the box 0, 0, 0, 0."""
    areas, boxes = [np.empty(0)], [np.empty((0, 4))]
    for start in range(0, len(masks), _MASKS_PER_CALL):
        some = [{"size": mask["size"], "counts": mask["counts"].encode()} for mask in masks[start : start + _MASKS_PER_CALL]]
        areas.append(coco_mask.area(some))
        boxes.append(coco_mask.toBbox(some))
    corners = np.concatenate(boxes)
    corners[:, 2:] += corners[:, :2]
    return np.concatenate(areas).astype(int), corners


def box_problem(stored: Sequence[float], box: np.ndarray) -> str | None:
    """In what a stored box differs from its mask's; None when it does not."""
    corners = box.tolist()
    if len(stored) == 4 and all(abs(one - other) <= _BOX_TOLERANCE_PX for one, other in zip(stored, corners, strict=True)):
        return None
    return f"box_xyxy is {stored}, the mask's is {corners}"
