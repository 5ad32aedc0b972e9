"""The segment stage: SAM 2's image encoder, prompt encoder and mask decoder learn to answer a box or a point with the object's mask.

Source of the losses: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024, appendix: a pixel loss and dice on the mask,
L1 on the predicted IoU, cross-entropy on the object score; of the three multimask outputs the best one is taught, here as far as
the stage says so. The pixel loss is binary cross-entropy on the share of each cell that is covered, and the object's words are asked
for on the side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datagen.distill.config import SegmentStage
from datagen.distill.corpus import Corpus
from datagen.distill.prompts import BOX_LABELS, POINT_LABELS, Seed, inside_point
from datagen.distill.student import Student
from datagen.distill.words import Words, mean_where, pooled, words_loss, words_right
from datagen.pam.front_end import Decoded

_BOX_JITTER = 0.04  # of the box's sides
_TRIES = 20


@dataclass(slots=True)
class SegmentBatch:
    """B images with P prompts in all. pixels: (B, S, S, 3) uint8. image: (P). points: (P, N, 2) model pixels, labels: (P, N).

    masks: (P, M, M) share covered, 0..1. present: (P) 1 where the prompt is on an object. words: (P, W) 0 or 1.
    """

    pixels: Tensor
    image: Tensor
    points: Tensor
    labels: Tensor
    masks: Tensor
    present: Tensor
    words: Tensor


class SegmentTask:
    """What the segment stage trains, on what, and with which loss. `head` reads words and places; it is thrown away in the end."""

    def __init__(self, stage: SegmentStage, student: Student, corpus: Corpus, seed: Seed) -> None:
        self.stage, self.student, self.corpus, self.seed = stage, student, corpus, seed
        self.words = Words(corpus)
        dim, known = student.perceiver.sem_tokens.embedding_dim, max(len(self.words.names), 1)
        outputs = {"encoder": known, "image": known, "token": known, "box": 4, "cell": 1}
        self.head: nn.Module = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in outputs.items()})
        self.rates = {student.segmenter.get_submodule("image_encoder"): stage.encoder_rate}

    def modules(self) -> Iterator[nn.Module]:
        """The parts that are trained."""
        segmenter: Any = self.student.segmenter
        yield from (segmenter.image_encoder, segmenter.sam_prompt_encoder, segmenter.sam_mask_decoder)
        yield nn.ParameterList([segmenter.no_mem_embed])

    def batch(self, step: int) -> SegmentBatch:
        """The batch of one step: a function of seed and step alone."""
        rng = np.random.default_rng([*self.seed, step])
        stage, corpus = self.stage, self.corpus
        images = corpus.draw(rng, stage.batch_size)
        is_box = rng.random() < stage.box_share
        flips = rng.random(len(images)) < (0.5 if stage.flip else 0.0)
        rows = []
        for slot, image in enumerate(images):
            for _ in range(stage.prompts_per_image):
                rows.append((slot, *self._prompt(rng, int(image), is_box, bool(flips[slot]))))
        slots, regions, points, masks = zip(*rows, strict=True)
        return SegmentBatch(
            torch.from_numpy(corpus.pictures(images, flips)),
            torch.tensor(slots),
            torch.from_numpy(np.stack(points)),
            torch.tensor([BOX_LABELS if is_box else POINT_LABELS] * len(rows), dtype=torch.int32),
            torch.from_numpy(np.stack(masks).astype(np.float32) / 255),
            torch.tensor([float(region >= 0) for region in regions]),
            self.words.targets(list(regions)),
        )

    def _prompt(self, rng: np.random.Generator, image: int, is_box: bool, flip: bool) -> tuple[int, np.ndarray, np.ndarray]:
        """(region or -1 for none, points (N, 2) in model pixels, mask (M, M)) of a prompt on an image."""
        group = self.corpus.of_image[image]
        size = self.corpus.pixels.shape[1]
        region = int(rng.integers(group.start, group.stop))
        mask = np.asarray(self.corpus.masks[region])
        if is_box:
            points = self._box(rng, region)
        elif rng.random() < self.stage.background_share and (cell := self._free_cell(rng, group)) is not None:
            region, points, mask = -1, cell, np.zeros_like(mask)
        else:
            points = inside_point(rng, mask)
        if flip:
            points, mask = points * (-1, 1) + (1, 0), mask[:, ::-1]
            if is_box:
                points = np.stack([points.min(axis=0), points.max(axis=0)])
        return region, (points * size).astype(np.float32), mask

    def _box(self, rng: np.random.Generator, region: int) -> np.ndarray:
        """Two corners, shares of the sides, a little off the true box half of the time."""
        x1, y1, x2, y2 = self.corpus.regions[region].box
        corners = np.asarray([[x1, y1], [x2, y2]])
        if rng.random() < 0.5:
            corners = corners + rng.normal(0, _BOX_JITTER, (2, 2)) * (corners[1] - corners[0])
        return corners.clip(0, 1)

    def _free_cell(self, rng: np.random.Generator, group: range) -> np.ndarray | None:
        """A point on no object, shares of the sides; None when none is found."""
        side = self.corpus.masks.shape[1]
        for _ in range(_TRIES):
            row, column = rng.integers(0, side, 2)
            if not self.corpus.masks[group.start : group.stop, row, column].any():
                return np.asarray([[(column + rng.random()) / side, (row + rng.random()) / side]])
        return None

    def loss(self, batch: SegmentBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and what to report of it."""
        front_end = self.student.front_end(training=True)
        features = front_end.encode(batch.pixels)
        decoded = front_end.decode(features, batch.image, batch.points, batch.labels)
        device = decoded.logits.device
        masks, present, words = batch.masks.to(device), batch.present.to(device), batch.words.to(device)
        each, iou = mask_losses(decoded.logits, masks)
        share, three = self.stage.best_of_three, each[:, 1:]
        of_three = share * three.min(dim=1).values + (1 - share) * three.mean(dim=1)
        mask = mean_where(each[:, 0] + of_three, present)
        predicted = (decoded.predicted_iou - iou * present[:, None]).abs().mean()
        score = F.binary_cross_entropy_with_logits(decoded.object_score, present)
        named, right = self._named(features.embed[batch.image.to(device)], decoded, masks, words, present)
        guide = self._guide(decoded, masks, present)
        total = mask + predicted + score + self.stage.words_weight * named + self.stage.guide_weight * guide
        seen = present > 0
        report = {
            "loss": float(total.detach()),
            "mask": float(mask.detach()),
            "iou_error": float(predicted.detach()),
            "score": float(score.detach()),
            "guide": float(guide.detach()),
            "words": float(named.detach()),
            "words_right": right,
        }
        if seen.any():  # a small batch may be all background
            kind = "box" if batch.labels.shape[1] == len(BOX_LABELS) else "point"
            report |= dict.fromkeys(("iou", f"iou_{kind}"), float(iou[seen, 0].mean()))
            report["iou_of_three"] = float(iou[seen, 1:].max(dim=1).values.mean())
        return total, report

    def _guide(self, decoded: Decoded, masks: Tensor, present: Tensor) -> Tensor:
        """Where the object is, read off the two sides of the decoder by a linear layer each: its cells, and its box.

        The mask itself is a product of both sides, so either can only learn to follow the prompt once the other does.
        """
        cells = self.head.get_submodule("cell")(decoded.image_embed.movedim(1, -1)).movedim(-1, 1)
        boxes = (self.head.get_submodule("box")(decoded.tokens[:, 0]).sigmoid() - _boxes(masks)).abs().sum(1)
        return mean_where(cell_loss(cells, masks[:, None])[:, 0] + 5 * boxes, present)

    def _named(self, encoded: Tensor, decoded: Decoded, masks: Tensor, words: Tensor, present: Tensor) -> tuple[Tensor, float]:
        """Loss of the words read off the features under the mask, before and after the decoder, and off the mask token; share of objects
        whose mask token has all right.
        """
        total, right = decoded.logits.new_zeros(()), torch.ones_like(present)
        if not self.words.names:
            return total, 1.0
        sources = {"encoder": pooled(encoded, masks), "image": pooled(decoded.image_embed, masks), "token": decoded.tokens[:, 0]}
        for name, feature in sources.items():
            logits = self.head.get_submodule(name)(feature)
            total = total + mean_where(words_loss(logits, words), present)
            right = words_right(logits, words)
        return total / len(sources), float(mean_where(right, present))


def _boxes(masks: Tensor) -> Tensor:
    """(P, 4) XYXY, shares of the sides, of (P, M, M) masks; zeros where a mask is empty."""
    side = masks.shape[-1]
    ends = []
    for axis in (2, 1):  # columns, then rows
        there = (masks > 0.5).any(dim=3 - axis).float()
        ends.append((there.argmax(1) / side, there.any(1) * (side - there.flip(1).argmax(1)) / side))
    return torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], dim=1)


def cell_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """(P, K) how far the cells are from those that the masks cover, per covered cell. logits: (P, K, G, G). masks: (P, K, M, M) shares."""
    cells = F.adaptive_avg_pool2d(masks, logits.shape[-1])
    each = F.binary_cross_entropy_with_logits(logits, cells, reduction="none")
    return each.sum((2, 3)) / cells.sum((2, 3)).clamp(min=1)


def mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Loss (P, K) and true IoU (P, K) of K masks per prompt. logits: (P, K, L, L). masks: (P, M, M) shares covered."""
    target = masks[:, None]
    large = F.interpolate(logits, size=masks.shape[-2:], mode="bilinear", align_corners=False)
    pixel = F.binary_cross_entropy_with_logits(large, target.expand_as(large), reduction="none").mean((2, 3))
    probability = large.sigmoid()
    dice = 1 - (2 * (probability * target).sum((2, 3)) + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
    with torch.no_grad():
        found, there = large > 0, target > 0.5
        union = (found | there).sum((2, 3))
        iou = (found & there).sum((2, 3)) / union.clamp(min=1)
    return 5 * pixel + dice, iou
