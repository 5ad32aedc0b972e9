"""Masks at the image's size: the same pixels as interpolating the whole picture, from the part that matters only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from datagen.masks import decode_mask, mask_area, mask_box
from datagen.perceive.regions import image_masks


def logits() -> torch.Tensor:
    """Blobs, a half-empty one, a small rectangle, a single pixel in a corner, and nothing at all."""
    blobs = interpolate(torch.randn(6, 1, 9, 9, generator=torch.Generator().manual_seed(0)), size=(64, 64), mode="bicubic")[:, 0]
    blobs[1, :, :32] = blobs[2] = blobs[3] = blobs[4] = -1
    blobs[2, 20:26, 50:58] = blobs[3, 0, 63] = 2
    return blobs


@pytest.mark.parametrize("size", [(480, 640), (1, 1), (40, 1600), (2000, 3), (20, 30), (64, 64)])
def test_they_equal_the_interpolated_picture(size):
    low = logits()
    whole = interpolate(low[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] > 0
    for mask, expected in zip(image_masks(low, *size), whole.numpy(), strict=True):
        assert np.array_equal(mask.decode(), expected)
        assert np.array_equal(decode_mask(mask.encode()), expected)
        assert mask.area_px == mask_area(mask.encode()) == expected.sum()
        assert mask.box == mask_box(expected)


def test_a_small_object_in_a_huge_picture_is_a_small_piece():
    [small] = image_masks(logits()[2:3], 9000, 12000)
    assert small.piece.size < 0.02 * 9000 * 12000
    assert small.encode()["size"] == [9000, 12000]


def test_nothing_stays_nothing():
    nothing = list(image_masks(logits(), 480, 640))[4]
    assert (nothing.area_px, nothing.box) == (0, None)
    assert not decode_mask(nothing.encode()).any()
