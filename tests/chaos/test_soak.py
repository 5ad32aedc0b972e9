"""Two minutes of the soak: drivers, workers and raylets of a Ray of three are killed, and nothing is lost or there twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent / "soak.py"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_two_minutes_under_fire() -> None:
    # A process of its own: it starts a Ray of several raylets, and changes its environment.
    run = subprocess.run([sys.executable, str(SOAK), "--minutes", "2", "--kills", "4", "--json"], capture_output=True, text=True)

    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    report = json.loads(run.stdout)
    print(report)
    assert (report["losses"], report["duplicates"], report["violations"]) == (0, 0, [])
    assert report["samples"] >= 160
    assert report["kills"]["raylet"] >= 1
    assert sum(report["kills"].values()) >= 4
