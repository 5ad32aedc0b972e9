"""Naming: which words of a region's label and caption features hold. Losses that make them hold the words, thrown away in the end."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datagen.distill.corpus import Corpus, RegionData


class Words:
    """The most frequent words of a corpus's English labels and captions, and which of them each region has."""

    def __init__(self, corpus: Corpus, limit: int = 64) -> None:
        counts: dict[str, int] = {}
        for region in corpus.regions:
            for word in region_words(region):
                counts[word] = counts.get(word, 0) + 1
        common = sorted(counts, key=lambda word: (-counts[word], word))[:limit]
        self.names = sorted(word for word in common if counts[word] < len(corpus.regions))
        """W words, in alphabetical order; none that every region has."""
        known = {word: index for index, word in enumerate(self.names)}
        self._of_region = [[known[word] for word in region_words(region) if word in known] for region in corpus.regions]

    def targets(self, regions: list[int]) -> Tensor:
        """(R, W) 1 where a region has a word; a region of -1 has none."""
        found = np.zeros((len(regions), len(self.names)), dtype=np.float32)
        for row, region in enumerate(regions):
            found[row, self._of_region[region] if region >= 0 else []] = 1
        return torch.from_numpy(found)


def region_words(region: RegionData) -> set[str]:
    """The words of a region's English label and caption, in lower case."""
    text = " ".join(region.texts.get((task, "en"), "") for task in ("label", "caption"))
    return {word for word in (part.strip(".,;:!?\"'").lower() for part in text.split()) if word}


def words_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(R) cross-entropy of W word logits with all words that a region has, (R, W) both.

    One softmax over all words, its mass shared by those of the region. Source: Mahajan et al., "Exploring the Limits of Weakly Supervised
    Pretraining", 2018, which found it better than one sigmoid per word.
    """
    return -(logits.log_softmax(1) * targets).sum(1)


def words_right(logits: Tensor, targets: Tensor) -> Tensor:
    """(R) 1 where every word that a region has is held likelier than every word that it lacks."""
    had = logits.masked_fill(targets == 0, float("inf")).amin(1)
    lacked = logits.masked_fill(targets > 0, float("-inf")).amax(1)
    return (had > lacked).float()


def pooled(features: Tensor, masks: Tensor) -> Tensor:
    """(R, C) mean of features (R, C, G, G) under masks (R, M, M), shares of cells covered."""
    weights = F.adaptive_avg_pool2d(masks[:, None], features.shape[-1])
    return (features * weights).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1e-3)


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of values (N) over those that `where` (N) marks with 1; 0 when it marks none."""
    total: Tensor = (values * where).sum() / where.sum().clamp(min=1)
    return total
