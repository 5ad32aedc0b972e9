"""From region tokens to the language model's embedding space: projectors, newlines, and the word table.

An image region becomes `image tokens, image_newline, semantic tokens, semT_newline` (1024 + 1 + 16 + 1 rows for PAM at
1024 px). In a clip every frame is such a block, followed by `frame_newline`. Lengths follow the tokens that are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from datagen.errors import ModelLoadError
from datagen.pam.checkpoint import AGAIN, Checkpoint
from datagen.pam.gradients import no_gradients_unless_training
from datagen.pam.hub import WITHOUT_DOWNLOAD
from datagen.pam.prompts import PromptIds


class Projector(nn.Module):
    """The parts of a PAM checkpoint between the Semantic Perceiver and the LLM. H is the LLM's hidden size."""

    def __init__(self, image_dims: Sequence[int], semantic_dims: Sequence[int], vocabulary: int) -> None:
        super().__init__()
        hidden = image_dims[-1]
        self.mm_projector_img = _mlp(image_dims)
        self.mm_projector_semT = _mlp(semantic_dims)
        self.image_newline = nn.Parameter(torch.empty(hidden))
        self.semT_newline = nn.Parameter(torch.empty(hidden))
        self.frame_newline = nn.Parameter(torch.empty(hidden))
        self.embed_tokens = nn.Embedding(vocabulary, hidden)

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.embed_tokens.embedding_dim

    @no_gradients_unless_training
    def regions(self, image: Tensor, semantic: Tensor) -> Tensor:
        """Visual embeddings of R regions: image (R, T, C), semantic (R, S, D) -> (R, T + 1 + S + 1, H).

        The tokens may have any dtype and device; the result has the projector's.
        """
        weight = self.image_newline
        rows = (
            self.mm_projector_img(image.to(weight)),
            self.image_newline.expand(len(image), 1, -1),
            self.mm_projector_semT(semantic.to(weight)),
            self.semT_newline.expand(len(image), 1, -1),
        )
        return torch.cat(rows, dim=1)

    @no_gradients_unless_training
    def clip(self, first: Tensor, others: Tensor, semantic: Tensor) -> Tensor:
        """Visual embeddings of one object in a clip of F frames.

        first (T, C): image tokens of frame 0. others (F - 1, t, C): those of the later frames, fewer per frame.
        semantic (F, S, D). Returns (T + S + 3 + (F - 1) (t + S + 3), H).
        """
        frames = [self.regions(first[None], semantic[:1]), self.regions(others, semantic[1:])]
        newline = self.frame_newline.expand(1, 1, -1)
        return torch.cat([torch.cat([block, newline.expand(len(block), 1, -1)], dim=1).flatten(0, 1) for block in frames])

    @no_gradients_unless_training
    def words(self, ids: Sequence[int]) -> Tensor:
        """Embeddings of token ids, (len(ids), H)."""
        return self.embed_tokens(torch.tensor(ids, dtype=torch.long, device=self.embed_tokens.weight.device))  # type: ignore[no-any-return]

    def prompt(self, visual: Tensor, ids: PromptIds) -> Tensor:
        """The whole input of the LLM: visual (V, H) in the place of `<image>` -> (V + len(ids), H)."""
        return torch.cat([self.words(ids.before), visual, self.words(ids.after)])


def load_projector(checkpoint: Checkpoint, vocabulary: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Projector:
    """Read the projector of a checkpoint; the word table is cut to `vocabulary` rows.

    Raises ModelLoadError naming the weights that are missing or of another shape.
    """
    with torch.device("meta"):
        projector = Projector(_dims(checkpoint, "mm_projector_img"), _dims(checkpoint, "mm_projector_semT"), vocabulary)
    wanted = projector.state_dict()
    given = {name: tensor for name, tensor in _weights(checkpoint, vocabulary, dtype) if name in wanted}
    wrong = [name for name, tensor in wanted.items() if name not in given or given[name].shape != tensor.shape]
    if wrong:
        keys = ", ".join(f"model.{name} {tuple(wanted[name].shape)}" for name in wrong)
        raise ModelLoadError(f"{checkpoint.folder}: missing or of another shape: {keys}. {AGAIN}")
    projector.load_state_dict(given, assign=True)
    return projector.to(device).eval().requires_grad_(False)


def _weights(checkpoint: Checkpoint, vocabulary: int, dtype: torch.dtype) -> list[tuple[str, Tensor]]:
    prefixes = ("mm_projector_img.", "mm_projector_semT.", "image_newline", "semT_newline", "frame_newline", "embed_tokens.weight")
    pairs = []
    for prefix in prefixes:
        for suffix, tensor in checkpoint.tensors(f"model.{prefix}"):
            cut = tensor[:vocabulary] if prefix == "embed_tokens.weight" else tensor
            pairs.append((prefix + suffix, cut.to(dtype, copy=True)))
    return pairs


def _dims(checkpoint: Checkpoint, name: str) -> list[int]:
    """[in, hidden, ..., out] of an `mlpNx_gelu`: linear layers under even numbers, GELUs between them."""
    dims: list[int] = []
    while (shape := checkpoint.shapes.get(f"model.{name}.{2 * max(len(dims) - 1, 0)}.weight")) is not None:
        dims += [shape[0]] if dims else [shape[1], shape[0]]
    if not dims:
        raise ModelLoadError(f"{checkpoint.folder} lacks model.{name}.0.weight: it is no PAM checkpoint. {WITHOUT_DOWNLOAD}")
    return dims


def _mlp(dims: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(dims):
        layers += [nn.Linear(size_in, size_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])
