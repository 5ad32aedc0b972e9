"""The Semantic Perceiver's parameter names, shapes and token order; its numbers are in tests/parity."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from datagen.pam.checkpoint import PERCEIVER
from datagen.pam.semantic_perceiver import SemanticPerceiver

GOLDEN = Path(__file__).parents[1] / "golden"


def test_names_and_shapes_are_the_checkpoints():
    keys = json.loads((GOLDEN / "pam_3b_keys.json").read_text())["keys"]
    expected = {key.removeprefix(PERCEIVER): shape for key, shape in keys.items() if key.startswith(PERCEIVER)}
    assert {key: list(value.shape) for key, value in SemanticPerceiver().state_dict().items()} == expected


@torch.inference_mode()
def test_token_counts_follow_the_grid():
    perceiver = SemanticPerceiver()
    embed, tokens = torch.randn(3, 256, 16, 16), torch.randn(3, 2, 256)
    fine, semantic = perceiver(embed, tokens)
    coarse, same_semantic = perceiver(embed, tokens, coarse=True)
    assert (fine.shape, coarse.shape, semantic.shape) == ((3, 64, 1024), (3, 16, 1024), (3, 16, 256))
    assert torch.equal(semantic, same_semantic)


@torch.inference_mode()
def test_coarse_tokens_are_projected_squares_of_four_by_four():
    perceiver = SemanticPerceiver()
    embed, tokens = torch.randn(1, 256, 8, 8), torch.randn(1, 2, 256)
    fine, _ = perceiver(embed, tokens)
    coarse, _ = perceiver(embed, tokens, coarse=True)
    # A fine token holds 2 x 2 grid cells; tokens run down the columns, cells of a token along its rows.
    cells = fine.view(4, 4, 2, 2, 256).permute(1, 2, 0, 3, 4).reshape(8, 8, 256)
    squares = cells.view(2, 4, 2, 4, 256).permute(2, 0, 1, 3, 4).reshape(1, 4, 4096)
    assert torch.allclose(perceiver.proj(squares), coarse, atol=1e-5)
