"""The golden model at 256 px, so that an image costs a fraction of a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datagen.job import ModelOptions
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
