"""Masks, run-length encodings and boxes, against plain NumPy and against pycocotools' own decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from datagen import masks
from datagen.records import RLE

sides = st.integers(1, 24)
pictures = st.tuples(sides, sides).flatmap(lambda shape: arrays(bool, shape))


def pairs():
    return st.tuples(sides, sides).flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


@given(pictures)
def test_encoding_is_lossless_and_pycocotools_reads_it(mask):
    rle = masks.encode_mask(mask)
    assert rle["size"] == list(mask.shape)
    assert np.array_equal(masks.decode_mask(rle), mask)
    assert np.array_equal(coco.decode({"size": rle["size"], "counts": rle["counts"]}).astype(bool), mask)


@given(pictures)
def test_area_and_box_are_those_of_the_pixels(mask):
    assert masks.mask_area(masks.encode_mask(mask)) == mask.sum()
    box = masks.mask_box(mask)
    if not mask.any():
        assert box is None
        return
    x1, y1, x2, y2 = (int(side) for side in box)
    assert mask[y1:y2, x1:x2].sum() == mask.sum()
    assert mask[y1].any()
    assert mask[y2 - 1].any()
    assert mask[:, x1].any()
    assert mask[:, x2 - 1].any()


@given(pictures, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_piece_is_encoded_as_the_whole_picture_would_be(piece, top, left, below, right):
    whole = np.pad(piece, ((top, below), (left, right)))
    assert masks.encode_mask(piece, top, left, *whole.shape) == masks.encode_mask(whole)


def test_a_piece_that_sticks_out_is_refused():
    with pytest.raises(ValueError, match="does not fit into 4 x 4"):
        masks.encode_mask(np.ones((2, 2), dtype=bool), top=3, left=0, height=4, width=4)
    # What begins above or left of the picture would wrap around to its other side.
    for top, left in ((-1, 0), (0, -1), (-2, -2)):
        with pytest.raises(ValueError, match="does not fit into 4 x 4"):
            masks.encode_mask(np.ones((2, 2), dtype=bool), top=top, left=left, height=4, width=4)


def test_the_box_of_an_encoded_mask_is_that_of_the_mask():
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = rng.random(rng.integers(1, 12, 2)) < rng.choice([0, 0.05, 0.3, 1])
        assert masks.rle_box(masks.encode_mask(mask)) == masks.mask_box(mask)


@given(pairs())
def test_iou_is_intersection_over_union(pair):
    first, second = pair
    iou = masks.mask_iou([masks.encode_mask(first)], [masks.encode_mask(second)])
    union = (first | second).sum()
    assert iou.shape == (1, 1)
    assert iou[0, 0] == pytest.approx((first & second).sum() / union if union else 0)


def test_iou_of_nothing_has_no_pairs():
    assert masks.mask_iou([], [masks.encode_mask(np.ones((2, 2), dtype=bool))]).shape == (0, 1)


@pytest.mark.parametrize("counts", ["", "5", "zzzz", "99999999", "\x7f", "PPYo1", "04"])
def test_damaged_counts_are_refused(counts):
    with pytest.raises(ValueError, match=r"mask's (runs|counts)"):
        masks.decode_mask(RLE(size=[4, 4], counts=counts))


def test_masks_of_other_sizes_are_not_compared():
    small, large = masks.encode_mask(np.ones((4, 5), dtype=bool)), masks.encode_mask(np.ones((5, 4), dtype=bool))
    for compare in (masks.mask_iou, masks.mask_overlap):
        with pytest.raises(ValueError, match="one size"):
            compare([small], [large])


def test_the_overlap_is_a_share_of_the_first_mask():
    whole, half = np.ones((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    half[:, :2] = True
    shares = masks.mask_overlap([masks.encode_mask(half), masks.encode_mask(whole)], [masks.encode_mask(half)])
    assert shares.tolist() == [[1.0], [0.5]]


def test_mask_prompt_logits_average_merged_pixels():
    mask = np.zeros((8, 8), dtype=bool)
    mask[:, :4] = True
    logits = masks.mask_prompt_logits(mask, 4)
    assert logits.shape == (4, 4)
    assert np.allclose(logits[:, 0], 10, atol=0.1)
    assert np.allclose(logits[:, 3], -10, atol=0.1)
    assert masks.mask_prompt_logits(np.ones((3, 7), dtype=bool), 16) == pytest.approx(10)


def test_stability_counts_pixels_between_the_thresholds():
    logits = np.array([[[2.0, 0.5], [-0.5, -2.0]], [[-5.0, -5.0], [-5.0, -5.0]], [[3.0, 3.0], [3.0, 3.0]]], dtype=np.float32)
    assert masks.stability_score(logits, 1.0).tolist() == pytest.approx([1 / 3, 1, 1])
    assert masks.stability_score(torch.from_numpy(logits), 1.0).tolist() == pytest.approx([1 / 3, 1, 1])


def test_box_iou_of_overlapping_apart_and_empty_boxes():
    iou = masks.box_iou([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [4, 4, 4, 4]])
    assert iou[0].tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert iou[3].tolist() == [0, 0, 0, 0]
    assert np.array_equal(iou, iou.T)


def test_the_better_of_two_overlapping_boxes_survives():
    iou = masks.box_iou([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    assert masks.non_maximum_suppression(iou, [0.5, 0.9, 0.7], 0.7).tolist() == [1, 2]
    assert masks.non_maximum_suppression(iou, [0.5, 0.9, 0.7], 0.95).tolist() == [1, 2, 0]
    assert masks.non_maximum_suppression(np.zeros((0, 0)), [], 0.5).tolist() == []


boxes = arrays(np.float32, st.tuples(st.integers(1, 12), st.just(4)), elements=st.integers(0, 20).map(float))


@given(boxes, st.data())
def test_suppression_keeps_no_close_pair_and_drops_nothing_without_a_better_neighbour(corners, data):
    corners[:, 2:] += corners[:, :2] + 1
    scores = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(corners), max_size=len(corners))))
    iou = masks.box_iou(corners)
    kept = masks.non_maximum_suppression(iou, scores, 0.5)
    assert all(iou[a, b] <= 0.5 for a in kept for b in kept if a != b)
    for index in set(range(len(corners))) - set(kept.tolist()):
        assert any(iou[index, better] > 0.5 and scores[better] >= scores[index] for better in kept)
