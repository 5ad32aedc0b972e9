"""Nothing is lost and nothing is there twice, whatever is killed."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from kills import Run, batter, expected_ids, gone, make_input, parts

from datagen.check import check_dataset

pytestmark = [pytest.mark.slow, pytest.mark.ray]

FAKES = """
version: 1
name: chaos
perceive: {engine: fake, batch_size: 10, fake_delay_s: 0.2}
describe: {engine: fake, fake_delay_s: 0.05}
write: {assets_per_part: 20}
run: {object_store_gib: 0.2}
"""
WITHOUT_RAY = ("--set", "run.executor=inprocess")  # where the workers do not matter, its start would only cost time


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(FAKES)
    return path


@pytest.mark.timeout(1800)
@pytest.mark.soak  # in every run of the suite it is test_soak.py that kills
@pytest.mark.parametrize(("legs", "kills_per_leg"), [(2, 5), (3, 8)], ids=["ten", "twenty"])
def test_random_kills_lose_and_double_nothing(job: Path, tmp_path: Path, legs: int, kills_per_leg: int) -> None:
    count, seed = 400 * legs, time.time_ns() % 10_000
    manifest = make_input(tmp_path / "in", count)
    output = tmp_path / "corpus"

    kills = batter(job, manifest, output, random.Random(seed), legs=legs, kills_per_leg=kills_per_leg)

    print(f"seed {seed}, kills {dict(kills)}")
    assert sum(kills.values()) >= 0.8 * legs * kills_per_leg
    report = check_dataset(str(output), expected=expected_ids(count))
    assert report.ok, report.violations[:5]
    assert report.num_assets == count


def test_a_zombie_stages_but_cannot_publish(job: Path, tmp_path: Path) -> None:
    """Staging is delayed past the driver's death: the late part may be staged, but never shows up in the tables."""
    manifest = make_input(tmp_path / "in", 40)
    output = tmp_path / "corpus"
    run = Run(job, manifest, output, faults={"write": {"delay_s": 0.15}})  # 3 s per part
    run.wait_for_workers("write")
    zombies = run.workers("write")
    run.kill_driver()
    before = parts(output)

    assert gone(zombies, timeout_s=240) == []
    assert parts(output) == before
    Run(job, manifest, output, "--set", "write.assets_per_part=7").finish()
    report = check_dataset(str(output), expected=expected_ids(40))
    assert report.ok, report.violations[:5]
    assert not list((output / "_staging").glob("*/*"))


def test_a_finished_job_does_nothing_and_new_assets_alone_are_done(job: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    assert Run(job, make_input(tmp_path / "in", 30), output, *WITHOUT_RAY).finish()["todo"] == 30
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}

    logs = sorted((output / "_datagen" / "logs").iterdir())
    assert Run(job, make_input(tmp_path / "in", 30), output).finish()["todo"] == 0
    assert sorted((output / "_datagen" / "logs").iterdir()) == logs, "it began nothing, so neither Ray nor a worker was started"
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")} == before

    assert Run(job, make_input(tmp_path / "in", 35), output, *WITHOUT_RAY).finish()["todo"] == 5
    assert check_dataset(str(output), expected=expected_ids(35)).ok


def test_an_asset_that_kills_its_worker_becomes_one_failed_row_also_across_restarts(job: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "corpus"
    manifest = make_input(folder, 24)
    (folder / "poison.png").write_bytes((folder / "0.png").read_bytes())
    manifest.write_text(manifest.read_text().replace('"0.png", "asset_id": "00000008"', '"poison.png", "asset_id": "00000008"'))
    poison = {"worker.perceive": {"kill_if_uri": "poison"}}
    crashes = output / "_datagen" / "crashes.json"
    run = Run(job, manifest, output, faults=poison)
    deadline = time.monotonic() + 300
    while not crashes.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.kill_driver()
    (before,) = json.loads(crashes.read_text()).values()

    summary = Run(job, manifest, output, faults=poison).finish()

    assert summary["failures"] == {"perceive_crashed": 1}
    # A killed worker had the asset in its hands when the first driver died; that was not its fault and is not counted.
    assert before + summary["counters"]["crashes"] == 3
    assert summary["done_before"] + sum(summary["statuses"].values()) == 24
    report = check_dataset(str(output), expected=expected_ids(24))
    assert report.ok, report.violations[:5]
    assert report.statuses == {"ok": 23, "failed": 1}


def test_two_runs_cannot_write_one_output(job: Path, tmp_path: Path) -> None:
    manifest = make_input(tmp_path / "in", 40)
    output = tmp_path / "corpus"
    first = Run(job, manifest, output, *WITHOUT_RAY, faults={"write": {"delay_s": 0.2}})
    deadline = time.monotonic() + 300
    while not (output / "_datagen" / "dataset.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)

    second = Run(job, manifest, output)
    _, message = second.process.communicate(timeout=300)

    assert second.process.returncode == 4
    assert "another run" in message
    first.finish()
