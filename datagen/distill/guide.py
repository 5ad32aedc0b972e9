"""What the perceiver is asked for on the side in the describe stage: where a region lies and what it is called, and the same of the
region nearest to it. Linear layers read it off the tokens that the language model sees, and are thrown away in the end.

The texts alone teach this very slowly: for as long as the perceiver's tokens say nothing of places, a language model has no reason to
look for them there, and the other way round. Letters of shapes: N regions (or frames of tracks), S semantic tokens, T image tokens,
H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from datagen.distill.corpus import Box, Corpus
from datagen.distill.segment import cell_loss
from datagen.distill.words import Words, mean_where, words_loss, words_right

_WORDS, _NEAR_WORDS, _CELLS = 0.1, 0.05, 0.5  # sums over words and cells are larger than one over the sides of a box


@dataclass(frozen=True, slots=True)
class Asked:
    """boxes, near_boxes: (N, 4) XYXY, shares of the sides. words, near_words: (N, W) 0 or 1. seen, near: (N) 1 where there is one.

    masks: (N, 2, M, M) share of each cell covered by the region and by the nearest one, 0..1; None of frames.
    """

    boxes: Tensor
    words: Tensor
    seen: Tensor
    near_boxes: Tensor
    near_words: Tensor
    near: Tensor
    masks: Tensor | None = None


class Guide(nn.Module):
    """The linear layers. tokens: S. corpus: None without regions, of which tracks have only the boxes."""

    def __init__(self, tokens: int, hidden: int, corpus: Corpus | None) -> None:
        super().__init__()
        self._masks = None if corpus is None else corpus.masks
        self._words = None if corpus is None else Words(corpus)
        self._nearest = np.zeros(0, np.int64) if corpus is None else nearest(corpus)
        self._boxes = torch.tensor([] if corpus is None else [region.box for region in corpus.regions])
        self._known = len(self._words.names) if self._words else 0
        outputs = {"seen": 1, "box": 4, "words": self._known, "near_box": 4, "near_words": self._known}
        self.layers = nn.ModuleDict({name: nn.Linear(tokens * hidden, size) for name, size in outputs.items() if size})
        self.cells = nn.Linear(hidden, 2)

    def of_regions(self, regions: Sequence[int]) -> Asked:
        """What is asked of regions of the corpus."""
        if self._words is None or self._masks is None:
            raise ValueError("there are no regions to ask for")
        near = self._nearest[list(regions)]
        there = torch.from_numpy(near >= 0).float()
        masks = np.stack([self._masks[list(regions)], self._masks[near]], axis=1).astype(np.float32) / 255
        return Asked(
            masks=torch.from_numpy(masks) * torch.stack([torch.ones(len(near)), there], dim=1)[:, :, None, None],
            boxes=self._boxes[list(regions)],
            words=self._words.targets(list(regions)),
            seen=torch.ones(len(near)),
            near_boxes=self._boxes[near] * there[:, None],
            near_words=self._words.targets(near.tolist()),
            near=there,
        )

    def of_frames(self, boxes: Sequence[Box | None]) -> Asked:
        """What is asked of frames of tracks: the boxes, None where the object is not seen."""
        count = len(boxes)
        return Asked(
            boxes=torch.tensor([box or (0.0,) * 4 for box in boxes]),
            words=torch.zeros(count, self._known),
            seen=torch.tensor([float(box is not None) for box in boxes]),
            near_boxes=torch.zeros(count, 4),
            near_words=torch.zeros(count, self._known),
            near=torch.zeros(count),
        )

    def forward(self, semantic: Tensor, image: Tensor, asked: Asked) -> tuple[Tensor, dict[str, float]]:
        """The loss, and which words were right. semantic: (N, S, H), image: (N, T, H), as the language model gets them.

        Image tokens are not read where no masks are asked for.
        """
        # As the language model does, each token is brought to one length; together the semantic ones have that of one.
        features = _alike(semantic).flatten(1) / semantic.shape[1] ** 0.5
        read = {name: layer(features) for name, layer in self.layers.items()}
        seen, near = asked.seen.to(features.device), asked.near.to(features.device)
        total = F.binary_cross_entropy_with_logits(read["seen"][:, 0], seen)
        total = (
            total
            + mean_where(_box_error(read["box"], asked.boxes), seen)
            + mean_where(_box_error(read["near_box"], asked.near_boxes), near)
        )
        if asked.masks is not None:
            cells = as_square(self.cells(_alike(image)))
            total = total + _CELLS * cell_loss(cells, asked.masks.to(features.device)).sum(1).mean()
        report: dict[str, float] = {}
        for name, words, weight in (("words", asked.words, _WORDS), ("near_words", asked.near_words, _NEAR_WORDS)):
            words = words.to(features.device)
            some = words.any(1).float()
            if some.any():
                total = total + weight * mean_where(words_loss(read[name], words), some)
                report[f"{name}_right"] = float(mean_where(words_right(read[name].detach(), words), some))
        return total, {"guide": float(total.detach())} | report


def nearest(corpus: Corpus) -> NDArray[np.int64]:
    """(R) the region of the same image whose centre is nearest, in pixels; -1 where a region is alone."""
    found = np.full(len(corpus.regions), -1, dtype=np.int64)
    for group in corpus.of_image:
        if len(group) > 1:
            corners = np.asarray([corpus.regions[number].box for number in group]).reshape(-1, 2, 2)
            centers = corners.mean(axis=1) * [corpus.regions[number].size for number in group]
            apart = np.linalg.norm(centers[:, None] - centers[None], axis=2)
            np.fill_diagonal(apart, np.inf)
            found[group.start : group.stop] = group.start + apart.argmin(axis=1)
    return found


def as_square(values: Tensor) -> Tensor:
    """(N, K, G, G) the values (N, T, K) of image tokens, which run down the columns of the picture."""
    side = round(values.shape[1] ** 0.5)
    return values.transpose(1, 2).reshape(len(values), -1, side, side).transpose(2, 3)


def _alike(tokens: Tensor) -> Tensor:
    return F.rms_norm(tokens.float(), tokens.shape[-1:])


def _box_error(logits: Tensor, boxes: Tensor) -> Tensor:
    return (logits.sigmoid() - boxes.to(logits.device)).abs().sum(1)
