"""The front end: images to features, prompts to masks and mask tokens, regions to the perceiver's tokens.

Images are encoded once, several together; prompts of several images go through the mask decoder in one call.
Letters of shapes: B images, P prompts, N points, S image size, G = S/16 feature grid, L = S/4 mask logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from datagen.life import alive
from datagen.masks import stability_score
from datagen.pam.checkpoint import PERCEIVER, Checkpoint, ModelFiles
from datagen.pam.gradients import no_gradients_unless_training
from datagen.pam.segmenter import build_segmenter, check_state_dict, without_values
from datagen.pam.semantic_perceiver import SemanticPerceiver

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The reference's rule for the perceiver's first token (tests/golden/README.md).
_STABLE_OFFSET, _STABLE_MIN = 0.05, 0.98


@dataclass(slots=True)
class ImageFeatures:
    """Features of B images. embed: (B, 256, G, G). high_res: (B, 32, 4G, 4G) and (B, 64, 2G, 2G)."""

    embed: Tensor
    high_res: list[Tensor]


@dataclass(slots=True)
class Decoded:
    """The mask decoder's answer to P prompts, float32.

    logits: (P, 4, L, L), mask 0 is the single-mask output, 1..3 the multimask outputs. predicted_iou: (P, 4). object_score: (P)
    logit, <= 0 where nothing is there. tokens: (P, 4, 256). image_embed: (P, 256, G, G), the image side of its transformer.
    """

    logits: Tensor
    predicted_iou: Tensor
    object_score: Tensor
    tokens: Tensor
    image_embed: Tensor

    def perceiver_tokens(self) -> Tensor:
        """(P, 2, 256) for the Semantic Perceiver: mask 0's token if it is stable, else the best of three's; then mask 0's token."""
        stable = stability_score(self.logits[:, 0], _STABLE_OFFSET) >= _STABLE_MIN
        best = 1 + self.predicted_iou[:, 1:].argmax(dim=1)
        first = torch.where(stable, torch.zeros_like(best), best)
        rows = torch.arange(len(first), device=first.device)
        return torch.stack([self.tokens[rows, first], self.tokens[:, 0]], dim=1)


class FrontEnd:
    """SAM 2 and the Semantic Perceiver on one device. Weights stay float32; `dtype` bfloat16 means autocast.

    training: whether results carry gradients.
    """

    def __init__(
        self, segmenter: SAM2Base, perceiver: SemanticPerceiver, dtype: torch.dtype = torch.float32, training: bool = False
    ) -> None:
        self.segmenter, self.perceiver, self.dtype, self.training = segmenter, perceiver, dtype, training
        self.device: torch.device = segmenter.device
        self.image_size: int = segmenter.image_size
        self._mean = torch.tensor(_MEAN, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(_STD, device=self.device).view(1, 3, 1, 1)
        self._positions: Tensor = segmenter.sam_prompt_encoder.get_dense_pe()

    @no_gradients_unless_training
    def encode(self, pixels: Tensor) -> ImageFeatures:
        """Features of (B, S, S, 3) uint8 RGB images, already resized to the model's image size with PIL's bicubic filter."""
        alive()
        levels, _ = self.pyramid(pixels)
        embed = levels[-1].float() + self.segmenter.no_mem_embed.view(1, -1, 1, 1)
        return ImageFeatures(embed=embed, high_res=levels[:-1])

    @no_gradients_unless_training
    def pyramid(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """SAM 2's three feature levels of such images and their position codes, (B, C, H, W) each, the finest first."""
        alive()
        images = pixels.to(self.device).permute(0, 3, 1, 2).float() / 255
        with self.autocast():
            out = self.segmenter.forward_image((images - self._mean) / self._std)
        return out["backbone_fpn"][-3:], out["vision_pos_enc"][-3:]

    @no_gradients_unless_training
    def decode(self, features: ImageFeatures, image_index: Tensor, points: Tensor, labels: Tensor, masks: Tensor | None = None) -> Decoded:
        """Masks of P prompts with equally many points.

        image_index: (P) which image each prompt asks about. points: (P, N, 2) (x, y) in model pixels. labels: (P, N).
        masks: (P, L, L) dense mask prompts, or None.
        """
        alive()
        decoder, index = self.segmenter.sam_mask_decoder, image_index.to(self.device)
        # Outside autocast: bfloat16 has too few bits for pixel coordinates.
        sparse, dense = self.segmenter.sam_prompt_encoder(
            points=(points.to(self.device), labels.to(self.device)),
            boxes=None,
            masks=None if masks is None else masks.to(self.device).unsqueeze(1),
        )
        with self.autocast(), _image_side(decoder.transformer) as captured:
            logits, iou, tokens, score = decoder.predict_masks(
                image_embeddings=features.embed[index],
                image_pe=self._positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                repeat_image=False,
                high_res_features=[level[index] for level in features.high_res],
            )
        embed = captured[0].float().transpose(1, 2).view(-1, *features.embed.shape[1:])
        return Decoded(logits.float(), iou.float(), score.float().squeeze(1), tokens.float(), embed)

    @no_gradients_unless_training
    def perceive(self, decoded: Decoded, coarse: bool = False) -> tuple[Tensor, Tensor]:
        """The perceiver's tokens of P regions: image (P, (G/2)^2, 1024) and semantic (P, 16, 256), in `dtype`.

        coarse: a quarter of the image tokens, for the later frames of a video.
        """
        alive()
        with self.autocast():
            image_tokens, sem_tokens = self.perceiver(decoded.image_embed, decoded.perceiver_tokens(), coarse)
        return image_tokens.to(self.dtype), sem_tokens.to(self.dtype)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The arithmetic of `dtype`: bfloat16 autocast, or float32 as it is."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)


@contextlib.contextmanager
def _image_side(transformer: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collect the second output of the decoder's two-way transformer, (P, G*G, 256), which `predict_masks` keeps to itself."""
    captured: list[Tensor] = []
    handle = transformer.register_forward_hook(lambda _module, _inputs, output: captured.append(output[1]))
    try:
        yield captured
    finally:
        handle.remove()


def load_front_end(files: ModelFiles, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> FrontEnd:
    """The front end of a model, on a device. Raises ModelLoadError naming keys that are missing, unexpected or of another shape."""
    segmenter = build_segmenter(files.sam2_config, files.sam2_state_dict(), device)
    state = dict(Checkpoint(files.checkpoint).tensors(PERCEIVER, torch.float32))
    with without_values():
        perceiver = SemanticPerceiver(dim=segmenter.hidden_dim)
    check_state_dict(perceiver, state, what=f"the weights {PERCEIVER}* of {files.checkpoint}")
    perceiver.load_state_dict(state, assign=True)
    return FrontEnd(segmenter, perceiver.to(device).eval().requires_grad_(False), dtype)
