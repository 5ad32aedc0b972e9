"""Whole runs from and into buckets, in this process, with fakes for the models."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image
from s3_server import FaultyProxy, new_bucket, often, options_of

from datagen.check import check_dataset
from datagen.job import Job, S3Options, parse_job
from datagen.run import run_job
from datagen.write import open_store


@pytest.fixture
def options(s3_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Options:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    monkeypatch.setenv("DATAGEN_CACHE", str(tmp_path / "cache"))
    return options_of(s3_address)


@pytest.fixture
def bucket(options: S3Options) -> str:
    return new_bucket(options)


def photos(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.new("RGB", (40, 30), (10 * index % 256, 90, 200)).save(folder / f"{index:03d}.png")
    return folder


def job_of(source: object, output: str, options: S3Options, **values: object) -> Job:
    fake = {"engine": "fake"}
    run = {"executor": "inprocess", **values.pop("run", {})}
    data = {"perceive": fake, "describe": fake, "write": {"assets_per_part": 4}, "run": run, "s3": options.model_dump(), **values}
    return parse_job({**data, "output": output, "source": {"input": str(source), **values.pop("source", {})}})


def test_a_run_into_a_bucket_through_a_bad_network(options: S3Options, bucket: str, tmp_path: Path) -> None:
    folder, output = photos(tmp_path / "in", 10), f"s3://{bucket}/corpus"
    (folder / "broken.png").write_bytes(b"no picture")
    rng = random.Random(11)
    with FaultyProxy(options.endpoint_url or "", often(rng, 0.2), stall_s=0.7) as proxy:
        job = job_of(folder, output, options_of(proxy.address, timeout_s=0.5, lease_ttl_s=20.0, patience_s=60.0))
        summary = run_job(job)
        assert sum(proxy.done.values()) >= 5
    assert summary.statuses == {"ok": 10, "failed": 1}
    report = check_dataset(output)
    assert report.ok, report.violations
    assert report.num_assets == 11

    again = run_job(job_of(folder, output, options))
    assert (again.todo, again.done_before) == (0, 11)
    names = [path for path, _ in open_store(output).list()]
    assert not [name for name in names if name.startswith("_staging")]
    assert "README.md" in names
