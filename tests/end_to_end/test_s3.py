"""Whole runs from and into buckets, in this process, with fakes for the models."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs
from s3_server import FaultyProxy, often, options_of

from datagen.check import check_dataset
from datagen.job import Job, S3Options, parse_job
from datagen.run import run_job
from datagen.run.reporting import Progress
from datagen.s3 import client
from datagen.sources import open_source
from datagen.write import open_store


@pytest.fixture(autouse=True)
def environment(s3_address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    monkeypatch.setenv("DATAGEN_CACHE", str(tmp_path / "cache"))


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


@contextmanager
def noisy(log: Path) -> Iterator[Progress]:
    log.write_bytes(b"noise with a password=hunter2")
    yield lambda summary: None


def test_a_run_into_a_bucket_through_a_bad_network(options: S3Options, bucket: str, tmp_path: Path) -> None:
    folder, output = photos(tmp_path / "in", 10), f"s3://{bucket}/corpus"
    (folder / "broken.png").write_bytes(b"no picture")
    rng = random.Random(11)
    with FaultyProxy(options.endpoint_url or "", often(rng, 0.2)) as proxy:
        job = job_of(folder, output, options_of(proxy.address, timeout_s=2.0))
        summary = run_job(job, screen=noisy)
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
    assert open_store(output).read(f"_datagen/logs/{summary.run_id}.log") == b"noise with a password=***"
    assert b'"event": "run_ended"' in open_store(output).read(f"_datagen/logs/{summary.run_id}.jsonl")


def upload(options: S3Options, bucket: str, folder: Path, prefix: str) -> str:
    for path in sorted(folder.iterdir()):
        client(options).put_object(Bucket=bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
    return f"s3://{bucket}/{prefix}"


@pytest.mark.slow
@pytest.mark.ray
def test_ray_workers_read_from_and_write_to_a_bucket_through_a_bad_network(options: S3Options, bucket: str, tmp_path: Path) -> None:
    folder, output = photos(tmp_path / "in", 24), f"s3://{bucket}/corpus"
    (folder / "broken.png").write_bytes(b"no picture")
    rows = [{"uri": path.name} for path in sorted(folder.iterdir())] + [{"uri": "gone.png"}, {"uri": "/etc/passwd"}]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = upload(options, bucket, folder, "photos")
    with FaultyProxy(options.endpoint_url or "", often(random.Random(5), 0.1)) as proxy:
        through = options_of(proxy.address, timeout_s=2.0)
        job = job_of(f"{source}/list.jsonl", output, through, run={"executor": "ray", "object_store_gib": 0.2})
        summary = run_job(job)
        assert sum(proxy.done.values()) >= 10
    assert summary.statuses == {"ok": 24, "failed": 3}
    assert summary.failures == {"not_an_image": 1, "missing_file": 1, "refused_uri": 1}
    report = check_dataset(output)
    assert report.ok, report.violations
    uris = [asset.uri for asset in open_source(job.source, options)]
    rows = pq.read_table(f"{bucket}/corpus/assets", filesystem=_arrow(options)).to_pylist()
    assert sorted(row["uri"] for row in rows) == sorted(uris)
    assert {path.split("/")[1] for path, _ in open_store(output).list("_datagen")} == {
        "dataset.json",
        "heartbeat.json",
        "lease.json",
        "logs",
        "runs",
    }


def _arrow(options: S3Options) -> fs.S3FileSystem:
    """Any reader of Parquet reads the dataset."""
    return fs.S3FileSystem(endpoint_override=options.endpoint_url, force_virtual_addressing=False)
