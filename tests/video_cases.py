"""The golden video and stream cases: their frames, and a tracker that keeps what the golden data has of its steps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datagen.pam.front_end import FrontEnd
from datagen.pam.tracker import StepOutput, Tracker
from datagen.perceive.tracking import track_clip
from datagen.records import Frame, Prompt, Track

# Every case runs the whole clip through a 1024 px model: one video and one segment always, the rest where time is no matter.
CASES = ["video", "stream_1", *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.soak]) for name in ("stream_0", "stream_2"))]


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


@dataclass
class TrackedCase:
    """What this code made of one golden case, from its box on."""

    track: Track
    tracker: RecordingTracker
    width: int
    height: int


def read_cases(golden: Path) -> dict[str, dict[str, Any]]:
    cases = json.loads((golden / "cases.json").read_text())
    return {case["name"]: case for case in (cases["video"], *cases["stream"])}


def read_frames(golden: Path, case: dict[str, Any], size: int) -> tuple[list[Frame], int, int]:
    folder = golden / case["name"].split("_")[0]
    pictures = [Image.open(folder / name).convert("RGB") for name in case["frames"]]
    resized = [Frame(index, index / 4, np.asarray(picture.resize((size, size)))) for index, picture in enumerate(pictures)]
    return resized, *pictures[0].size


def track_case(golden: Path, front_end: FrontEnd, case: dict[str, Any]) -> TrackedCase:
    clip, width, height = read_frames(golden, case, front_end.image_size)
    assert case["labels"] is None
    tracker = RecordingTracker(front_end)
    [track] = track_clip(tracker, clip, [{0: Prompt(box=tuple(case["box_or_points"]))}], len(clip), width, height)
    return TrackedCase(track, tracker, width, height)
