"""SAM 2 from the official package: which configs build, with which weights, and how it behaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from datagen.errors import ModelLoadError
from datagen.pam.segmenter import HIERA_LARGE, build_segmenter, model_config

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = json.loads((GOLDEN / "sam2_tiny_config.json").read_text())


def small() -> dict:
    return {**TINY["resolved_model_config"], "image_size": 128}


@pytest.mark.parametrize("wrap", [dict, lambda node: {"model": node}, lambda node: {"resolved_model_config": node}])
def test_every_form_of_a_config_is_the_same_model(wrap):
    assert model_config(wrap(small())) == model_config(small())


def test_it_behaves_as_the_reference():
    model = build_segmenter(HIERA_LARGE, None, device="meta")
    decoder = model.sam_mask_decoder
    assert (model.image_size, model.multimask_output_in_sam, model.binarize_mask_from_pts_for_mem_enc) == (1024, False, True)
    assert not decoder.dynamic_multimask_via_stability
    assert (decoder.dynamic_multimask_stability_delta, decoder.dynamic_multimask_stability_thresh) == (0.05, 0.98)
    assert not model.training


def test_the_large_model_has_every_official_name_and_shape():
    expected = json.loads((GOLDEN / "sam2.1_hiera_l_keys.json").read_text())["keys"]
    model = build_segmenter(HIERA_LARGE, None, device="meta")
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


def test_weights_go_in_and_come_out_in_float32():
    first = build_segmenter(small(), None)
    second = build_segmenter(small(), {key: value.to(torch.bfloat16) for key, value in first.state_dict().items()})
    for key, value in second.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, first.state_dict()[key].bfloat16().float())
    assert not any(parameter.requires_grad for parameter in second.parameters())


def test_wrong_weights_are_named():
    state = build_segmenter(small(), None).state_dict()
    del state["no_mem_embed"]
    state["stranger"] = torch.zeros(1)
    state["no_obj_ptr"] = torch.zeros(1, 3)
    with pytest.raises(ModelLoadError) as refusal:
        build_segmenter(small(), state)
    for part in ("missing: no_mem_embed", "unexpected: stranger", "no_obj_ptr is [1, 3], expected [1, 256]"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("config", ["configs/sam2.1/nothing.yaml", {"model": {"a": 1}}])
def test_unknown_configs_are_refused(config):
    with pytest.raises(ModelLoadError, match=r"sam2.1_hiera_l.yaml"):
        build_segmenter(config, None)


@pytest.mark.parametrize("size", [160, 100, 0, 1.5])
def test_a_size_that_the_perceiver_cannot_merge_is_refused(size):
    with pytest.raises(ModelLoadError, match=rf"image_size .* is {size!r}; .* multiple of 64 px, such as 128"):
        build_segmenter({**small(), "image_size": size}, None)


def test_a_config_cannot_call_anything_else(tmp_path):
    trap = {**small(), "memory_encoder": {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "trap")}}
    with pytest.raises(ModelLoadError, match=r"pathlib\.Path\.touch"):
        build_segmenter(trap, None)
