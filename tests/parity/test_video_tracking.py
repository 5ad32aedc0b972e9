"""Tracking against numbers recorded from the PAM reference: masks, scores, decoder features and tokens of every frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from datagen.job import ModelOptions
from datagen.masks import decode_mask
from datagen.pam.checkpoint import resolve_model
from datagen.pam.front_end import FrontEnd, load_front_end
from datagen.pam.tracker import StepOutput, Tracker
from datagen.perceive.tracking import handover_prompt, track_clip
from datagen.records import Frame, Prompt, Track, TrackFrame

# Every case runs the whole clip through a 1024 px model: one video and one segment always, the rest where time is no matter.
CASES = ["video", "stream_1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stream_0", "stream_2"))]


class RecordingTracker(Tracker):
    """A tracker that also keeps the slices of each step that the golden data has."""

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__(front_end)
        self.steps: dict[int, dict[str, np.ndarray]] = {}

    def condition(self, bank, features, frame_index, num_frames, parts) -> StepOutput:
        return self._record(frame_index, super().condition(bank, features, frame_index, num_frames, parts))

    def track(self, bank, features, frame_index, num_frames, reverse=False) -> StepOutput:
        return self._record(frame_index, super().track(bank, features, frame_index, num_frames, reverse))

    def _record(self, frame_index: int, step: StepOutput) -> StepOutput:
        decoded = step.decoded
        tensors = {
            "iou_pred": decoded.predicted_iou[0],
            "object_score_logits": decoded.object_score[0],
            "low_res_logits_token0_s8": decoded.logits[0, 0, ::8, ::8],
            "mask_tokens_out_all4_s8": decoded.tokens[0, :, ::8],
            "mid_image_embed_s": decoded.image_embed[0, ::16, ::8, ::8],
            "mid_mask_tokens_out": decoded.perceiver_tokens()[0],
        }
        self.steps[frame_index] = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
        return step

    def recorded(self, name: str, frames: list[int]) -> np.ndarray:
        return np.stack([self.steps[index][name] for index in frames])


@pytest.fixture(scope="module")
def front_end(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> FrontEnd:
    arrays = np.load(golden / "sam2_tiny_state_dict.npz")
    weights = tmp_path_factory.mktemp("sam2") / "sam2_tiny.pt"
    torch.save({"model": {key: torch.from_numpy(arrays[key]).float() for key in arrays.files}}, weights)
    options = ModelOptions(checkpoint=str(golden / "pam_tiny"), sam2=str(weights), sam2_config=str(golden / "sam2_tiny_config.json"))
    return load_front_end(resolve_model(options))


def read_cases(golden: Path) -> dict[str, dict[str, Any]]:
    cases = json.loads((golden / "cases.json").read_text())
    return {case["name"]: case for case in (cases["video"], *cases["stream"])}


def read_frames(golden: Path, case: dict[str, Any], size: int) -> tuple[list[Frame], int, int]:
    folder = golden / case["name"].split("_")[0]
    pictures = [Image.open(folder / name).convert("RGB") for name in case["frames"]]
    resized = [Frame(index, index / 4, np.asarray(picture.resize((size, size)))) for index, picture in enumerate(pictures)]
    return resized, *pictures[0].size


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def test_every_golden_clip_is_tested(golden):
    assert set(read_cases(golden)) == {"video", "stream_0", "stream_1", "stream_2"}


@pytest.mark.parametrize("name", CASES)
def test_tracks_equal_the_reference(golden, front_end, name):
    case, expected = read_cases(golden)[name], load_file(golden / "outputs" / f"{name}.safetensors")
    clip, width, height = read_frames(golden, case, front_end.image_size)
    assert case["labels"] is None
    tracker = RecordingTracker(front_end)
    [track] = track_clip(tracker, clip, [{0: Prompt(box=tuple(case["box_or_points"]))}], len(clip), width, height)
    check_steps(tracker, expected, len(clip), case["selected_frame_ids"])
    check_frames(track.frames, case, expected["masks_packed"], width, height)
    check_tokens(track, case, expected)


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


@pytest.mark.slow
def test_a_stream_hands_its_box_from_segment_to_segment_as_the_reference(golden, front_end):
    """End to end, three segments: each starts from the box that this code found in the one before."""
    cases = read_cases(golden)
    prompt = Prompt(box=tuple(cases["stream_0"]["box_in"]))
    for segment in range(3):
        case, packed = cases[f"stream_{segment}"], load_file(golden / "outputs" / f"stream_{segment}.safetensors")["masks_packed"]
        assert prompt.box == tuple(case["box_in"])
        clip, width, height = read_frames(golden, case, front_end.image_size)
        [track] = track_clip(Tracker(front_end), clip, [{0: prompt}], len(clip), width, height)
        check_frames(track.frames, case, packed, width, height)
        prompt = handover_prompt(track.frames[-1])
