"""What several test folders share: the golden data, and one vLLM engine over its checkpoint for the whole session."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datagen.describe.step import DescribeStep
from datagen.job import Job, parse_job
from datagen.records import Asset, Prompt, Region, RegionTokens, Sample


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = Path(os.environ.get("DATAGEN_GOLDEN") or Path(__file__).parent / "golden").resolve()
    if not (folder / "cases.json").is_file():
        pytest.fail(f"{folder} holds no golden data (no cases.json); DATAGEN_GOLDEN names a folder like tests/golden")
    return folder


@pytest.fixture(scope="session")
def cases(golden: Path) -> dict[str, dict]:
    """Image cases by name."""
    return {case["name"]: case for case in json.loads((golden / "cases.json").read_text(encoding="utf-8"))["image"]}


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared language models go here, not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DATAGEN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def vllm_step(golden: Path, model_cache: Path) -> Iterator[DescribeStep]:
    """A describe step with vLLM over the golden checkpoint, in float32."""
    step = DescribeStep(golden_job(golden))
    step.setup()
    yield step
    step.teardown()


def golden_job(golden: Path, engine: str = "vllm", **describe: object) -> Job:
    short = {"label": 8, "definition": 12, "caption": 12, "description": 16}
    options = {"engine": engine, "device": "cpu", "dtype": "float32", "max_tokens": short, **describe}
    return parse_job({"model": {"checkpoint": str(golden / "pam_tiny")}, "describe": options})


def sample_with_tokens(num_regions: int, seed: int = 0, image_tokens: int = 1024, name: str = "sample") -> Sample:
    """A sample as the perceive step leaves it, with random tokens."""
    random = np.random.default_rng(seed)
    rle = {"size": [4, 4], "counts": "08"}
    regions = [Region(n, Prompt(box=(0, 0, 4, 4)), rle, (0.0, 0.0, 4.0, 4.0), 16, 0.9, 0.97, 3.0) for n in range(num_regions)]
    tokens = RegionTokens(
        random.standard_normal((num_regions, image_tokens, 1024), dtype=np.float32),
        random.standard_normal((num_regions, 16, 256), dtype=np.float32),
    )
    return Sample(0, Asset(name, f"{name}.png"), width=4, height=4, regions=regions, tokens=tokens)
