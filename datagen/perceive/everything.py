"""Segment everything: a grid of points, each asking for three masks, filtered down to distinct objects.

Source: the automatic mask generator of SAM and SAM 2, whose thresholds and their defaults are kept. Here the filters work on the
decoder's own low-resolution logits (IoU does not change with the picture's shape), and only masks that are kept are made at the
image's size. Added to it: de-duplication by mask, minimum area and a maximum number, and every dropped candidate is counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datagen.job import EverythingOptions
from datagen.masks import Box, box_iou, non_maximum_suppression, stability_score
from datagen.pam.front_end import FrontEnd, ImageFeatures
from datagen.perceive.memory import CallSize, sized_by
from datagen.perceive.regions import image_masks, logit_boxes
from datagen.records import RLE


@dataclass(frozen=True, slots=True)
class Candidate:
    """One object found by the grid, at the image's own size."""

    mask: RLE
    box: Box
    area_px: int
    predicted_iou: float
    stability: float


@dataclass(slots=True)
class _Grid:
    """N answers to the point grid: logits (N, L, L), predicted_iou (N), stability (N)."""

    logits: Tensor
    predicted_iou: Tensor
    stability: Tensor

    def __getitem__(self, keep: Tensor) -> _Grid:
        return _Grid(self.logits[keep], self.predicted_iou[keep], self.stability[keep])

    def __len__(self) -> int:
        return len(self.logits)


@torch.inference_mode()
def find_candidates(
    front_end: FrontEnd,
    features: ImageFeatures,
    image_index: int,
    width: int,
    height: int,
    options: EverythingOptions,
    points_per_call: int,
) -> tuple[list[Candidate], Counter[str]]:
    """Every distinct object of one image of width x height pixels, the highest predicted IoU first.

    Also returns how many candidates were dropped, by reason: `predicted_iou`, `stability`, `empty_mask`, `box_nms`, `mask_dedup`,
    `min_area`, `max_regions`.
    """
    dropped: Counter[str] = Counter()
    grid = _ask_grid(front_end, features, image_index, options, points_per_call, dropped)
    grid = _distinct(grid, box_iou(logit_boxes(grid.logits).cpu().numpy()), options.box_nms_iou, "box_nms", dropped)
    grid = _distinct(grid, _logit_iou(grid.logits), options.mask_iou_max, "mask_dedup", dropped)
    candidates: list[Candidate] = []
    scores = zip(grid.predicted_iou.tolist(), grid.stability.tolist(), strict=True)
    for seen, (mask, (predicted_iou, stability)) in enumerate(zip(image_masks(grid.logits, height, width), scores, strict=True)):
        if len(candidates) == options.max_regions:
            dropped["max_regions"] = len(grid) - seen
            break
        box, area = mask.box, mask.area_px
        if box is None:
            dropped["empty_mask"] += 1
        elif area < options.min_area_px:
            dropped["min_area"] += 1
        else:
            candidates.append(Candidate(mask.encode(), box, area, predicted_iou, stability))
    return candidates, +dropped


def find_sized(
    front_end: FrontEnd, features: ImageFeatures, image_index: int, width: int, height: int, options: EverythingOptions, prompts: CallSize
) -> tuple[list[Candidate], Counter[str]]:
    """find_candidates with as many points per call as fit. Raises memory.CallTooLargeError."""
    points = min(options.points_per_call, prompts.value)
    with sized_by(prompts.option, points):
        found = find_candidates(front_end, features, image_index, width, height, options, points)
    prompts.fitted(points)
    return found


def point_grid(side: int) -> NDArray[np.float32]:
    """(side * side, 2) points (x, y) in [0, 1], at the centres of an even grid, row by row."""
    centres = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side)
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def _ask_grid(
    front_end: FrontEnd, features: ImageFeatures, image_index: int, options: EverythingOptions, points_per_call: int, dropped: Counter[str]
) -> _Grid:
    """Three masks per grid point, those that pass the score filters."""
    points = torch.from_numpy(point_grid(options.points_per_side)).unsqueeze(1) * front_end.image_size
    passed = []
    for part in torch.split(points, points_per_call):
        index = torch.full((len(part),), image_index)
        decoded = front_end.decode(features, index, part, torch.ones(len(part), 1, dtype=torch.int32))
        logits = decoded.logits[:, 1:].flatten(0, 1)
        answers = _Grid(logits, decoded.predicted_iou[:, 1:].flatten(), stability_score(logits, options.stability_offset))
        answers = _filter(answers, answers.predicted_iou > options.predicted_iou_min, "predicted_iou", dropped)
        answers = _filter(answers, answers.stability >= options.stability_min, "stability", dropped)
        passed.append(_filter(answers, (answers.logits > 0).flatten(1).any(dim=1), "empty_mask", dropped))
    return _Grid(*(torch.cat([getattr(part, name) for part in passed]) for name in ("logits", "predicted_iou", "stability")))


def _filter(grid: _Grid, keep: Tensor, reason: str, dropped: Counter[str]) -> _Grid:
    kept = grid[keep]
    dropped[reason] += len(grid) - len(kept)
    return kept


def _distinct(grid: _Grid, iou: NDArray[np.float32], threshold: float, reason: str, dropped: Counter[str]) -> _Grid:
    kept = non_maximum_suppression(iou, grid.predicted_iou.cpu().numpy(), threshold)
    dropped[reason] += len(grid) - len(kept)
    return grid[torch.from_numpy(kept).to(grid.logits.device)]


def _logit_iou(logits: Tensor) -> NDArray[np.float32]:
    """(N, N) intersection over union of the masks of (N, L, L) logits, none of them empty."""
    masks = (logits > 0).flatten(1).float()
    overlap, areas = masks @ masks.T, masks.sum(dim=1)
    iou: NDArray[np.float32] = (overlap / (areas[:, None] + areas - overlap)).cpu().numpy()
    return iou
