"""Clips to tracks: many objects, backward, vanish and return, hand-over, short clips. The shapes' masks themselves mean nothing here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tracker_model import HEIGHT, WIDTH, box_at, frames, small_front_end

from datagen.errors import PromptError
from datagen.masks import decode_mask, encode_mask, mask_box
from datagen.pam.tracker import Tracker
from datagen.perceive.clips import handover_prompt
from datagen.perceive.tracking import ClipTracking, selected_frames, track_clip
from datagen.records import Frame, Prompt, Track

NUM_FRAMES = 12


@pytest.fixture(scope="module")
def tracker() -> Tracker:
    return Tracker(small_front_end())


def track(tracker: Tracker, objects: list[dict[int, Prompt]], num_frames: int = NUM_FRAMES, **options) -> list[Track]:
    return track_clip(tracker, frames(num_frames), objects, num_frames, WIDTH, HEIGHT, **options)


def block(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


OBJECTS = [
    {0: Prompt(box=box_at(0, 0))},
    {5: Prompt(points=[(150, 100)], labels=[1])},
    {0: Prompt(mask=encode_mask(block(80, 100, 120, 136)))},
    {0: Prompt(box=box_at(0, 1))},
    {5: Prompt(box=box_at(5, 2), points=[(100, 100), (10, 10)], labels=[1, 0])},
    {2: Prompt(box=box_at(2, 2)), 8: Prompt(box=box_at(8, 2))},
    {0: Prompt(box=box_at(0, 2), mask=encode_mask(block(80, 100, 120, 136)))},
]


def assert_same(first: Track, second: Track) -> None:
    for one, other in zip(first.frames, second.frames, strict=True):
        assert (one.frame_index, one.timestamp_s) == (other.frame_index, other.timestamp_s)
        assert one.object_score == pytest.approx(other.object_score, abs=1e-4)
        assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-4)
        assert (one.mask is None) == (other.mask is None)
        if one.mask is not None:
            assert np.count_nonzero(decode_mask(one.mask) ^ decode_mask(other.mask)) <= 4
    for name in ("image_first", "image_later", "semantic"):
        np.testing.assert_allclose(getattr(first.tokens, name), getattr(second.tokens, name), atol=5e-4)


def test_all_objects_in_one_pass_equal_one_at_a_time(tracker):
    together = track(tracker, OBJECTS)
    for index, prompts in enumerate(OBJECTS):
        [alone] = track(tracker, [prompts])
        assert_same(together[index], alone)
    in_pairs = track(tracker, OBJECTS, objects_per_call=2)
    for one, other in zip(together, in_pairs, strict=True):
        assert_same(one, other)
    # The test would see a mix-up: no two objects answer alike.
    scores = {tuple(round(item.object_score, 3) for item in found.frames) for found in together}
    assert len(scores) == len(OBJECTS)


def test_each_image_is_encoded_once_for_all_objects(tracker, monkeypatch):
    encoded = []
    pyramid = tracker.front_end.pyramid
    monkeypatch.setattr(tracker.front_end, "pyramid", lambda pixels: encoded.append(len(pixels)) or pyramid(pixels))
    track(tracker, [OBJECTS[0], OBJECTS[2], OBJECTS[3]])
    assert encoded == [1] * NUM_FRAMES
    encoded.clear()
    track(tracker, [{NUM_FRAMES - 1: Prompt(box=box_at(11))}])
    assert encoded == [1] * NUM_FRAMES


def test_tracks_reach_backward_and_forward_from_the_prompted_frame(tracker):
    prompts = [{5: Prompt(box=box_at(5))}]
    [whole] = track(tracker, prompts)
    assert [item.frame_index for item in whole.frames] == list(range(NUM_FRAMES))
    assert [item.timestamp_s for item in whole.frames] == [index / 4 for index in range(NUM_FRAMES)]
    assert whole.tokens.frame_indices[0] == 0
    [forward] = track(tracker, prompts, backward=False)
    assert [item.frame_index for item in forward.frames] == list(range(5, NUM_FRAMES))
    assert forward.tokens.frame_indices == selected_frames(5, NUM_FRAMES)


def test_prompts_on_two_frames_are_the_same_in_any_order(tracker):
    early, late = OBJECTS[5][2], OBJECTS[5][8]
    [expected] = track(tracker, [{2: early, 8: late}])
    [found] = track(tracker, [{8: late, 2: early}])
    assert_same(found, expected)
    assert [item.frame_index for item in found.frames] == list(range(NUM_FRAMES))
    [forward] = track(tracker, [{8: late, 2: early}], backward=False)
    assert [item.frame_index for item in forward.frames] == list(range(2, NUM_FRAMES))
    assert forward.tokens.frame_indices[0] == 2


def test_objects_prompted_on_two_frames_are_each_followed_from_their_own(tracker):
    objects = [{7: Prompt(box=box_at(7, 1))}, {3: Prompt(box=box_at(3))}]
    together = track(tracker, objects, backward=False)
    for found, prompts in zip(together, objects, strict=True):
        [alone] = track(tracker, [prompts], backward=False)
        assert_same(found, alone)
        assert [item.frame_index for item in found.frames] == list(range(min(prompts), NUM_FRAMES))


def test_results_come_while_frames_come_and_only_frames_before_the_last_prompt_wait(tracker):
    tracking = ClipTracking(tracker, [{0: Prompt(box=box_at(0))}, {3: Prompt(box=box_at(3, 1))}], 6, WIDTH, HEIGHT)
    found = [[(item.object_index, item.frame_index) for item in tracking.push(frame)] for frame in frames(6)]
    assert found[:3] == [[], [], []]
    assert sorted(found[3]) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert found[4:] == [[(0, 4), (1, 4)], [(0, 5), (1, 5)]]


def test_an_object_that_vanishes_has_no_mask_until_it_returns(tracker, monkeypatch):
    head = tracker.segmenter.sam_mask_decoder.pred_obj_score_head
    absent = [False] * 4 + [True] * 3 + [False] * 5
    calls = iter(absent)
    handle = head.register_forward_hook(lambda _module, _inputs, score: -score.abs() if next(calls) else score.abs())
    try:
        [found] = track(tracker, [OBJECTS[0]])
    finally:
        handle.remove()
    assert [item.mask is None for item in found.frames] == [item.box_xyxy is None for item in found.frames] == absent
    assert [item.object_score <= 0 for item in found.frames] == absent
    assert found.tokens.frame_indices == selected_frames(0, NUM_FRAMES)  # absent frames keep their place, as in the reference
    assert handover_prompt(found.frames[5]) is None
    assert handover_prompt(found.frames[7]) == Prompt(box=found.frames[7].box_xyxy, source="handover")


@pytest.mark.parametrize("kind", ["box", "mask", "box+mask"])
def test_tracks_are_handed_over_from_clip_to_clip(tracker, kind):
    overlap = 1 if kind == "mask" else 0
    prompt, last = Prompt(box=box_at(0)), None
    for start in (0, 4 - overlap, 8 - 2 * overlap):
        [found] = track_clip(tracker, frames(4, start), [{0: prompt}], 4, WIDTH, HEIGHT)
        if kind == "mask" and last is not None:
            assert found.frames[0].mask == last.mask
            assert found.frames[0].box_xyxy == last.box_xyxy
            assert (found.frames[0].object_score, found.frames[0].predicted_iou) == (10, 1)
        last = found.frames[-1]
        assert last.box_xyxy == mask_box(decode_mask(last.mask))
        prompt = handover_prompt(last, kind)
        assert prompt.type == kind


def test_selected_frames_follow_the_reference_and_repeat_in_short_clips():
    assert selected_frames(0, 24) == [0, 1, 2, 4, 5, 7, 8, 10, 12, 13, 15, 16, 18, 19, 21, 23]
    assert selected_frames(0, 16) == list(range(16))
    assert selected_frames(0, 5) == [0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    assert selected_frames(0, 1) == [0] * 16
    assert selected_frames(7, 8) == [7] * 16


@pytest.mark.parametrize("num_frames", [1, 2, 5, 15, 16, 17])
def test_every_clip_gives_the_language_model_16_frames(tracker, num_frames):
    [found] = track(tracker, [OBJECTS[0]], num_frames)
    tokens = found.tokens
    assert tokens.frame_indices == selected_frames(0, num_frames)
    assert tokens.image_first.shape == (16, 1024)  # 128 px: 8 x 8 features, a quarter and a sixteenth of that in tokens
    assert tokens.image_later.shape == (15, 4, 1024)
    assert tokens.semantic.shape == (16, 16, 256)
    for slot in range(2, 16):
        same = tokens.frame_indices[slot] == tokens.frame_indices[slot - 1]
        assert np.array_equal(tokens.semantic[slot], tokens.semantic[slot - 1]) == same


def test_a_tiny_mask_prompt_survives_the_models_size(tracker):
    [found] = track_clip(tracker, frames(2), [{0: Prompt(mask=encode_mask(block(70, 40, 71, 41)))}], 2, WIDTH, HEIGHT)
    assert found.frames[0].object_score == 10
    assert found.frames[0].box_xyxy == (70, 40, 71, 41)


def test_bfloat16_tracks_are_near_those_of_float32(tracker, monkeypatch):
    [exact] = track(tracker, [OBJECTS[0]], 4)
    monkeypatch.setattr(tracker.front_end, "dtype", torch.bfloat16)
    [found] = track(tracker, [OBJECTS[0]], 4)
    assert found.tokens.is_bfloat16
    assert found.tokens.semantic.dtype == np.int16
    semantic = torch.from_numpy(found.tokens.semantic).view(torch.bfloat16).float().numpy()
    assert np.abs(semantic - exact.tokens.semantic).mean() < 0.05
    for one, other in zip(found.frames, exact.frames, strict=True):
        assert one.object_score == pytest.approx(other.object_score, abs=0.2)


@pytest.mark.parametrize(
    ("prompts", "code"),
    [
        ({}, "prompt_empty"),
        ({NUM_FRAMES: Prompt(box=box_at(0))}, "prompt_frame"),
        ({-1: Prompt(box=box_at(0))}, "prompt_frame"),
        ({0: Prompt()}, "prompt_empty"),
        ({4: Prompt(points=[(9, 9)], labels=[0])}, "prompt_negative"),
        ({4: Prompt(points=[(9, 9)], labels=[0]), 6: Prompt(box=box_at(6))}, "prompt_negative"),
        ({3: Prompt(box=(900, 0, 990, 40))}, "prompt_outside"),
        ({3: Prompt(mask=encode_mask(np.ones((4, 4), dtype=bool)))}, "prompt_mask_size"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused_before_any_frame(tracker, prompts, code):
    with pytest.raises(PromptError) as refusal:
        ClipTracking(tracker, [OBJECTS[0], prompts], NUM_FRAMES, WIDTH, HEIGHT)
    assert refusal.value.code == code


def test_frames_missing_out_of_order_or_of_another_size_are_refused(tracker):
    clip = frames(3)
    with pytest.raises(ValueError, match="expected frame 0 of 3"):
        track_clip(tracker, clip[1:], [OBJECTS[0]], 3, WIDTH, HEIGHT)
    with pytest.raises(ValueError, match="expected frame 2 of 2"):
        track_clip(tracker, clip, [OBJECTS[0]], 2, WIDTH, HEIGHT)
    with pytest.raises(ValueError, match="said to have 4 frames, but 3 came"):
        track_clip(tracker, clip, [OBJECTS[0]], 4, WIDTH, HEIGHT)
    with pytest.raises(ValueError, match=r"\(128, 128, 3\) uint8"):
        track_clip(tracker, [Frame(0, 0.0, np.zeros((64, 64, 3), np.uint8))], [OBJECTS[0]], 1, WIDTH, HEIGHT)


def test_a_clip_without_objects_has_no_tracks(tracker):
    assert track(tracker, [], 3) == []


def test_read_only_pixels_are_taken(tracker, recwarn):
    pixels = frames(1)[0].pixels.copy()
    pixels.flags.writeable = False
    track_clip(tracker, [Frame(0, 0.0, pixels)], [OBJECTS[0]], 1, WIDTH, HEIGHT)
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]
