"""What several test folders share: the golden data, and one vLLM engine over its checkpoint for the whole session."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from describe_helpers import golden_job
from hypothesis import settings

from datagen.describe.step import DescribeStep

# How long an example takes says something about the machine and its neighbours; pytest-timeout ends what hangs.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


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
    step = DescribeStep(golden_job(golden, max_model_len=6144))
    step.setup()
    yield step
    step.teardown()
