"""The perceive step as a worker runs it: batches in, regions and tokens or failed samples out."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from datagen.errors import ModelLoadError
from datagen.job import Job, ModelOptions, PerceiveOptions
from datagen.masks import decode_mask, encode_mask, mask_area, mask_box
from datagen.perceive import make_perceive_step
from datagen.perceive.pam import PamPerceiveStep
from datagen.records import Prompt, Sample


@pytest.fixture(scope="module")
def step(model):
    step = PamPerceiveStep(model, PerceiveOptions(prompts_per_call=16))
    step.setup()
    return step


def mixed_prompts(width: int, height: int) -> list[Prompt]:
    """Nine prompts of every kind, in an order that mixes the groups."""
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    x, y = width / 2, height / 2
    return [
        Prompt(box=(10, 20, x, y)),
        Prompt(points=[(x, y)], labels=[1]),
        Prompt(mask=encode_mask(mask)),
        Prompt(box=(x, y, width, height)),
        Prompt(points=[(x / 2, y / 2), (x, y)], labels=[1, 0]),
        Prompt(box=(5, 5, x, height - 5), points=[(30, 30)], labels=[1]),
        Prompt(points=[(x / 3, y)], labels=[1]),
        Prompt(box=(10, 20, x, y), mask=encode_mask(mask)),
        Prompt(box=(0, 0, width, height)),
    ]


def prompted(sample, number: int) -> Sample:
    blank = sample(number)
    blank.asset.prompts = mixed_prompts(blank.width, blank.height)
    return blank


def test_a_batch_of_mixed_prompts_equals_one_by_one(step, sample):
    together = step.process([prompted(sample, number) for number in range(3)])
    for number, result in enumerate(together):
        assert result.failure is None
        rows = {region.region_index: row for row, region in enumerate(result.regions)}
        assert len(rows) + result.dropped.get("empty_mask", 0) == 9
        for index, prompt in enumerate(mixed_prompts(result.width, result.height)):
            [alone] = step.process([sample(number, [prompt])])
            assert (index in rows) == bool(alone.regions)
            if alone.regions:
                region, row = result.regions[rows[index]], rows[index]
                assert np.abs(result.tokens.image[row] - alone.tokens.image[0]).max() <= 5e-4
                assert np.abs(result.tokens.semantic[row] - alone.tokens.semantic[0]).max() <= 5e-4
                assert region.predicted_iou == pytest.approx(alone.regions[0].predicted_iou, abs=1e-4)
                assert region.object_score == pytest.approx(alone.regions[0].object_score, abs=1e-4)
                assert np.count_nonzero(decode_mask(region.mask) ^ decode_mask(alone.regions[0].mask)) <= 4


def test_regions_describe_their_masks_at_the_images_size(step, sample):
    [result] = step.process([prompted(sample, 1)])
    assert result.status == "ok"
    assert result.pixels is None
    assert result.tokens.image.shape == (len(result.regions), 64, 1024)
    assert result.tokens.semantic.shape == (len(result.regions), 16, 256)
    assert result.tokens.image.dtype == np.float32
    assert not result.tokens.is_bfloat16
    for region in result.regions:
        mask = decode_mask(region.mask)
        assert mask.shape == (result.height, result.width)
        assert mask_box(mask) == region.box_xyxy
        assert mask_area(region.mask) == region.area_px > 0
        assert 0 <= region.stability <= 1
        assert 0 <= region.predicted_iou <= 1
        assert ("absent" in region.flags) == (region.object_score <= 0)
        assert region.mask_source == ("given" if region.prompt.type == "mask" else "prompt")


def test_a_mask_prompt_changes_the_answer(step, sample):
    box = (100.0, 100.0, 400.0, 400.0)
    mask = np.zeros((480, 640), dtype=bool)
    mask[300:, 300:] = True
    [plain] = step.process([sample(0, [Prompt(box=box)])])
    [masked] = step.process([sample(0, [Prompt(box=box, mask=encode_mask(mask))])])
    assert np.abs(plain.tokens.semantic - masked.tokens.semantic).max() > 1e-2


def test_bfloat16_tokens_travel_as_bit_patterns(model, step, sample):
    coarse = PamPerceiveStep(model, PerceiveOptions(dtype="bfloat16"))
    coarse.setup()
    prompts = [Prompt(box=(100, 100, 400, 400))]
    [result], [exact] = coarse.process([sample(0, prompts)]), step.process([sample(0, prompts)])
    assert result.tokens.is_bfloat16
    assert result.tokens.semantic.dtype == np.int16
    found = torch.from_numpy(result.tokens.semantic).view(torch.bfloat16).float().numpy()
    assert np.corrcoef(found.ravel(), exact.tokens.semantic.ravel())[0, 1] > 0.99


def test_absent_objects_are_flagged_or_dropped(model, step, sample):
    prompts = mixed_prompts(640, 480)
    [plain] = step.process([sample(0, prompts)])
    middle = float(np.median([region.object_score for region in plain.regions]))
    strict, lenient = (PamPerceiveStep(model, PerceiveOptions(drop_absent=drop)) for drop in (True, False))
    for shifted in (strict, lenient):
        shifted.setup()
        shifted.front_end.segmenter.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.sub_(middle + 1e-3)
    [kept], [dropped] = lenient.process([sample(0, prompts)]), strict.process([sample(0, prompts)])
    present = [region.region_index for region in kept.regions if region.object_score > 0]
    assert 0 < len(present) < len(kept.regions) == len(plain.regions)
    assert all(("absent" in region.flags) == (region.region_index not in present) for region in kept.regions)
    assert [region.region_index for region in dropped.regions] == present
    assert dropped.dropped["absent"] == len(kept.regions) - len(present)
    assert len(dropped.tokens.image) == len(present)


def test_a_bad_prompt_costs_itself_and_the_others_keep_their_place(step, sample):
    bad = {
        0: (Prompt(box=(700, 500, 800, 600)), "prompt_outside"),
        2: (Prompt(box=(math.nan, 1, 5, 5)), "prompt_nan"),
        3: (Prompt(points=[(700, 9)], labels=[1]), "prompt_outside"),
        4: (Prompt(mask=encode_mask(np.zeros((480, 640), dtype=bool))), "prompt_empty"),
        5: (Prompt(mask=encode_mask(np.ones((48, 64), dtype=bool))), "prompt_mask_size"),
        7: (Prompt(box=(50, 10, 60, 10)), "prompt_inverted"),
    }
    good = {1: Prompt(box=(10, 20, 320, 240)), 6: Prompt(points=[(320, 240)], labels=[1]), 8: Prompt(box=(-90, 300, 320, 999))}
    prompts = [bad[place][0] if place in bad else good[place] for place in range(9)]
    result, neighbour = step.process([sample(0, prompts), sample(1, [good[1]])])
    assert (result.status, neighbour.status) == ("ok", "ok")
    assert [region.region_index for region in result.regions] == list(good)
    assert len(result.tokens.image) == 3
    assert {code: result.dropped[code] for _, code in bad.values()} == Counter(code for _, code in bad.values())
    assert [region.prompt.box for region in result.regions] == [(10, 20, 320, 240), None, (0, 300, 320, 480)]
    assert ["prompt_clipped" in region.flags for region in result.regions] == [False, False, True]
    [alone] = step.process([sample(0, [good[6]])])
    assert np.abs(result.tokens.image[1] - alone.tokens.image[0]).max() <= 5e-4
    assert neighbour.dropped == {}


def test_an_image_without_any_usable_prompt_fails_and_says_which_there_were(step, sample):
    good, outside = Prompt(box=(1, 1, 50, 50)), Prompt(box=(900, 900, 999, 999))
    inverted, refused = Prompt(box=(50, 1, 5, 5)), sample(0, [])
    refused.asset.dropped = {"prompt_box": 2}
    batch = [sample(0, [good]), sample(1, [outside, outside]), sample(2, [outside, inverted, outside]), refused]
    result = step.process(batch)
    assert [r.failure.code if r.failure else r.status for r in result] == ["ok", "prompt_outside", "prompts_unusable", "prompt_box"]
    assert "none of its 2 prompts can be used (2 prompt_outside); prompt 0: the box [900, 900, 999, 999]" in result[1].failure.message
    assert "(1 prompt_inverted, 2 prompt_outside)" in result[2].failure.message
    assert "(2 prompt_box)" in result[3].failure.message
    assert [r.dropped for r in result[1:]] == [{"prompt_outside": 2}, {"prompt_inverted": 1, "prompt_outside": 2}, {"prompt_box": 2}]
    assert result[1].pixels is None
    assert result[1].regions == []


def test_places_and_refusals_of_the_source_are_kept(step, sample):
    asked = sample(
        0, [Prompt(box=(9, 9, 99, 99), index=4), Prompt(box=(900, 900, 999, 999), index=7), Prompt(box=(1, 1, 50, 50), index=12)]
    )
    asked.asset.dropped = {"prompt_outside": 2, "crowd": 5}
    [result] = step.process([asked])
    assert [region.region_index for region in result.regions] == [4, 12]
    assert result.dropped == {"prompt_outside": 3, "crowd": 5}


def test_a_mask_alone_is_the_answer_and_the_model_is_asked_about_its_box_with_it(step, sample):
    y, x = np.ogrid[:480, :640]
    mask = ((x - 300) ** 2 + (y - 200) ** 2 < 90**2) & (x < 310)  # no shape that a decoder would draw
    given = encode_mask(mask)
    boxed = Prompt(box=mask_box(mask), mask=given)
    [result], [beside] = step.process([sample(0, [Prompt(mask=given), Prompt(box=(5, 5, 90, 90))])]), step.process([sample(0, [boxed])])
    region, asked = result.regions[0], beside.regions[0]
    assert (region.mask, region.mask_source, region.prompt.mask) == (given, "given", given)
    assert (region.box_xyxy, region.area_px) == (mask_box(mask), int(mask.sum()))
    assert result.regions[1].mask_source == asked.mask_source == "prompt"
    assert asked.mask != given
    assert np.abs(result.tokens.semantic[0] - beside.tokens.semantic[0]).max() <= 5e-4
    assert region.object_score == pytest.approx(asked.object_score, abs=1e-4)
    assert region.predicted_iou == pytest.approx(asked.predicted_iou, abs=1e-4)


def test_failed_and_promptless_samples_pass_through(step, sample):
    failed, nothing_asked = sample(0), sample(1, [])
    failed.fail("decode", "broken")
    first, second = step.process([failed, nothing_asked])
    assert (first.failure.code, first.failure.message) == ("decode", "broken")
    assert (second.status, second.tokens, second.pixels) == ("empty", None, None)


def test_one_image_that_breaks_the_model_leaves_its_neighbours_alone(step, sample, monkeypatch):
    cursed = 255 - sample(1).pixels
    encode = step.front_end.encode

    def encode_unless_cursed(pixels):
        if any(np.array_equal(image, cursed) for image in pixels.numpy()):
            raise RuntimeError("weird image")
        return encode(pixels)

    monkeypatch.setattr(step.front_end, "encode", encode_unless_cursed)
    prompts = [Prompt(box=(10, 10, 200, 200))]
    batch = [sample(number % 3, prompts) for number in range(5)]
    batch[3].pixels = cursed
    result = step.process(batch)
    assert [r.status for r in result] == ["ok", "ok", "ok", "failed", "ok"]
    assert (result[3].failure.code, result[3].failure.message) == ("perceive", "RuntimeError: weird image")


def test_out_of_memory_halves_images_then_prompts(model, sample, monkeypatch):
    step = PamPerceiveStep(model, PerceiveOptions(prompts_per_call=8))
    step.setup()
    encode, decode = step.front_end.encode, step.front_end.decode
    images, prompts = [], []

    def small_encode(pixels):
        images.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("too many images")
        return encode(pixels)

    def small_decode(features, index, *rest):
        prompts.append(len(index))
        if len(index) > 2:
            raise torch.OutOfMemoryError("too many prompts")
        return decode(features, index, *rest)

    monkeypatch.setattr(step.front_end, "encode", small_encode)
    monkeypatch.setattr(step.front_end, "decode", small_decode)
    asked = [Prompt(box=(10, 10, 100 + offset, 200)) for offset in range(8)]
    result = step.process([sample(0, asked), sample(1, asked)])
    assert [len(r.regions) for r in result] == [8, 8]
    assert images[:2] == [2, 1]
    assert max(prompts[prompts.index(2) :]) == 2


def test_an_image_that_never_fits_becomes_a_failed_row(model, sample, monkeypatch):
    step = PamPerceiveStep(model, PerceiveOptions(prompts_per_call=4))
    step.setup()

    def never(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(step.front_end, "encode", never)
    [result] = step.process([sample(0, [Prompt(box=(1, 1, 9, 9))])])
    assert result.failure.code == "out_of_memory"


def test_a_broken_device_stops_the_worker(model, sample, monkeypatch):
    step = PamPerceiveStep(model, PerceiveOptions())
    step.setup()

    def broken(*_):
        raise torch.AcceleratorError("illegal memory access")

    monkeypatch.setattr(step.front_end, "encode", broken)
    with pytest.raises(torch.AcceleratorError):
        step.process([sample(0, [Prompt(box=(1, 1, 9, 9))])])


def test_pixels_of_another_size_are_refused(step, sample):
    wrong = sample(0, [Prompt(box=(1, 1, 9, 9))])
    wrong.pixels = wrong.pixels[:128, :128]
    [result] = step.process([wrong])
    assert "(256, 256, 3)" in result.failure.message


@pytest.mark.parametrize("size", [(1, 1), (1600, 40), (3, 2000)])
def test_odd_image_sizes_keep_their_masks_at_that_size(step, sample, size):
    odd = sample(0, [Prompt(box=(0, 0, *size))])
    odd.width, odd.height = size
    [result] = step.process([odd])
    assert result.failure is None
    assert all(region.mask["size"] == [size[1], size[0]] for region in result.regions)


def test_missing_weights_stop_the_job_at_setup(tmp_path):
    step = make_perceive_step(Job(model=ModelOptions(checkpoint=str(tmp_path))))
    with pytest.raises(ModelLoadError, match="--model tiny"):
        step.setup()
