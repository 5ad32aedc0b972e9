"""Tracking against numbers recorded from the PAM reference: masks, scores, decoder features and tokens of every frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from video_cases import CASES, RecordingTracker, read_cases

from datagen.masks import decode_mask
from datagen.perceive.clips import handover_prompt
from datagen.records import Track, TrackFrame

pytestmark = [pytest.mark.vllm, pytest.mark.slow]  # in the process of test_text_video.py, which asks about the same tracks


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def test_every_golden_clip_is_tested(golden):
    assert set(read_cases(golden)) == {"video", "stream_0", "stream_1", "stream_2"}


@pytest.mark.parametrize("name", CASES)
def test_tracks_equal_the_reference(golden, tracked, name):
    case, expected, found = read_cases(golden)[name], load_file(golden / "outputs" / f"{name}.safetensors"), tracked(name)
    check_steps(found.tracker, expected, case["n_frames"], case["selected_frame_ids"])
    check_frames(found.track.frames, case, expected["masks_packed"], found.width, found.height)
    check_tokens(found.track, case, expected)


def check_steps(tracker: RecordingTracker, expected: dict[str, np.ndarray], num_frames: int, selected: list[int]) -> None:
    every = list(range(num_frames))
    assert sorted(tracker.steps) == every
    assert difference(tracker.recorded("iou_pred", every), expected["iou_pred"]) <= 1e-4
    assert difference(tracker.recorded("object_score_logits", every), expected["object_score_logits"]) <= 1e-4
    assert difference(tracker.recorded("mask_tokens_out_all4_s8", every), expected["mask_tokens_out_all4_s8"]) <= 1e-4
    assert difference(tracker.recorded("low_res_logits_token0_s8", every), expected["low_res_logits_token0_s8"]) <= 1e-3
    assert difference(tracker.recorded("mid_image_embed_s", every), expected["mid_image_embed_s"]) <= 1e-3
    assert difference(tracker.recorded("mid_mask_tokens_out", selected), expected["mid_mask_tokens_out_selected"]) <= 1e-4


def check_frames(found: list[TrackFrame], case: dict[str, Any], packed: np.ndarray, width: int, height: int) -> None:
    assert [item.frame_index for item in found] == list(range(case["n_frames"]))
    for item, bits, score, area in zip(found, packed, case["scores"], case["mask_areas"], strict=True):
        expected = np.unpackbits(bits)[: width * height].reshape(height, width).astype(bool)
        mask = np.zeros_like(expected) if item.mask is None else decode_mask(item.mask)
        assert np.count_nonzero(mask ^ expected) <= 4
        assert abs(np.count_nonzero(mask) - area) <= 4
        assert item.object_score == pytest.approx(score, abs=1e-4)
    assert handover_prompt(found[-1]).box == tuple(case["last_mask_bbox_xyxy"])


def check_tokens(track: Track, case: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    tokens = track.tokens
    assert tokens.frame_indices == case["selected_frame_ids"]
    assert difference(tokens.semantic[:, :, ::2], expected["sem_tokens_selected_s2"]) <= 5e-4
    assert difference(tokens.image_first[::64, ::4], expected["image_tokens_s_frame0"]) <= 5e-4
    assert difference(tokens.image_later[:, ::64, ::8], expected["image_tokens_s_others"]) <= 5e-4


@pytest.mark.soak
def test_a_stream_hands_its_box_from_segment_to_segment_as_the_reference(golden, tracked):
    """Each segment was tracked from the golden box, which is exactly the one that this code finds at the end of the one before."""
    cases = read_cases(golden)
    boxes = [tuple(cases["stream_0"]["box_in"])]
    boxes += [handover_prompt(tracked(f"stream_{segment}").track.frames[-1]).box for segment in range(3)]
    for segment in range(3):
        case = cases[f"stream_{segment}"]
        assert boxes[segment] == tuple(case["box_in"]) == tuple(case["box_or_points"])
