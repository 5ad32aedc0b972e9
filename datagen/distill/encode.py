"""The encode stage: SAM 2's image encoder learns, before any prompt, what lies where in a picture.

From the features under each region a linear layer reads its words, and at each place whether any region covers it. All regions of a
picture teach at once and no mask decoder runs, so that a step sees several times the regions of a segment stage's: it teaches a small
model what shapes are, which masks alone do very slowly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datagen.distill.config import EncodeStage
from datagen.distill.corpus import Corpus
from datagen.distill.student import Student
from datagen.distill.words import Words, words_loss, words_right


@dataclass(slots=True)
class EncodeBatch:
    """B images with R regions in all. pixels: (B, S, S, 3) uint8. groups: regions of each image. masks: (R, M, M) 0..1. words: (R, W)."""

    pixels: Tensor
    groups: list[int]
    masks: Tensor
    words: Tensor


class EncodeTask:
    """What the encode stage trains, on what, and with which loss. `head` reads words and covered places; it is thrown away in the end."""

    def __init__(self, stage: EncodeStage, student: Student, corpus: Corpus, seed: int) -> None:
        self.stage, self.student, self.corpus, self.seed = stage, student, corpus, seed
        self.rates: dict[nn.Module, float] = {}
        self.words = Words(corpus)
        dim = student.perceiver.sem_tokens.embedding_dim
        self._narrowing = [
            module
            for name, module in student.segmenter.get_submodule("sam_mask_decoder").named_children()
            if name in ("conv_s0", "conv_s1")
        ]
        widths = [*(int(getattr(module, "out_channels")) for module in self._narrowing), dim]  # noqa: B009
        self.head: nn.Module = nn.ModuleDict({f"covered_{level}": nn.Linear(width, 1) for level, width in enumerate(widths)})
        self.head.add_module("words", nn.Linear(dim, max(len(self.words.names), 1)))

    def modules(self) -> Iterator[nn.Module]:
        """The parts that are trained."""
        yield from (self.student.segmenter.get_submodule("image_encoder"), *self._narrowing)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Trained parameters that belong to no module as a whole."""
        yield from ()

    def batch(self, step: int) -> EncodeBatch:
        """The batch of one step: a function of seed and step alone."""
        rng = np.random.default_rng([self.seed, 0, step])
        corpus, count = self.corpus, len(self.corpus.of_image)
        images = np.sort(rng.choice(count, size=self.stage.batch_size, replace=count < self.stage.batch_size))
        flips = rng.random(len(images)) < (0.5 if self.stage.flip else 0.0)
        regions = [region for image in images for region in corpus.of_image[image]]
        masks = [
            np.asarray(corpus.masks[region])[:, :: -1 if flip else 1]
            for image, flip in zip(images, flips, strict=True)
            for region in corpus.of_image[image]
        ]
        pictures = corpus.pixels[images]
        return EncodeBatch(
            torch.from_numpy(np.where(flips[:, None, None, None], pictures[:, :, ::-1], pictures)),
            [len(corpus.of_image[image]) for image in images],
            torch.from_numpy(np.stack(masks).astype(np.float32) / 255),
            self.words.targets(regions),
        )

    def loss(self, batch: EncodeBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and what to report of it."""
        levels, _ = self.student.front_end(training=True).pyramid(batch.pixels)
        features = levels[-1].float()  # what prompts and memory see
        masks, words = batch.masks.to(features.device), batch.words.to(features.device)
        logits = self.head.get_submodule("words")(_under(features, masks, batch.groups))
        named = words_loss(logits, words).mean() if self.words.names else features.new_zeros(())
        anywhere = torch.stack([group.amax(0) for group in torch.split(masks, batch.groups)])
        covered = torch.stack([self._covered(level, feature.float(), anywhere) for level, feature in enumerate(levels)]).sum()
        total = named + covered
        report = {"loss": total, "words": named, "covered": covered, "words_right": words_right(logits, words).mean()}
        return total, {name: float(value.detach()) for name, value in report.items()}

    def _covered(self, level: int, features: Tensor, anywhere: Tensor) -> Tensor:
        """Loss of telling which places a region covers. features: (B, C, H, W). anywhere: (B, M, M)."""
        logits = self.head.get_submodule(f"covered_{level}")(features.movedim(1, -1))[..., 0]
        return F.binary_cross_entropy_with_logits(logits, F.adaptive_avg_pool2d(anywhere[:, None], features.shape[-1])[:, 0])


def _under(features: Tensor, masks: Tensor, groups: list[int]) -> Tensor:
    """(R, C) mean of each image's features (B, C, G, G) under the masks (R, M, M) of its regions; groups: how many each image has."""
    weights = F.adaptive_avg_pool2d(masks[:, None], features.shape[-1]).flatten(1)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-3)
    return torch.cat([own @ feature.flatten(1).T for own, feature in zip(torch.split(weights, groups), features.unbind(), strict=True)])
