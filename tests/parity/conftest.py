"""The golden data: tests/golden, or another set of the same structure named by DATAGEN_GOLDEN."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = Path(os.environ.get("DATAGEN_GOLDEN") or Path(__file__).parents[1] / "golden").resolve()
    if not (folder / "cases.json").is_file():
        pytest.fail(f"{folder} holds no golden data (no cases.json); DATAGEN_GOLDEN names a folder like tests/golden")
    return folder
