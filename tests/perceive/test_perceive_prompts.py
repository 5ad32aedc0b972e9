"""What is accepted as a prompt, with which code the rest is refused, and what the model gets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from datagen.errors import PromptError
from datagen.masks import encode_mask
from datagen.perceive.prompts import check_prompt, encode_prompt
from datagen.records import RLE, Prompt

WIDTH, HEIGHT = 200, 100


def disc() -> RLE:
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    return encode_mask((x - 60) ** 2 + (y - 50) ** 2 < 400)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(box=(0, 0, WIDTH, HEIGHT)),
        Prompt(box=(-0.6, 0, WIDTH + 0.9, HEIGHT)),
        Prompt(points=[(1, 2), (199, 99)], labels=[1, 0]),
        Prompt(mask=disc()),
        Prompt(box=(1, 1, 9, 9), points=[(5, 5)], labels=[1], mask=disc()),
    ],
    ids=lambda prompt: prompt.type,
)
def test_sensible_prompts_pass(prompt):
    check_prompt(prompt, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (Prompt(), "prompt_empty"),
        (Prompt(mask=encode_mask(np.zeros((HEIGHT, WIDTH), dtype=bool))), "prompt_empty"),
        (Prompt(box=(math.nan, 0, 5, 5)), "prompt_nan"),
        (Prompt(points=[(5, math.inf)], labels=[1]), "prompt_nan"),
        (Prompt(box=(50, 10, 40, 20)), "prompt_inverted"),
        (Prompt(box=(50, 10, 60, 10)), "prompt_inverted"),
        (Prompt(box=(10, 10, 20, 102)), "prompt_outside"),
        (Prompt(box=(300, 10, 400, 20)), "prompt_outside"),
        (Prompt(points=[(-5, 5)], labels=[1]), "prompt_outside"),
        (Prompt(points=[(5, 5)], labels=[]), "prompt_labels"),
        (Prompt(points=[(5, 5)], labels=[2]), "prompt_labels"),
        (Prompt(mask=encode_mask(np.ones((WIDTH, HEIGHT), dtype=bool))), "prompt_mask_size"),
        (Prompt(mask=RLE(size=[HEIGHT, WIDTH], counts="5")), "prompt_mask"),
    ],
)
def test_senseless_prompts_are_refused_with_their_own_code(prompt, code):
    with pytest.raises(PromptError) as refusal:
        encode_prompt(prompt, WIDTH, HEIGHT, 256)
    assert refusal.value.code == code


def test_a_box_becomes_two_corners_before_the_points():
    encoded = encode_prompt(Prompt(box=(20, 10, 100, 50), points=[(60, 30)], labels=[0]), WIDTH, HEIGHT, 1000)
    assert encoded.points.tolist() == [[100, 100], [500, 500], [300, 300]]
    assert encoded.labels.tolist() == [2, 3, 0]
    assert encoded.group == (3, False)


def test_a_mask_alone_comes_with_one_empty_point():
    encoded = encode_prompt(Prompt(mask=disc()), WIDTH, HEIGHT, 256)
    assert encoded.labels.tolist() == [-1]
    assert encoded.group == (1, True)
    assert encoded.mask_logits.shape == (64, 64)
    assert (encoded.mask_logits[32, 19], encoded.mask_logits[2, 2]) == (pytest.approx(10), pytest.approx(-10))
