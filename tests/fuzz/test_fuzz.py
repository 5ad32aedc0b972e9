"""A slice of the fuzzing: `python tests/fuzz/fuzz.py --cases 10000` does all of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fuzz import KINDS, fuzz


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_any_bytes_end_in_rows_or_in_datagens_own_errors(name: str, tmp_path: Path) -> None:
    seed = time.time_ns() % 100_000
    print(f"seed {seed}")
    found = fuzz(name, {"images": 300, "videos": 60, "manifests": 60, "jobs": 120}[name], seed, tmp_path / name)
    assert found.problem is None, found.problem
    assert len(found.outcomes) > 1


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_ten_thousand_cases(name: str, tmp_path: Path) -> None:
    found = fuzz(name, round(10_000 * KINDS[name].share), 0, tmp_path / name)
    assert found.problem is None, found.problem
