"""Images with thousands of prompts go through a few hundred at a time, and come out as one part, or not at all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from datagen.check import check_dataset
from datagen.describe.fake import FakeEngine
from datagen.errors import ModelOutputError
from datagen.job import Job, parse_job
from datagen.perceive.fake import FakePerceiveStep
from datagen.portions import PORTION_REGIONS, TOGETHER_REGIONS, in_portions, weighed
from datagen.records import Asset, Prompt, Sample
from datagen.run import run_job
from datagen.write import open_store

MANY = 2 * PORTION_REGIONS + 100
BAD = {0: [900, 900, 950, 950], 300: [5, 5, 1, 1], MANY - 1: [900, 900, 950, 950]}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A picture with many prompts, a few of them bad, between two with one each; one whose many are all bad; one that is none."""
    box = [4, 4, 30, 20]
    asked = {
        "first": [box],
        "many": [BAD.get(place, [place % 20, place % 11, 25 + place % 10, 20]) for place in range(MANY)],
        "hopeless": [[900, 900, 950, 950]] * MANY,
        "broken": [box] * MANY,
        "last": [box],
    }
    rows = []
    for shade, (name, boxes) in enumerate(asked.items()):
        path = tmp_path / f"{name}.tif"
        pages = [Image.new("RGB", (40, 30), (shade, 90, 200)) for _ in range(3)]
        pages[0].save(path, save_all=True, append_images=pages[1:])
        rows.append({"uri": str(path), "asset_id": name, "prompts": [{"box": box} for box in boxes]})
    (tmp_path / "broken.tif").write_bytes(b"no picture")
    place = tmp_path / "manifest.jsonl"
    place.write_text("\n".join(map(json.dumps, rows)))
    return place


def job_of(manifest: Path, output: str, executor: str = "inprocess") -> Job:
    fake: dict[str, Any] = {"engine": "fake"}
    run = {"executor": executor, "max_failed_fraction": 1.0, "num_cpus": 6}
    tasks = {"tasks": ["label"], "languages": ["en"]}
    return parse_job({"perceive": fake, "describe": fake | tasks, "run": run, "output": output, "source": {"input": str(manifest)}})


def table(output: str, name: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a table, by asset, in the order of their parts."""
    store, found = open_store(output), dict[str, list[dict[str, Any]]]()
    for path, _ in store.list(name):
        with store.open_input(path) as source:
            for row in pq.ParquetFile(source).read().to_pylist():
                found.setdefault(row["asset_id"], []).append(row)
    return found


def assert_all_there(output: str) -> None:
    report = check_dataset(output)
    assert report.ok, report.violations
    assets, regions = table(output, "assets"), table(output, "regions")
    assert {name: [row["status"] for row in rows] for name, rows in assets.items()} == {
        "first": ["ok"],
        "many": ["ok"],
        "hopeless": ["failed"],
        "broken": ["failed"],
        "last": ["ok"],
    }
    (many,), found = assets["many"], regions["many"]
    places = [place for place in range(MANY) if place not in BAD]
    assert [row["region_index"] for row in found] == places
    assert sorted(row["region_id"] for row in found) == [row["region_id"] for row in found]
    assert [row["prompt"]["box"][0] for row in found] == [place % 20 for place in places]
    assert all(row["label_en"] for row in found)
    assert {row["part_id"] for row in found} == {many["part_id"]}
    assert (many["num_regions"], many["num_prompts"], many["num_frames"]) == (len(places), MANY, 3)
    assert {item["reason"]: item["count"] for item in many["dropped"]} == {
        "prompt_outside": 2,
        "prompt_inverted": 1,
        "further_frames": 2,
    }
    (hopeless,), (broken,) = assets["hopeless"], assets["broken"]
    assert hopeless["error_code"] == "prompt_outside"
    assert f"none of its {MANY} prompts can be used ({MANY} prompt_outside); prompt 0: the box" in hopeless["error_message"]
    assert broken["error_code"] == "not_an_image"
    assert set(regions) == {"first", "many", "last"}


def test_they_go_through_a_few_hundred_at_a_time_and_are_one_part(manifest: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = []
    process = FakePerceiveStep.process

    def counted(step: FakePerceiveStep, samples: list[Sample]) -> list[Sample]:
        done = process(step, samples)
        together.append(sum(len(sample.regions) for sample in done))
        return done

    monkeypatch.setattr(FakePerceiveStep, "process", counted)
    summary = run_job(job_of(manifest, output))
    assert max(together) <= TOGETHER_REGIONS < MANY
    assert_all_there(output)
    assert dict(summary.statuses) == {"ok": 3, "failed": 2}
    assert (summary.regions, summary.listed) == (MANY - len(BAD) + 2, 5)
    assert summary.counters["perceive"] == 5
    assert summary.usage["requests"] == summary.regions
    assert list(open_store(output).list("_staging")) == []
    assert run_job(job_of(manifest, output)).parts == 0


@pytest.mark.ray
def test_on_ray(manifest: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    summary = run_job(job_of(manifest, output, "ray"))
    assert_all_there(output)
    assert summary.regions == MANY - len(BAD) + 2


def test_when_one_portion_fails_nothing_of_the_image_is_there(manifest: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = FakeEngine.generate

    async def sometimes(engine: FakeEngine, request: Any) -> Any:
        if request.request_id == f"many-{PORTION_REGIONS + 9:04d}-label_en":
            raise ModelOutputError("not this one")
        return await generate(engine, request)

    monkeypatch.setattr(FakeEngine, "generate", sometimes)
    run_job(job_of(manifest, output))
    report = check_dataset(output)
    assert report.ok, report.violations
    (many,) = table(output, "assets")["many"]
    assert (many["status"], many["error_code"], many["num_regions"]) == ("failed", "model_output", 0)
    assert "many" not in table(output, "regions")


def test_an_interrupted_run_commits_all_of_an_image_or_nothing(manifest: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    process, calls = FakePerceiveStep.process, Counter[str]()

    def interrupted(step: FakePerceiveStep, samples: list[Sample]) -> list[Sample]:
        calls["perceive"] += 1
        if calls["perceive"] == 2:
            raise KeyboardInterrupt
        return process(step, samples)

    monkeypatch.setattr(FakePerceiveStep, "process", interrupted)
    assert run_job(job_of(manifest, output)).interrupted
    monkeypatch.undo()
    assert table(output, "regions").get("many", []) == []
    run_job(job_of(manifest, output))
    assert_all_there(output)


def test_prompts_keep_their_places_and_refusals_are_counted_once() -> None:
    prompts = [Prompt(box=(0, 0, 9, 9), index=place if place % 2 else None) for place in range(7)]
    sample = Sample(3, Asset("a", "a", prompts=prompts, dropped={"crowd": 2}, num_prompts=9))
    few, unasked = Sample(4, Asset("b", "b", prompts=prompts[:3])), Sample(5, Asset("c", "c"))
    first, second, third, *others = in_portions([sample, few, unasked], 3)
    assert others == [few, unasked]
    assert [[prompt.index for prompt in one.asset.prompts or ()] for one in (first, second, third)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [one.portion for one in (first, second, third)] == [(0, 3), (1, 3), (2, 3)]
    assert [one.asset.dropped for one in (first, second, third)] == [{"crowd": 2}, {}, {}]
    assert {one.index for one in (first, second, third)} == {3}
    assert len({one.work_id for one in (first, second, third, few, unasked)}) == 5


def test_samples_travel_together_by_their_regions() -> None:
    asked = [Sample(n, Asset(str(n), "", prompts=[Prompt(box=(0, 0, 9, 9))] * n)) for n in (5, 90, 3, 3, 3)]
    unasked = [Sample(n, Asset(str(n), "")) for n in range(3)]
    assert [[s.index for s in some] for some in weighed(asked, 2, 64, 10)] == [[5], [90], [3, 3], [3]]
    assert [len(some) for some in weighed(unasked, 8, 5, 10)] == [2, 1]
