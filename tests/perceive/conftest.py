"""The golden model at 256 px, so that an image costs a fraction of a second; and the video step over real files, with a smaller one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tracker_model import FEW, Clips, small_front_end, write_video
from tracker_model import SIZE as VIDEO_SIZE

from datagen.decode.reader import VideoReader
from datagen.events import Note, log_event
from datagen.job import DecodeOptions, ModelOptions, PerceiveOptions
from datagen.pam.tracker import Tracker
from datagen.perceive.fake import FakeClipPerceiver
from datagen.perceive.pam_clips import PamClipPerceiver
from datagen.perceive.video import VideoPerceiveStep
from datagen.records import Asset, Prompt, Sample

GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = 256


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelOptions:
    config = json.loads((GOLDEN / "sam2_tiny_config.json").read_text())["resolved_model_config"]
    path = tmp_path_factory.mktemp("model") / "sam2_256.json"
    path.write_text(json.dumps({**config, "image_size": SIZE}))
    return ModelOptions(checkpoint=str(GOLDEN / "pam_tiny"), sam2_config=str(path))


@pytest.fixture
def sample() -> Callable[..., Sample]:
    def make(number: int = 0, prompts: list[Prompt] | None = None) -> Sample:
        with Image.open(GOLDEN / "images" / f"image_{number}.png") as image:
            pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE)))
            asset = Asset(asset_id=f"image_{number}", uri=f"image_{number}.png", prompts=prompts)
            return Sample(index=number, asset=asset, width=image.width, height=image.height, pixels=pixels)

    return make


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "shapes.mp4")


@pytest.fixture(scope="session")
def tracker() -> Tracker:
    return Tracker(small_front_end())


@pytest.fixture
def clips(video: Path, tracker: Tracker) -> Iterator[Clips]:
    """Runs a video through a step of its own; `decode` and `perceive` are options, `fake` takes the models away, `make` gives others."""
    steps = []

    def run(
        prompts=None,
        path: Path = video,
        resume=None,
        decode=None,
        fake=False,
        take=None,
        note: Note = log_event,
        make=None,
        dropped=None,
        problem="",
        **perceive,
    ) -> list[Sample]:
        options = PerceiveOptions.model_validate({"everything": FEW, **perceive})
        perceiver = FakeClipPerceiver(options, VIDEO_SIZE) if fake else (make or PamClipPerceiver)(tracker, options)
        reading = DecodeOptions.model_validate({"max_clip_s": 1.0, **(decode or {})})
        step = VideoPerceiveStep(lambda: perceiver, lambda size: VideoReader(reading, size), note)
        step.setup()
        steps.append(step)
        found = step.clips(Sample(0, Asset("v", str(path), "video", prompts, dropped=dropped or {}, problem=problem), resume=resume))
        return list(found) if take is None else [next(found) for _ in range(take)]

    yield run
    for step in steps:
        step.teardown()
