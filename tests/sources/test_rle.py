"""Masks and polygons as people give them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from datagen import masks
from datagen.records import RLE
from datagen.sources.rle import parse_polygons, parse_rle

pictures = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.flatten(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


@given(pictures)
def test_every_coco_form_of_a_mask_gives_the_same_encoding(mask):
    size, expected = list(mask.shape), masks.encode_mask(mask)
    runs = runs_of(mask)
    for counts in (runs, list(map(float, runs)), expected["counts"], expected["counts"].encode()):
        assert parse_rle({"size": size, "counts": counts}) == expected
    assert parse_rle({"size": [str(side) for side in size], "counts": runs}) == expected


@given(pictures, st.data())
def test_runs_of_no_pixel_change_nothing(mask, data):
    """pycocotools stops comparing where two masks have one at the same place."""
    runs = runs_of(mask)
    place = data.draw(st.integers(0, len(runs) - 1))
    cut = data.draw(st.integers(0, runs[place]))
    split = [*runs[:place], cut, 0, runs[place] - cut, *runs[place + 1 :]]
    compressed = coco_mask.frPyObjects({"size": list(mask.shape), "counts": split}, *mask.shape)["counts"].decode()
    for counts in (split, compressed):
        assert parse_rle({"size": list(mask.shape), "counts": counts}) == masks.encode_mask(mask)


def test_polygons_are_filled_and_merged():
    squares = [[1, 1, 4, 1, 4, 4, 1, 4], [6, 6, 9, 6, 9, 8, 6, 8]]
    expected = np.zeros((10, 12), dtype=bool)
    expected[1:4, 1:4] = expected[6:8, 6:9] = True
    assert np.array_equal(masks.decode_mask(parse_polygons(squares, 10, 12)), expected)


def test_a_polygon_may_reach_out_of_the_picture():
    mask = masks.decode_mask(parse_polygons([[-5, -5, 3, -5, 3, 2, -5, 2]], 10, 12))
    assert mask[:2, :3].all()
    assert mask.sum() == 6


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 4], "counts": [20]}, "cover 20 pixels"),
        ({"size": [4, 4], "counts": ""}, "not a compressed COCO string"),
        ({"size": [4, 4], "counts": [16.5]}, "whole numbers"),
        ({"size": [4, 4], "counts": [True, 15]}, "whole numbers"),
        ({"size": [4, 4], "counts": {"0": 16}}, "whole numbers"),
        ({"size": [4], "counts": [4]}, "size is"),
        ({"size": [0, 4], "counts": []}, "size is"),
        ({"size": [2**20, 1], "counts": [2**20]}, "size is"),
        ({"size": [65536, 65536], "counts": [2**32]}, "too large"),
        ({"size": [46341, 46341], "counts": [46341**2]}, "too large"),
        ({"size": [4, 4], "counts": [-(2**40), 2**40 + 16]}, "negative"),
        ({"counts": [16]}, "a mask is"),
    ],
)
def test_other_masks_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        parse_rle(segmentation)


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([], "list of polygons"),
        ("abc", "list of polygons"),
        ([[1, 2, 3, 4]], "three corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three corners"),
        ([[0, 0, 25, 0, 9, 9]], "12x10 picture, found 25"),
        ([[0, 0, 1, 0, 9, -1e9]], "12x10 picture"),
        ([[0, 0, 1, float("inf"), 9, 9]], "12x10 picture"),
        ([[0, 0, 1, 10**400, 9, 9]], "12x10 picture"),
        ([[0, 0, 1, "1", 9, 9]], "12x10 picture"),
        ([[-24, 0, 24, 9] * 50_000], "an outline of"),
    ],
)
def test_other_polygons_are_refused(polygons, message):
    with pytest.raises(ValueError, match=message):
        parse_polygons(polygons, 10, 12)


def test_a_compressed_string_is_kept_as_it_is():
    rle = masks.encode_mask(np.eye(5, 7, dtype=bool))
    assert parse_rle(dict(rle)) == RLE(size=[5, 7], counts=rle["counts"])
