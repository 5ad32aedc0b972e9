"""What the parity tests share: the golden front end, and the golden clips, which take longest and are tracked once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from video_cases import TrackedCase, read_cases, track_case

from datagen.job import ModelOptions
from datagen.pam.checkpoint import resolve_model
from datagen.pam.front_end import FrontEnd, load_front_end


@pytest.fixture(scope="session")
def front_end(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> FrontEnd:
    """The golden checkpoint through the public door, SAM 2 from an official-style .pt."""
    arrays = np.load(golden / "sam2_tiny_state_dict.npz")
    weights = tmp_path_factory.mktemp("sam2") / "sam2_tiny.pt"
    torch.save({"model": {key: torch.from_numpy(arrays[key]).float() for key in arrays.files}}, weights)
    options = ModelOptions(checkpoint=str(golden / "pam_tiny"), sam2=str(weights), sam2_config=str(golden / "sam2_tiny_config.json"))
    return load_front_end(resolve_model(options))


@pytest.fixture(scope="session")
def tracked(golden: Path, front_end: FrontEnd) -> Callable[[str], TrackedCase]:
    """A golden case by name, tracked at its first use."""
    cases = read_cases(golden)
    return cache(lambda name: track_case(golden, front_end, cases[name]))
