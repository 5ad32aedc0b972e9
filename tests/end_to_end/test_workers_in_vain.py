"""Workers that never get as far as working: the run ends with the cause, and says meanwhile what it waits for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.ray

# Runs in every Python that is started, and does something only in Ray's workers: before datagen is imported there.
BREAKS = """
import os, sys
if any("default_worker" in argument for argument in getattr(sys, "orig_argv", ())):
    class Breaks:
        def find_spec(self, name, path, target=None):
            if name == "datagen.guard":
                print("libfoo.so.1: cannot open shared object file", file=sys.stderr, flush=True)
                os._exit(127)
    sys.meta_path.insert(0, Breaks())
"""
JOB = """
version: 1
perceive: {engine: fake, batch_size: 2}
describe: {engine: fake}
run: {object_store_gib: 0.1, deaths_timeout_s: 15}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAKS)
    (tmp_path / "p").mkdir()
    for index in range(4):
        Image.new("RGB", (32, 24), (index, 9, 9)).save(tmp_path / "p" / f"{index}.png")
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def start(place: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "datagen", "run", "job.yaml", "-i", "p", "-o", "out", *more]
    environment = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_workers_that_die_before_they_report_end_the_run_with_their_last_words(place: Path) -> None:
    run = start(place, PYTHONPATH=str(place / "site"))
    heard = ""
    heartbeat = place / "out" / "_datagen" / "heartbeat.json"
    while run.poll() is None:
        if heartbeat.exists():
            heard = json.loads(heartbeat.read_text())["waiting"] or heard
        time.sleep(0.2)
    _, said = run.communicate()
    said = " ".join(said.split())
    assert run.returncode == 3, said
    assert "workers die again and again" in said
    assert "it said: libfoo.so.1: cannot open shared object file" in said
    assert "Traceback" not in said
    assert heard.startswith("waits for workers: "), "datagen status shows it while it lasts"
    assert "libfoo.so.1" in heard
    events = [json.loads(line) for path in (place / "out" / "_datagen" / "logs").glob("*.jsonl") for line in path.open()]
    assert [event["event"] for event in events][-2:] == ["waiting", "run_ended"]


def test_a_job_that_never_fits_this_machine_is_refused_at_once(place: Path) -> None:
    run = start(place, "--set", "describe.pool.num_cpus=100")
    _, said = run.communicate()
    said = " ".join(said.split())
    assert run.returncode == 2, said
    assert "describe asks 100 CPU for each worker, which fits on no node" in said
    assert "Traceback" not in said
