"""In a bucket, too, nothing is lost and nothing is there twice: drivers killed at any moment, over a network that fails."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from kills import expected_ids, make_input
from s3_server import FaultyProxy, often, options_of

from datagen.check import check_dataset
from datagen.job import S3Options
from datagen.s3 import client
from datagen.write import open_store
from datagen.write.retries import ASIDE

pytestmark = [pytest.mark.soak, pytest.mark.slow]

COUNT, LEGS = 60, 8


class Driver:
    """`datagen run` without Ray, in a process of its own; its input has bad files, which it tries again."""

    def __init__(self, folder: Path, output: str, through: S3Options, assets_per_part: int) -> None:
        job = {
            "perceive": {"engine": "fake"},
            "describe": {"engine": "fake"},
            "write": {"assets_per_part": assets_per_part},
            "run": {"executor": "inprocess", "retry_failed": 100},
            "source": {"input": str(folder / "manifest.jsonl")},
            "output": output,
            "s3": through.model_dump(),
        }
        path = folder / "job.json"
        path.write_text(json.dumps(job))
        command = [sys.executable, "-m", "datagen", "run", str(path), "--json"]
        environment = os.environ | {"DATAGEN_CACHE": str(folder / "cache")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL, unless it ended before."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        return self.process.returncode == -signal.SIGKILL

    def finish(self) -> dict:
        out, err = self.process.communicate(timeout=500)
        assert self.process.returncode == 0, err
        return json.loads(out)


@pytest.mark.timeout(1800)
def test_drivers_killed_at_random_lose_and_double_nothing_in_a_bucket(
    options: S3Options, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", options.endpoint_url or "")
    seed = time.time_ns() % 10_000
    print(f"seed {seed}")
    rng = random.Random(seed)
    manifest, output = make_input(tmp_path, COUNT), f"s3://{bucket}/corpus"
    (tmp_path / "bad.png").write_bytes(b"no picture")
    lines = [
        json.loads(line) | ({"uri": "bad.png"} if index % 12 == 5 else {}) for index, line in enumerate(manifest.read_text().splitlines())
    ]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    kills: Counter[bool] = Counter()
    with FaultyProxy(options.endpoint_url or "", often(rng, 0.1)) as proxy:
        through = options_of(proxy.address, timeout_s=2.0)
        for leg in range(LEGS):
            driver = Driver(tmp_path, output, through, (4, 3, 7)[leg % 3])
            requests = sum(proxy.requests.values())
            while sum(proxy.requests.values()) < requests + 5 and driver.process.poll() is None:
                time.sleep(0.01)
            kills[driver.kill_after(rng.uniform(0.0, 2.5))] += 1
        summary = Driver(tmp_path, output, through, 5).finish()
        assert sum(proxy.done.values()) >= 20
    assert kills[True] >= LEGS / 2
    report = check_dataset(output, expected=expected_ids(COUNT))
    assert report.ok, report.violations[:5]
    assert (report.num_assets, report.statuses) == (COUNT, {"ok": COUNT - 5, "failed": 5})
    assert summary["listed"] == COUNT
    store = open_store(output)
    assert [path for folder in ("_staging", ASIDE) for path, _ in store.list(folder)] == []
    assert not client(options).list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_a_driver_that_was_frozen_while_another_took_over_publishes_nothing_more(
    options: S3Options, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", options.endpoint_url or "")
    manifest, output = make_input(tmp_path, COUNT), f"s3://{bucket}/corpus"
    assert manifest.exists()
    short = options.model_copy(update={"lease_ttl_s": 3.0})
    with monkeypatch.context() as patch:
        patch.setenv("DATAGEN_FAULTS", json.dumps({"write": {"delay_s": 0.05}}))
        first = Driver(tmp_path, output, short, assets_per_part=4)
    deadline = time.monotonic() + 300
    while not list(open_store(output).list("assets")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.process.send_signal(signal.SIGSTOP)
    time.sleep(short.lease_ttl_s)

    second = Driver(tmp_path, output, short, assets_per_part=7).finish()

    first.process.send_signal(signal.SIGCONT)
    _, message = first.process.communicate(timeout=300)
    assert first.process.returncode == 4, message
    assert "lost" in message
    report = check_dataset(output, expected=expected_ids(COUNT))
    assert report.ok, report.violations[:5]
    assert report.num_assets == COUNT
    assert 0 < second["done_before"] < COUNT
