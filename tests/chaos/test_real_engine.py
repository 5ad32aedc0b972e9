"""The same promises with the real models: SAM 2 and vLLM under SIGKILL."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from kills import Run, descendants, gone, parts, title

from datagen.check import check_dataset

ROOT = Path(__file__).parents[2]
COPIES = 3  # of the dozen samples
# Few samples in the engine at a time and a pause before each: a worker must live long enough to be hit in the middle of its work.
OPTIONS = ("describe.languages=[en]", "describe.concurrent_batches=2", "perceive.batch_size=2")
SLOW = {"worker.perceive": {"delay_s": 0.2}, "worker.describe": {"delay_s": 0.2}}

RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # they notice later, and hold nothing of ours

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]


def make_input(folder: Path) -> tuple[Path, set[str]]:
    """A manifest with every sample several times, and the ids in it."""
    lines = (ROOT / "samples" / "manifest-mixed.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines] * COPIES
    rows = [row | {"uri": str(ROOT / "samples" / row["uri"]), "asset_id": f"{n:04x}"} for n, row in enumerate(samples)]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return manifest, {row["asset_id"] for row in rows}


def start(manifest: Path, output: Path, assets_per_part: int, *more: str) -> Run:
    options = [word for option in (*OPTIONS, f"write.assets_per_part={assets_per_part}", *more) for word in ("--set", option)]
    return Run(ROOT / "pipelines" / "demo.yaml", manifest, output, "--model", "tiny", *options, faults=SLOW)


def engine_cores(run: Run) -> list[psutil.Process]:
    return [process for process in descendants(run.process.pid) if "EngineCore" in title(process)]


def kill_driver(run: Run) -> None:
    """Kill it, and see that neither its workers nor their engines outlive it."""
    family = [process for process in descendants(run.process.pid) if not title(process).startswith(RAYS_OWN)]
    assert run.process.poll() is None
    run.kill_driver()
    assert gone(family, timeout_s=30) == []


@pytest.mark.timeout(1800)
def test_three_runs_with_killed_workers_and_drivers(tmp_path: Path) -> None:
    manifest, expected = make_input(tmp_path)
    output, seed = tmp_path / "corpus", time.time_ns() % 10_000
    rng = random.Random(seed)
    print(f"seed {seed}")

    run = start(manifest, output, assets_per_part=4)
    run.wait_for_workers("perceive", "describe")
    time.sleep(rng.uniform(0, 6))  # perceive loads, or works; the engine loads
    assert run.kill_worker("perceive", rng)
    run.wait_for_parts(1, timeout=300)
    time.sleep(rng.uniform(0, 2))
    kill_driver(run)

    run = start(manifest, output, assets_per_part=3)
    run.wait_for_parts(len(parts(output)) + 1, timeout=300)
    time.sleep(rng.uniform(0, 2))
    engines = engine_cores(run)
    assert engines
    assert run.kill_worker("describe", rng)
    assert gone(engines, timeout_s=10) == []
    time.sleep(rng.uniform(0, 10))  # the next engine loads
    kill_driver(run)

    before = len(parts(output))
    summary = start(manifest, output, assets_per_part=4).finish(timeout=500)

    assert before >= 2
    assert summary["done_before"] > 0
    report = check_dataset(str(output), expected=expected)
    assert report.ok, report.violations[:5]
    assert report.statuses == {"ok": len(expected)}


@pytest.mark.timeout(1800)
def test_an_engine_that_hangs_and_one_that_dies_are_replaced(tmp_path: Path) -> None:
    manifest, expected = make_input(tmp_path)
    output = tmp_path / "corpus"
    run = start(manifest, output, 4, "describe.hang_timeout_s=15")
    for number, blow in enumerate((signal.SIGSTOP, signal.SIGKILL), start=1):
        run.wait_for_parts(number, timeout=300)
        cores = engine_cores(run)
        assert cores
        for core in cores:
            core.send_signal(blow)
        assert gone(cores, timeout_s=120) == []

    summary = run.finish(timeout=500)

    report = check_dataset(str(output), expected=expected)
    assert report.ok, report.violations[:5]
    assert report.statuses == {"ok": len(expected)}
    [log] = (output / "_datagen" / "logs").glob("*.jsonl")
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert [event for event in events if event.startswith("engine_")] == ["engine_hung", "engine_died"]
    assert summary["counters"]["engine_restarts"] == 2
