"""SIGTERM while the main thread is inside native code: the run leaves after its grace, and a rerun goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from datagen.check import check_dataset
from datagen.leaver import Leaver

PATIENCE_S = 120.0

# A main thread that waits for a lock in C for ever: no signal interrupts that. CDLL lets other threads run meanwhile, PyDLL does not.
STUCK = """
import ctypes, sys
from datagen.cli import main
from datagen import graph

library, calls = getattr(ctypes, sys.argv.pop(1))(None), []
assemble = graph.assemble

def stuck(*arguments):
    calls.append(1)
    if len(calls) == 2:
        print("stuck", file=sys.stderr, flush=True)
        lock = ctypes.create_string_buffer(256)
        library.pthread_mutex_lock(lock)
        library.pthread_mutex_lock(lock)
    return assemble(*arguments)

graph.assemble = stuck
main()
"""


def job(folder: Path, **run: object) -> Path:
    path = folder / "job.yaml"
    options = {"executor": "inprocess", "grace_s": 1, **run}
    engines = {"perceive": {"engine": "fake", "batch_size": 1}, "describe": {"engine": "fake"}, "model": {"checkpoint": "tiny"}}
    path.write_text(json.dumps({"version": 1, "name": "j", "run": options, "write": {"assets_per_part": 1}, **engines}))
    return path


def start(folder: Path, library: str, **run: object) -> subprocess.Popen[str]:
    inputs = ["-i", str(Path(__file__).parents[2] / "samples" / "media"), "-o", str(folder / "out"), "--limit", "4"]
    command = [sys.executable, "-c", STUCK, library, "run", str(job(folder, **run)), *inputs]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_log(folder: Path, word: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not any(word in log.read_text() for log in folder.glob("out/_datagen/logs/*.log")):
        assert time.monotonic() < until, f"{word} was never said"
        time.sleep(0.05)


@pytest.mark.parametrize(("library", "code"), [("CDLL", 130), ("PyDLL", -signal.SIGKILL)])
def test_a_run_in_native_code_leaves_after_its_grace(library: str, code: int, tmp_path: Path) -> None:
    run = start(tmp_path, library)
    wait_for_log(tmp_path, "stuck")
    children = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == code
    if code == 130:
        assert "what is committed stays" in said + "".join(log.read_text() for log in tmp_path.glob("out/_datagen/logs/*.log"))
    gone, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
    assert gone
    assert not alive
    again = subprocess.run([sys.executable, "-m", "datagen", *run.args[4:]], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    report = check_dataset(str(tmp_path / "out"))
    assert report.ok
    assert report.num_assets >= 4


def test_a_used_up_budget_in_native_code_leaves_with_its_own_code(tmp_path: Path) -> None:
    run = start(tmp_path, "CDLL", budget={"deadline": "3s"})
    run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 5


def test_a_process_that_hears_in_time_is_left_alone() -> None:
    code = """
import signal, time
from datagen.leaver import watched
with watched(1.0, lambda: print("left", flush=True)) as leaver:
    signal.signal(signal.SIGTERM, lambda *_: leaver.heard())
    signal.raise_signal(signal.SIGTERM)
    time.sleep(3)
print("whole")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.stdout == "whole\n"


def test_the_watcher_ends_with_its_process() -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    leaver = Leaver(60.0, lambda: None)
    watcher = psutil.Process(leaver._process.pid)
    assert watcher.is_running()
    leaver.close()
    assert not watcher.is_running()
    assert signal.set_wakeup_fd(before) == before
