"""The tracker against SAM 2's own video predictor, which keeps everything it has ever seen, and its memory bank's bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tracker_model import HEIGHT, SIZE, WIDTH, box_at, frames, picture, small_front_end

from datagen.masks import decode_mask, encode_mask, mask_box
from datagen.pam.tracker import MemoryBank, ObjectMemory, Tracker, TrackPrompts
from datagen.perceive.tracking import remember, track_clip
from datagen.records import Frame, Prompt

NUM_FRAMES = 20


@pytest.fixture(scope="module")
def tracker() -> Tracker:
    return Tracker(small_front_end())


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("video")
    for index in range(NUM_FRAMES):
        picture(index).save(folder / f"{index:05d}.jpg", quality=95)
    return str(folder)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


CASES = {
    "box_first_frame": {0: Prompt(box=box_at(0))},
    "points_mid_clip": {9: Prompt(points=[(75, 48), (5, 140)], labels=[1, 0])},
    "mask": {3: Prompt(mask=encode_mask(disc(52, 48, 20)))},
    "two_frames": {6: Prompt(box=box_at(6)), 14: Prompt(points=[(96, 48)], labels=[1])},
    "last_frame_box_and_point": {19: Prompt(box=box_at(19), points=[(116, 48)], labels=[1])},
}


def official(predictor, folder: str, prompts: dict[int, Prompt]) -> dict[int, tuple[np.ndarray, float]]:
    """Frame index -> (mask, object score), by the official package's own way: everything in memory, backward, then forward."""
    state = predictor.init_state(folder)
    for index, prompt in prompts.items():
        if prompt.mask is not None:
            predictor.add_new_mask(state, index, 1, decode_mask(prompt.mask))
        else:
            points, labels = (prompt.points, prompt.labels) if prompt.points else (None, None)
            predictor.add_new_points_or_box(state, index, 1, points=points, labels=labels, box=prompt.box)
    found = {}
    for reverse in (True, False):
        for index, _, masks in predictor.propagate_in_video(state, reverse=reverse):
            outputs = state["output_dict_per_obj"][0]
            out = outputs["cond_frame_outputs"].get(index) or outputs["non_cond_frame_outputs"][index]
            found[index] = ((masks[0, 0] > 0).numpy(), float(out["object_score_logits"]))
    return found


@pytest.mark.parametrize("name", CASES)
def test_tracks_equal_the_official_video_predictor(tracker, video, name):
    prompts = CASES[name]
    expected = official(tracker.segmenter, video, prompts)
    [track] = track_clip(tracker, read_jpegs(video), [prompts], NUM_FRAMES, WIDTH, HEIGHT)
    assert [item.frame_index for item in track.frames] == sorted(expected) == list(range(NUM_FRAMES))
    # The official package rounds all memory to bfloat16; that of tracked frames stays float32 here, as in the PAM reference. A given
    # mask is stored as it came, where the official predictor returns it through 4 times fewer pixels.
    score_tolerance, pixel_tolerance = (0.02, 0.01 * WIDTH * HEIGHT) if name == "mask" else (0.003, 4)
    for item in track.frames:
        mask, score = expected[item.frame_index]
        assert item.object_score == pytest.approx(score, abs=score_tolerance)
        assert np.count_nonzero(decode_mask(item.mask) ^ mask) <= pixel_tolerance


def test_what_is_told_of_a_given_mask_is_what_the_decoder_says_to_it_with_its_box(tracker, video):
    """From a mask alone SAM 2's decoder decodes something else, which it needs for its memory only."""
    frames, mask = read_jpegs(video)[:1], encode_mask(disc(52, 48, 20))
    box = mask_box(decode_mask(mask))
    prompts = [Prompt(mask=mask), Prompt(mask=mask, box=box), Prompt(box=box)]
    given, placed, by_box = track_clip(tracker, frames, [{0: prompt} for prompt in prompts], 1, WIDTH, HEIGHT)
    for name in ("image_first", "image_later", "semantic"):
        assert np.allclose(getattr(given.tokens, name), getattr(placed.tokens, name), atol=1e-5)
        assert not np.allclose(getattr(given.tokens, name), getattr(by_box.tokens, name), atol=1e-3)
    assert given.frames[0].mask == mask != placed.frames[0].mask


@pytest.mark.parametrize("points", [[(150, 120)], [(110, 48), (20, 20)]])
def test_clicks_outside_correct_the_tracked_mask_as_the_official_video_predictor_does(tracker, video, points):
    box, at, labels = box_at(0), 8, [0] * len(points)
    predictor = tracker.segmenter
    predictor.add_all_frames_to_correct_as_cond = True
    try:
        state = predictor.init_state(video)
        predictor.add_new_points_or_box(state, 0, 1, box=box)
        tracked = {index: (masks[0, 0] > 0).numpy() for index, _, masks in predictor.propagate_in_video(state)}
        predictor.add_new_points_or_box(state, at, 1, points=points, labels=labels)
        corrected = {index: (masks[0, 0] > 0).numpy() for index, _, masks in predictor.propagate_in_video(state, start_frame_idx=at)}
    finally:
        predictor.add_all_frames_to_correct_as_cond = False
    prompts = {0: Prompt(box=box), at: Prompt(points=points, labels=labels)}
    [track] = track_clip(tracker, read_jpegs(video), [prompts], NUM_FRAMES, WIDTH, HEIGHT)

    found = [decode_mask(item.mask) for item in track.frames]
    expected = [corrected.get(index, tracked[index]) for index in range(NUM_FRAMES)]
    # Memory of tracked frames is rounded to bfloat16 by the official package.
    assert max(np.count_nonzero(one ^ other) for one, other in zip(found, expected, strict=True)) <= 4
    assert np.count_nonzero(found[at] ^ tracked[at]) > 8  # the clicks do something


def test_what_is_remembered_of_an_object_finds_it_as_in_one_clip(tracker, video):
    whole = read_jpegs(video)
    given = encode_mask(disc(40, 48, 20))
    [expected] = track_clip(tracker, whole, [{0: Prompt(mask=given)}], NUM_FRAMES, WIDTH, HEIGHT)
    memory = ObjectMemory(remember(tracker, tracker.encode(torch.from_numpy(whole[0].pixels.copy())), Prompt(mask=given), WIDTH, HEIGHT))
    later = [frame._replace(frame_index=frame.frame_index - 1) for frame in whole[1:]]
    other = {2: Prompt(box=box_at(3, 1))}

    found, beside = track_clip(tracker, later, [{}, other], NUM_FRAMES - 1, WIDTH, HEIGHT, memories={0: memory})

    assert [item.mask for item in found.frames] == [item.mask for item in expected.frames[1:]]
    assert [item.object_score for item in found.frames] == pytest.approx([item.object_score for item in expected.frames[1:]], abs=1e-4)
    [alone] = track_clip(tracker, later, [other], NUM_FRAMES - 1, WIDTH, HEIGHT)
    assert [item.mask for item in beside.frames] == [item.mask for item in alone.frames]
    assert found.tokens.frame_indices[0] == 0


def read_jpegs(folder: str) -> list[Frame]:
    pictures = [Image.open(f"{folder}/{index:05d}.jpg").convert("RGB") for index in range(NUM_FRAMES)]
    return [Frame(index, index / 4, np.asarray(picture.resize((SIZE, SIZE)))) for index, picture in enumerate(pictures)]


def test_memory_bank_holds_no_more_than_its_reach_however_long_the_clip(tracker):
    """The bank after 40 frames is as large as after 20: prompted frame, last feature maps, last object pointers."""
    sizes = []
    bank, features = MemoryBank(), tracker.encode(torch.from_numpy(frames(1)[0].pixels.copy()))
    prompts = TrackPrompts(points=torch.tensor([[[30.0, 40.0]]]), labels=torch.tensor([[1]], dtype=torch.int32))
    tracker.condition(bank, features, 0, 1000, [([0], prompts)])
    for index in range(1, 41):
        tracker.track(bank, features, index, 1000)
        bank.forget([index + 1], tracker.feature_reach, tracker.pointer_reach)
        sizes.append((len(bank.outputs["non_cond_frame_outputs"]), stored_bytes(bank)))
    assert sizes[19] == sizes[39]
    assert sizes[39][0] == tracker.pointer_reach == 15
    assert list(bank.outputs["cond_frame_outputs"]) == [0]
    with_features = [index for index, out in bank.outputs["non_cond_frame_outputs"].items() if "maskmem_features" in out]
    assert with_features == [39, 40]  # this model's num_maskmem is 3: the prompted frame and two more


def stored_bytes(bank: MemoryBank) -> int:
    """Bytes of every tensor's storage, each once: a view of a larger tensor counts in full."""
    frames_stored = [out for frames_of_kind in bank.outputs.values() for out in frames_of_kind.values()]
    tensors = [value for out in frames_stored for values in out.values() for value in (values if isinstance(values, list) else [values])]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())
