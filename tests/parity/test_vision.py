"""The front end against numbers recorded from the PAM reference, within the tolerances of the golden README."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from datagen.pam.front_end import Decoded, FrontEnd, ImageFeatures
from datagen.perceive.prompts import encode_prompt
from datagen.perceive.regions import image_masks
from datagen.records import Prompt

CASES = ["image_0_box", "image_0_points", "image_1_box", "image_1_points", "image_1_absent", "image_2_box", "image_2_points"]


@pytest.fixture(scope="module")
def features(golden: Path, front_end: FrontEnd) -> dict[str, ImageFeatures]:
    return {path.name: front_end.encode(pixels(path, front_end.image_size)) for path in sorted((golden / "images").glob("*.png"))}


def pixels(path: Path, size: int) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB").resize((size, size)))).unsqueeze(0)


def read_case(golden: Path, name: str) -> dict:
    return next(case for case in json.loads((golden / "cases.json").read_text())["image"] if case["name"] == name)


def prompt_of(case: dict) -> Prompt:
    if case["labels"] is None:
        return Prompt(box=tuple(case["box_or_points"]))
    return Prompt(points=[tuple(point) for point in case["box_or_points"]], labels=list(case["labels"]))


def decode(front_end: FrontEnd, features: ImageFeatures, prompts: list[Prompt], size: tuple[int, int]) -> Decoded:
    encoded = [encode_prompt(prompt, *size, front_end.image_size) for prompt in prompts]
    points, labels = (torch.from_numpy(np.stack([getattr(e, name) for e in encoded])) for name in ("points", "labels"))
    return front_end.decode(features, torch.zeros(len(prompts), dtype=torch.int64), points, labels)


def close(found: torch.Tensor, golden: np.ndarray, tolerance: float) -> bool:
    assert tuple(found.shape) == golden.shape
    return float(np.abs(found.numpy() - golden).max()) <= tolerance


def test_every_golden_image_case_is_tested(golden):
    assert {case["name"] for case in json.loads((golden / "cases.json").read_text())["image"]} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_decoder_and_perceiver_equal_the_reference(golden, front_end, features, name):
    case, expected = read_case(golden, name), load_file(golden / "outputs" / f"{name}.safetensors")
    decoded = decode(front_end, features[case["image"]], [prompt_of(case)], tuple(case["size_wh"]))
    assert close(decoded.tokens[0], expected["mask_tokens_out_all4"], 1e-4)
    assert close(decoded.predicted_iou[0], expected["iou_pred"], 1e-4)
    assert close(decoded.object_score, expected["object_score_logits"], 1e-4)
    assert close(decoded.logits[0, :, ::8, ::8], expected["low_res_logits_all4_s8"], 1e-3)
    assert close(decoded.perceiver_tokens()[0], expected["mid_mask_tokens_out"], 1e-4)
    assert close(decoded.image_embed[0, ::8, ::4, ::4], expected["mid_image_embed_s"], 1e-3)
    assert close(decoded.image_embed[0].mean((1, 2)), expected["mid_image_embed_chan_mean"], 1e-3)
    assert close(decoded.image_embed[0].std((1, 2)), expected["mid_image_embed_chan_std"], 1e-3)
    image_tokens, sem_tokens = front_end.perceive(decoded)
    assert close(sem_tokens[0], expected["sem_tokens"], 1e-4)
    assert close(image_tokens[0, ::64, ::4], expected["image_tokens_s"], 5e-4)
    norms = expected["image_tokens_row_norm"]
    assert close(image_tokens[0].norm(dim=1) / torch.from_numpy(norms), np.ones_like(norms), 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_masks_at_the_images_size_equal_the_reference(golden, front_end, features, name):
    case, expected = read_case(golden, name), load_file(golden / "outputs" / f"{name}.safetensors")
    width, height = case["size_wh"]
    decoded = decode(front_end, features[case["image"]], [prompt_of(case)], (width, height))
    mask = np.unpackbits(expected["video_res_mask_packed"])[: width * height].reshape(height, width).astype(bool)
    [found] = image_masks(decoded.logits[:, 0], height, width)
    # The reference empties the mask where the object score says that nothing is there; datagen keeps it, flagged.
    present = float(decoded.object_score[0]) > 0
    assert present == bool(expected["object_score_logits"][0] > 0) == bool(mask.any())
    if present:
        assert np.count_nonzero(found.decode() ^ mask) <= 4
        assert abs(found.area_px - case["mask_area"]) <= 4


def test_many_prompts_in_one_call_equal_one_by_one(golden, front_end, features):
    rng = np.random.default_rng(0)
    for name, image in features.items():
        with Image.open(golden / "images" / name) as opened:
            size = opened.size
        corners = np.sort(rng.uniform(0, 1, (9, 2, 2)), axis=1) * size
        prompts = [Prompt(box=(*low, *high)) for low, high in corners]
        together = decode(front_end, image, prompts, size)
        for index, prompt in enumerate(prompts):
            alone = decode(front_end, image, [prompt], size)
            assert close(together.tokens[index], alone.tokens[0].numpy(), 1e-4)
            assert close(together.predicted_iou[index], alone.predicted_iou[0].numpy(), 1e-4)
            assert close(together.image_embed[index], alone.image_embed[0].numpy(), 1e-3)
            assert close(together.logits[index], alone.logits[0].numpy(), 1e-3)
