"""The fake perceive step: deterministic, like the real one in shape, and light."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from datagen.job import Job, PerceiveOptions
from datagen.masks import decode_mask, encode_mask, mask_box
from datagen.perceive import make_perceive_step
from datagen.records import Asset, Prompt, Sample


def sample(name: str, prompts: list[Prompt] | None = None) -> Sample:
    return Sample(index=0, asset=Asset(asset_id=name, uri=name, prompts=prompts), width=90, height=50, pixels=np.zeros((4, 4, 3), np.uint8))


@pytest.fixture
def step():
    return make_perceive_step(Job(perceive=PerceiveOptions(engine="fake")))


def test_the_same_asset_gives_the_same_regions(step):
    first, again, other = step.process([sample("a"), sample("a"), sample("b")])
    assert first.regions == again.regions
    assert np.array_equal(first.tokens.image, again.tokens.image)
    assert first.regions != other.regions
    assert len(first.regions) == 3
    assert first.pixels is None


def test_regions_follow_the_prompts_and_describe_their_masks(step):
    prompts = [Prompt(box=(10, 5, 30.4, 20)), Prompt(points=[(89, 49)], labels=[1]), Prompt(box=(0.2, 0.2, 0.4, 0.4))]
    [result] = step.process([sample("a", prompts)])
    assert result.regions[0].box_xyxy == (10, 5, 30, 20)
    assert len(result.tokens.image) == len(result.tokens.semantic) == 3
    for region in result.regions:
        mask = decode_mask(region.mask)
        assert mask.shape == (50, 90)
        assert mask_box(mask) == region.box_xyxy
        assert mask.sum() == region.area_px


def test_bad_prompts_fail_and_empty_lists_are_empty(step):
    bad, nothing = step.process([sample("a", [Prompt(box=(5, 5, 1, 1))]), sample("b", [])])
    assert bad.failure.code == "prompt_inverted"
    assert (nothing.status, nothing.tokens) == ("empty", None)


def test_prompts_that_the_source_refused_are_named_where_none_is_left(step):
    given = sample("a", [])
    given.asset.dropped, given.asset.problem = {"prompt_mask": 2}, "annotation 7: no polygon"
    [result] = step.process([given])
    assert (result.failure.code, result.failure.message) == (
        "prompt_mask",
        "none of its 2 prompts can be used (2 prompt_mask); annotation 7: no polygon",
    )


def test_a_bad_prompt_costs_itself_and_a_mask_alone_is_the_answer(step):
    mask = encode_mask(np.eye(50, 90, dtype=bool))
    prompts = [Prompt(box=(99, 99, 120, 120)), Prompt(mask=mask), Prompt(points=[(5, 5)], labels=[]), Prompt(box=(80, 10, 200, 30))]
    [result] = step.process([sample("a", prompts)])
    assert [(region.region_index, region.mask_source, region.flags) for region in result.regions] == [
        (1, "given", []),
        (3, "prompt", ["prompt_clipped"]),
    ]
    assert (result.regions[0].mask, result.regions[0].box_xyxy, result.regions[0].area_px) == (mask, (0, 0, 50, 50), 50)
    assert result.dropped == {"prompt_outside": 1, "prompt_labels": 1}
    assert len(result.tokens.image) == 2


def test_the_delay_is_per_batch():
    step = make_perceive_step(Job(perceive=PerceiveOptions(engine="fake", fake_delay_s=0.05)))
    start = time.perf_counter()
    step.process([sample("a"), sample("b")])
    assert time.perf_counter() - start >= 0.05


def test_it_needs_no_torch():
    code = "import sys, datagen.perceive.fake, datagen.perceive; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
