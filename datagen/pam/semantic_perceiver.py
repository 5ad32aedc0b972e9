"""The Semantic Perceiver: what the mask decoder saw of a region, as tokens for the language model.

Source: Perceive Anything (PAM), "Recognize, Explain, Caption, and Segment Anything in Images and Videos", 2025; numbers in
tests/golden. Its body is the two-way transformer of SAM's mask decoder, which is taken from the sam2 package.
"""

from __future__ import annotations

import torch
from sam2.modeling.position_encoding import PositionEmbeddingRandom
from sam2.modeling.sam.transformer import TwoWayTransformer
from torch import Tensor, nn


class SemanticPerceiver(TwoWayTransformer):  # type: ignore[misc]
    """Reads the decoder's image features of one region with its mask tokens and 16 learned queries.

    Parameter names are those of a PAM checkpoint below `model.vision_resampler.`.
    """

    def __init__(self, dim: int = 256, num_sem_tokens: int = 16, depth: int = 2, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__(depth=depth, embedding_dim=dim, num_heads=num_heads, mlp_dim=mlp_dim)
        self.pe_layer = PositionEmbeddingRandom(dim // 2)
        self.sem_tokens = nn.Embedding(num_sem_tokens, dim)
        self.proj = nn.Linear(dim * 16, dim * 4)

    def forward(self, image_embed: Tensor, mask_tokens: Tensor, coarse: bool = False) -> tuple[Tensor, Tensor]:
        """Tokens of B regions.

        image_embed: (B, dim, G, G), the decoder's fused image features. mask_tokens: (B, 2, dim), the token of the stabler mask and
        the token of the single mask. Returns image tokens (B, (G/2)^2, 4 dim), or with `coarse` (later frames of a video)
        (B, (G/4)^2, 4 dim), and semantic tokens (B, num_sem_tokens, dim).
        """
        batch, dim, height, width = image_embed.shape
        queries = torch.cat([mask_tokens, self.sem_tokens.weight.expand(batch, -1, -1)], dim=1)
        # The Fourier code needs float32: in bfloat16 neighbouring grid cells become one.
        with torch.autocast(image_embed.device.type, enabled=False):
            positions = self.pe_layer((height, width)).expand(batch, -1, -1, -1)
        queries, keys = super().forward(image_embed, positions, queries)
        grid = keys.reshape(batch, height, width, dim)
        image_tokens = self.proj(_space_to_depth(grid, 4)) if coarse else _space_to_depth(grid, 2)
        return image_tokens, queries[:, mask_tokens.shape[1] :]


def _space_to_depth(grid: Tensor, factor: int) -> Tensor:
    """Merge squares of the grid into tokens: (B, H, W, C) to (B, W/factor * H/factor, factor^2 * C).

    Tokens run down the columns of the picture and channels along the rows of a square, as in InternVL's first pixel shuffle:
    the weights were trained in this order.
    """
    batch, height, width, channels = grid.shape
    columns = grid.reshape(batch, height, width // factor, factor * channels).transpose(1, 2)
    return columns.reshape(batch, width // factor * (height // factor), factor * factor * channels)
