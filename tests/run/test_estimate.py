"""`datagen plan --sample`: the whole from a few assets, and how far off that was."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpora import fake_job
from PIL import Image
from rich.console import Console

from datagen.check import check_dataset
from datagen.errors import OutputBusyError, WriteError
from datagen.job import Job, parse_job
from datagen.records import Asset
from datagen.run import run_job
from datagen.run.console import print_run
from datagen.run.estimate import ESTIMATE, compared, foretold, keep
from datagen.run.sampling import _estimate, _Reservoir, estimate_job
from datagen.run.summary import RunSummary
from datagen.write import open_store

COUNT = 20


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images with one to four prompts each, 50 in all."""
    folder = tmp_path / "in"
    folder.mkdir()
    rows = []
    for index in range(COUNT):
        Image.new("RGB", (40, 30), (10 * index, 90, 200)).save(folder / f"{index:02d}.png")
        rows.append({"uri": f"{index:02d}.png", "prompts": [{"box": [1, 1, 20, 20]}] * (1 + index % 4)})
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "list.jsonl"


def job_of(source: Path, output: str, **budget: Any) -> Job:
    run = {"executor": "inprocess", "budget": {"gpus": 2, "gpu_hour_price": 1000, **budget}}
    return fake_job(source={"input": str(source)}, output=output, run=run)


@pytest.mark.parametrize("output", ["s3"], indirect=True)
def test_a_sample_foretells_the_whole_and_the_run_says_how_far_off_it_was(photos: Path, output: str) -> None:
    job = job_of(photos, output, deadline="1h")
    planned = estimate_job(job, 10)

    estimate = planned["estimate"]
    assert (planned["left"], estimate["whole"]["assets"], estimate["sample"]["assets"]) == (COUNT, COUNT, 10)
    regions = estimate["whole"]["regions"]
    assert 20 < regions["low"] < regions["mean"] < regions["high"] < 80
    whole = estimate["whole"]
    assert whole["gpu_hours"] == pytest.approx(2 * whole["seconds"] / 3600)
    assert whole["cost"] == pytest.approx(1000 * whole["gpu_hours"])
    assert sorted(path for path, _ in open_store(output).list() if "lock" not in path and "lease" not in path) == [ESTIMATE]

    summary = run_job(job)

    assert check_dataset(output).ok
    assert summary.estimate is not None
    figures = summary.estimate["figures"]
    assert figures["regions"]["actual"] == summary.regions == 50
    assert figures["regions"]["off"] == pytest.approx(50 / regions["mean"] - 1, abs=1e-4)
    assert figures["gpu_hours"]["actual"] == summary.gpu_hours > 0
    assert figures["tracks"]["off"] is None
    record = json.loads(open_store(output).read(f"_datagen/runs/{summary.run_id}.json"))
    assert record["summary"]["estimate"] == summary.estimate
    console = Console(width=200)
    with console.capture() as shown:
        print_run(console, summary)
    assert f"{regions['mean']:.4g} regions ({figures['regions']['off']:+.0%})" in shown.get()

    assert "estimate" not in estimate_job(job, 10), "nothing is left to sample"


@pytest.mark.parametrize("output", ["local"], indirect=True)
def test_what_is_no_dataset_or_is_being_written_is_left_alone(photos: Path, output: str) -> None:
    with pytest.raises(WriteError, match="no datagen dataset"):
        estimate_job(job_of(photos, str(photos.parent)), 2)
    assert not (photos.parent / "_datagen").exists()
    with open_store(output).lease({"run_id": "tonight"}), pytest.raises(OutputBusyError, match="tonight"):
        estimate_job(job_of(photos, output), 2)


@pytest.mark.parametrize("output", ["local"], indirect=True)
def test_a_sample_that_is_interrupted_leaves_nothing(photos: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("datagen.run.commit.publish_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        estimate_job(job_of(photos, output), 2)
    assert [path for path, _ in open_store(output).list()] == ["_datagen/lock"]


def test_every_asset_is_as_likely_to_be_sampled() -> None:
    assets, chosen = [Asset(str(index), str(index)) for index in range(20)], Counter[str]()
    for seed in range(2000):
        reservoir = _Reservoir(5, seed)
        for asset in assets:
            reservoir.see(asset)
        assert len({asset.asset_id for asset in reservoir.assets}) == 5
        chosen.update(asset.asset_id for asset in reservoir.assets)
    assert all(400 < count < 600 for count in chosen.values()), "a quarter of 2000, give or take five deviations"
    again = _Reservoir(5, seed=1999)
    for asset in assets:
        again.see(asset)
    assert [asset.asset_id for asset in again.assets] == [asset.asset_id for asset in reservoir.assets], "the same seed, the same sample"


def summary_of(regions: list[int], *, seconds: float = 30.0, work_s: float = 20.0) -> RunSummary:
    summary = RunSummary("r", "", regions=sum(regions), seconds=seconds)
    summary.statuses.update(ok=len(regions))
    summary.usage.update(output_tokens=10 * sum(regions))
    summary.spans = {"decode": [100.0, 110.0], "describe": [101.0, 100.0 + work_s]}
    return summary


def test_start_up_counts_once_and_work_with_every_asset() -> None:
    regions = [2, 4, 6, 8]
    planned = {"left": 400, "gpus": 8.0}
    estimate = _estimate(parse_job({}), planned, summary_of(regions), {"regions": regions, "tracks": [0] * 4})
    assert (estimate["startup_s"], estimate["per_asset"]["seconds"]) == (10.0, 5.0)
    assert estimate["whole"]["seconds"] == 10 + 400 * 5
    assert estimate["whole"]["gpu_hours"] == pytest.approx(2010 * 8 / 3600)
    assert estimate["whole"]["cost"] is None
    assert estimate["whole"]["regions"]["mean"] == 2000
    assert estimate["whole"]["regions"]["low"] == pytest.approx(2000 - 1.96 * 400 * (20 / 3) ** 0.5 / 2)
    assert estimate["whole"]["output_tokens"]["high"] == pytest.approx(10 * estimate["whole"]["regions"]["high"])


def test_the_interval_holds_the_truth_most_of_the_time() -> None:
    rng, hits = random.Random(3), 0
    for _ in range(400):
        regions = [rng.choice((0, 1, 2, 10)) for _ in range(60)]
        whole = _estimate(parse_job({}), {"left": 1000, "gpus": 1.0}, summary_of(regions), {"regions": regions, "tracks": [0] * 60})[
            "whole"
        ]
        hits += whole["regions"]["low"] <= 3250 <= whole["regions"]["high"]
    assert 0.9 < hits / 400 < 0.99


def test_an_estimate_of_another_job_or_a_damaged_one_is_not_compared(tmp_path: Path) -> None:
    store, regions = open_store(str(tmp_path)), [2, 2]
    estimate = _estimate(parse_job({}), {"left": 2, "gpus": 1.0}, summary_of(regions), {"regions": regions, "tracks": [0, 0]})
    summary = summary_of(regions, seconds=36.0)
    assert compared(store, estimate["job_hash"], summary) is None
    keep(store, estimate)
    assert foretold(estimate, 2)["seconds"] == 30.0
    found = compared(store, estimate["job_hash"], summary)
    assert found is not None
    assert (found["figures"]["seconds"]["off"], found["figures"]["regions"]["off"]) == (0.2, 0.0)
    assert compared(store, "another", summary) is None
    store.write(ESTIMATE, b"{")
    assert compared(store, estimate["job_hash"], summary) is None
