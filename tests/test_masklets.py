"""Masklets, against pycocotools and against plain NumPy."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from corpora import make_clip
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from datagen import masklets
from datagen.assemble import track_row
from datagen.masklets import Masklet, masklet
from datagen.masks import encode_mask

clips = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))


def frames_of(masks: np.ndarray) -> list[dict]:
    """Frames of a track; those without a pixel have no mask."""
    return [
        {"frame_index": 3 + n, "timestamp_s": n / 4, "mask": encode_mask(mask) if mask.any() else None, "object_score": 1.0}
        for n, mask in enumerate(masks)
    ]


@given(clips, st.slices(6), st.data())
def test_it_is_the_array_that_was_encoded(masks, piece, data):
    found = masklet({"frames": frames_of(masks)}, size=masks.shape[1:])
    assert (found.shape, len(found), found.dtype, found.ndim) == (masks.shape, len(masks), masks.dtype, 3)
    assert np.array_equal(np.asarray(found), masks)
    assert np.array_equal(list(found), masks)
    assert isinstance(found[piece], Masklet)
    assert np.array_equal(np.asarray(found[piece]), masks[piece])
    assert found[piece].frame_indices.tolist() == (3 + np.arange(len(masks)))[piece].tolist()
    assert found[piece].timestamps_s.tolist() == (np.arange(len(masks)) / 4)[piece].tolist()
    position = data.draw(st.integers(-len(masks), len(masks) - 1))
    assert np.array_equal(found[position], masks[position])
    assert found.is_seen.tolist() == masks.any(axis=(1, 2)).tolist()


def test_a_row_of_a_clip_decodes_as_pycocotools_does():
    sample = make_clip(0, 1)
    row = track_row(sample, sample.tracks[0], "run")
    found = masklet(row)
    assert found.shape == (8, 30, 40)
    assert found.timestamps_s.tolist() == [2 + n / 4 for n in range(8)]
    assert [n for n, seen in enumerate(found.is_seen) if not seen] == [2, 5]
    for mask, frame in zip(found, row["frames"], strict=True):
        expected = coco.decode(frame["mask"]) if frame["mask"] else np.zeros((30, 40))
        assert mask.dtype == bool
        assert np.array_equal(mask, expected)


def test_nothing_is_decoded_before_it_is_asked_for(monkeypatch):
    decoded = []
    monkeypatch.setattr(masklets, "decode_mask", lambda rle: decoded.append(rle) or np.zeros((2, 2), dtype=bool))
    found = masklet(frames_of(np.ones((4, 2, 2), dtype=bool)))
    assert (found.shape, found[1:3].shape, repr(found)) == ((4, 2, 2), (2, 2, 2), "<Masklet of shape (4, 2, 2), seen in 4 frames>")
    assert decoded == []
    next(iter(found[::2]))
    assert len(decoded) == 1
    assert len(found[np.int64(-1)]) == 2
    assert len(decoded) == 2


def test_it_becomes_an_array_of_another_type_and_never_pretends_to_be_one():
    found = masklet(frames_of(np.eye(3, dtype=bool)[None]))
    assert np.asarray(found, dtype=np.uint8).sum() == 3
    assert np.stack([found, found]).shape == (2, 1, 3, 3)
    assert np.logical_and(found, True).sum() == 3
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(found, copy=False)
    with pytest.raises(IndexError):
        found[1]
    with pytest.raises(TypeError):
        found[1.5]


def test_an_object_that_is_never_seen_needs_the_size():
    unseen = frames_of(np.zeros((2, 3, 4), dtype=bool))
    assert not np.asarray(masklet(unseen, size=[3, 4])).any()
    with pytest.raises(ValueError, match=r"never seen.*give size=\(height, width\)"):
        masklet(unseen)


@pytest.mark.parametrize("size", [None, (3, 4)])
def test_masks_of_two_sizes_are_refused(size):
    first, second = frames_of(np.ones((1, 3, 4), dtype=bool)), frames_of(np.ones((1, 4, 3), dtype=bool))
    with pytest.raises(ValueError, match=r"found \[\(3, 4\), \(4, 3\)\]"):
        masklet(second if size else first + second, size=size)


def test_a_damaged_mask_is_an_error_when_it_is_decoded():
    frames = frames_of(np.ones((2, 3, 4), dtype=bool))
    frames[1]["mask"]["counts"] = "0"
    found = masklet(frames)
    assert found[0].all()
    with pytest.raises(ValueError, match="the mask's runs add up to 0 pixels"):
        found[1]


def test_the_worked_example_is_right():
    assert doctest.testmod(masklets) == (0, 9)
