"""From low-resolution logits to masks at the image's own size, one region's bounding box at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datagen.masks import Box, encode_mask, mask_box
from datagen.records import RLE


@dataclass(frozen=True, slots=True)
class ImageMask:
    """One mask of an image of height x width pixels: the boolean piece that holds every True pixel, its corner at (top, left)."""

    piece: NDArray[np.bool_]
    top: int
    left: int
    height: int
    width: int

    @property
    def area_px(self) -> int:
        """Number of pixels inside."""
        return int(np.count_nonzero(self.piece))

    @property
    def box(self) -> Box | None:
        """Tight XYXY box, None when the mask is empty."""
        box = mask_box(self.piece)
        return box and (box[0] + self.left, box[1] + self.top, box[2] + self.left, box[3] + self.top)

    def encode(self) -> RLE:
        """COCO run-length encoding at the image's size."""
        return encode_mask(self.piece, self.top, self.left, self.height, self.width)

    def decode(self) -> NDArray[np.bool_]:
        """The whole (height, width) mask."""
        mask = np.zeros((self.height, self.width), dtype=bool)
        mask[self.top : self.top + self.piece.shape[0], self.left : self.left + self.piece.shape[1]] = self.piece
        return mask


@torch.inference_mode()
def image_masks(logits: Tensor, height: int, width: int) -> Iterator[ImageMask]:
    """The masks of (P, L, L) logits, one after the other: bilinear to (height, width), above 0.

    The same as interpolating the whole picture, but only where something can be above 0, so that a small object in a picture
    of a hundred megapixels costs little.
    """
    for low, (x1, y1, x2, y2) in zip(logits, logit_boxes(logits).tolist(), strict=True):
        top, stretched = _stretch(low, y1, y2, height)
        left, stretched = _stretch(stretched.T, x1, x2, width)
        yield ImageMask((stretched.T > 0).cpu().numpy(), top, left, height, width)


def logit_boxes(logits: Tensor) -> Tensor:
    """(P, 4) int64 XYXY boxes, right and bottom exclusive, of what is above 0 in (P, L, L) logits; without extent where nothing is."""
    inside = logits > 0
    (x1, x2), (y1, y2) = _span(inside.any(dim=1)), _span(inside.any(dim=2))
    return torch.stack([x1, y1, x2, y2], dim=1)


def _span(inside: Tensor) -> tuple[Tensor, Tensor]:
    """First True index of each row of (P, L), and one after the last; equal where there is none."""
    numbers = inside.to(torch.int8)
    start, stop = numbers.argmax(dim=1), inside.shape[1] - numbers.flip(1).argmax(dim=1)
    return start, torch.where(inside.any(dim=1), stop, start)


def _stretch(values: Tensor, first: int, end: int, size: int) -> tuple[int, Tensor]:
    """Interpolate the rows of (R, C) linearly to `size` rows, of which only those that rows `first`..`end - 1` can reach.

    Returns the index of the first row made, and (rows made, C). Row centres as in torch's bilinear mode without aligned corners.
    """
    num_rows = values.shape[0]
    scale = num_rows / size
    start = max(math.floor((first - 0.5) / scale - 0.5), 0)
    stop = min(math.ceil((end + 0.5) / scale - 0.5) + 1, size)
    source = ((torch.arange(start, stop, device=values.device, dtype=torch.float32) + 0.5) * scale - 0.5).clamp(min=0)
    lower = source.long()
    weight = (source - lower).unsqueeze(1)
    upper = (lower + 1).clamp(max=num_rows - 1)
    return start, values[lower] * (1 - weight) + values[upper] * weight
