"""What is accepted as a prompt, with which code the rest is refused, and what the model gets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from datagen.errors import PromptError
from datagen.masks import encode_mask
from datagen.perceive.prompts import check_prompt, encode_prompt, given_mask, prompt_group
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
        Prompt(box=(41, 31, 90, 90), points=[(60, 50)], labels=[1], mask=disc()),
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
        (Prompt(box=(300, 10, 400, 20)), "prompt_outside"),
        (Prompt(box=(-30, 10, 0, 20)), "prompt_outside"),
        (Prompt(box=(10, 100, 20, 120)), "prompt_outside"),
        (Prompt(points=[(-5, 5)], labels=[1]), "prompt_outside"),
        (Prompt(points=[(5, 5), (5, 101.5)], labels=[1, 0]), "prompt_outside"),
        (Prompt(box=(90, 5, 120, 20), mask=disc()), "prompt_conflict"),
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


@pytest.mark.parametrize(
    ("box", "used"),
    [
        ((-0.6, 0, WIDTH + 0.9, HEIGHT), (0, 0, WIDTH, HEIGHT)),
        ((-50, 20, 30, 999), (0, 20, 30, HEIGHT)),
        ((190, -4, 300, 10), (190, 0, WIDTH, 10)),
        ((1.5, 2.5, 3.5, 4.5), (1.5, 2.5, 3.5, 4.5)),
    ],
)
def test_a_box_partly_outside_is_cut_to_the_image(box, used):
    assert check_prompt(Prompt(box=box, id="7", index=3), WIDTH, HEIGHT) == Prompt(box=used, id="7", index=3)
    assert encode_prompt(Prompt(box=box), WIDTH, HEIGHT, 100).points.max() <= 100


def test_points_less_than_a_pixel_outside_are_moved_onto_the_edge():
    used = check_prompt(Prompt(points=[(-0.5, 50), (WIDTH + 1, HEIGHT + 0.2)], labels=[1, 0]), WIDTH, HEIGHT)
    assert used.points == [(0, 50), (WIDTH, HEIGHT)]


def test_clicks_beside_the_object_alone_say_nothing_of_it():
    assert not Prompt(points=[(5, 5), (8, 8)], labels=[0, 0]).is_positive
    assert Prompt(points=[(5, 5), (8, 8)], labels=[0, 1]).is_positive
    assert Prompt(points=[(5, 5)], labels=[0], box=(1, 1, 9, 9)).is_positive
    assert Prompt(points=[(5, 5)], labels=[0], mask=disc()).is_positive


def test_a_mask_comes_with_its_box():
    encoded = encode_prompt(Prompt(mask=disc()), WIDTH, HEIGHT, 200)
    assert encoded.labels.tolist() == [2, 3]
    assert encoded.points.tolist() == [[41, 62], [80, 140]]
    assert encoded.mask_logits.shape == (50, 50)
    assert (encoded.mask_logits[25, 15], encoded.mask_logits[2, 2]) == (pytest.approx(10), pytest.approx(-10))


def test_the_box_of_a_mask_reaches_the_clicks_inside_the_object_and_no_others():
    clicked = Prompt(mask=disc(), points=[(100, 50), (190, 90)], labels=[1, 0])
    encoded = encode_prompt(clicked, WIDTH, HEIGHT, 200)
    assert encoded.labels.tolist() == [2, 3, 1, 0]
    assert encoded.points.tolist() == [[41, 62], [100, 140], [100, 100], [190, 180]]


def test_only_a_mask_alone_is_the_answer_itself():
    mask = disc()
    assert given_mask(Prompt(mask=mask)) is mask
    assert given_mask(Prompt(mask=mask, box=(40, 30, 80, 70))) is None
    assert given_mask(Prompt(mask=mask, points=[(60, 50)], labels=[1])) is None


@pytest.mark.parametrize("box", [None, (40.0, 30.0, 80.0, 70.0)])
@pytest.mark.parametrize("points", [[], [(60.0, 50.0)], [(60.0, 50.0), (5.0, 5.0)]])
@pytest.mark.parametrize("mask", [None, disc()])
def test_the_group_of_a_prompt_is_known_before_it_is_encoded(box, points, mask):
    prompt = Prompt(box=box, points=points, labels=[1, 0][: len(points)], mask=mask)
    if prompt.type:
        assert prompt_group(prompt) == encode_prompt(prompt, WIDTH, HEIGHT, 256).group
