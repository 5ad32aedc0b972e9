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
from datagen.distill.prompts import Seed
from datagen.distill.student import Student
from datagen.distill.words import Words, pooled, words_loss, words_right


@dataclass(slots=True)
class EncodeBatch:
    """B images with R regions in all. pixels: (B, S, S, 3) uint8. image: (R). masks: (R, M, M) 0..1. words: (R, W)."""

    pixels: Tensor
    image: Tensor
    masks: Tensor
    words: Tensor


class EncodeTask:
    """What the encode stage trains, on what, and with which loss. `head` reads words and covered places; it is thrown away in the end."""

    def __init__(self, stage: EncodeStage, student: Student, corpus: Corpus, seed: Seed) -> None:
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

    def batch(self, step: int) -> EncodeBatch:
        """The batch of one step: a function of seed and step alone."""
        rng = np.random.default_rng([*self.seed, step])
        corpus = self.corpus
        images = np.sort(corpus.draw(rng, self.stage.batch_size))
        flips = rng.random(len(images)) < (0.5 if self.stage.flip else 0.0)
        rows = [(slot, region) for slot, image in enumerate(images) for region in corpus.of_image[image]]
        masks = [np.asarray(corpus.masks[region])[:, :: -1 if flips[slot] else 1] for slot, region in rows]
        return EncodeBatch(
            torch.from_numpy(corpus.pictures(images, flips)),
            torch.tensor([slot for slot, _ in rows]),
            torch.from_numpy(np.stack(masks).astype(np.float32) / 255),
            self.words.targets([region for _, region in rows]),
        )

    def loss(self, batch: EncodeBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and what to report of it."""
        levels, _ = self.student.front_end(training=True).pyramid(batch.pixels)
        features = levels[-1].float()  # what prompts and memory see
        image, masks, words = (given.to(features.device) for given in (batch.image, batch.masks, batch.words))
        logits = self.head.get_submodule("words")(pooled(features[image], masks))
        named = words_loss(logits, words).mean() if self.words.names else features.new_zeros(())
        anywhere = torch.stack([masks[image == slot].amax(0) for slot in range(len(features))])
        covered = torch.stack([self._covered(level, feature.float(), anywhere) for level, feature in enumerate(levels)]).sum()
        total = named + covered
        report = {"loss": total, "words": named, "covered": covered, "words_right": words_right(logits, words).mean()}
        return total, {name: float(value.detach()) for name, value in report.items()}

    def _covered(self, level: int, features: Tensor, anywhere: Tensor) -> Tensor:
        """Loss of telling which places a region covers. features: (B, C, H, W). anywhere: (B, M, M)."""
        logits = self.head.get_submodule(f"covered_{level}")(features.movedim(1, -1))[..., 0]
        return F.binary_cross_entropy_with_logits(logits, F.adaptive_avg_pool2d(anywhere[:, None], features.shape[-1])[:, 0])
