"""A job on nodes that reach one another through a network alone: raylets in network namespaces of their own, behind a bridge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kills import expected_ids, make_input
from raylets import PATIENT

from datagen.check import check_dataset

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.ray]

PORT = 6399
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64}  # what one has to say to a head that found a token in its home
RAY = "from ray.scripts.scripts import main; main()"
JOB = """
version: 1
name: namespaces
perceive: {engine: fake, batch_size: 4, fake_delay_s: 0.2}
describe: {engine: fake}
write: {assets_per_part: 8}
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def hosts(count: int) -> Iterator[dict[str, str]]:
    """So many namespaces: name -> address. They see one another and nothing else. Skips the test where they cannot be made."""
    prefix = f"dg{os.getpid()}"
    switch, addresses = f"{prefix}-net", {f"{prefix}-{number}": f"10.77.0.{10 + number}" for number in range(count)}
    made: list[str] = []
    try:
        try:
            for name in (switch, *addresses):
                ip("netns", "add", name)
                made.append(name)
            _connect(switch, addresses)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here (iproute2, as root): {getattr(error, 'stderr', error)}")
        yield addresses
    finally:
        for name in made:
            ip("netns", "del", name)


def _connect(switch: str, addresses: dict[str, str]) -> None:
    ip("-n", switch, "link", "add", "name", "sw0", "type", "bridge")
    ip("-n", switch, "link", "set", "dev", "sw0", "up")
    for number, (name, address) in enumerate(addresses.items()):
        port = f"port{number}"
        ip("-n", switch, "link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("-n", switch, "link", "set", "dev", port, "master", "sw0")
        ip("-n", switch, "link", "set", "dev", port, "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", name, "link", "set", "dev", device, "up")


@contextmanager
def ray_on(nodes: dict[str, str], folder: str) -> Iterator[str]:
    """A head without CPUs in the first namespace, a raylet in each other; the cluster's address."""
    head, *others = nodes.items()
    address, started = f"{head[1]}:{PORT}", []
    common = ["--temp-dir", folder, "--object-store-memory", str(100 * 2**20), "--disable-usage-stats", "--block"]
    environment = os.environ | PATIENT | TOKEN
    try:
        for (name, own), place in (
            (head, ["--head", "--port", str(PORT), "--num-cpus", "0", "--include-dashboard", "false"]),
            *((other, ["--address", address, "--num-cpus", "4"]) for other in others),
        ):
            command = ["ip", "netns", "exec", name, sys.executable, "-c", RAY, "start", "--node-ip-address", own, *place, *common]
            log = open(Path(folder) / f"{name}.log", "w+")  # noqa: SIM115 (as long as the process)
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True))
            deadline = time.monotonic() + 240
            while "Ray runtime started" not in (text := Path(log.name).read_text()):
                assert started[-1].poll() is None, text
                assert time.monotonic() < deadline, text
                time.sleep(0.2)
        yield address
    finally:
        for process in started:
            process.terminate()  # `ray start --block` takes its own processes with it
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


@pytest.mark.timeout(900)
def test_a_job_on_three_hosts(tmp_path: Path) -> None:
    count, folder = 48, tempfile.mkdtemp(prefix="ry-", dir="/tmp")  # short: sockets lie in it
    (tmp_path / "job.yaml").write_text(JOB)
    manifest, output = make_input(tmp_path / "in", count), tmp_path / "corpus"
    try:
        with hosts(3) as nodes, ray_on(nodes, folder) as address:
            options = ["--set", f"run.ray_address={address}", "--json"]
            job = ["datagen", "run", str(tmp_path / "job.yaml"), "--input", str(manifest), "--output", str(output)]
            command = ["ip", "netns", "exec", next(iter(nodes)), sys.executable, "-m", *job, *options]
            stranger = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"RAY_AUTH_MODE": "disabled"})
            assert stranger.returncode == 3, stranger.stderr[-4000:]
            assert "export RAY_AUTH_MODE=token" in " ".join(stranger.stderr.split())
            run = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | TOKEN)
            assert run.returncode == 0, run.stderr[-4000:]
            lines = [line for log in (output / "_datagen" / "logs").glob("*.jsonl") for line in log.read_text().splitlines()]
            [ray] = [event for event in map(json.loads, lines) if event["event"] == "ray_started"]
            assert {endpoint.split("//")[1].split(":")[0] for endpoint in ray["endpoints"]} == set(nodes.values())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert json.loads(run.stdout)["statuses"] == {"ok": count}
    report = check_dataset(str(output), expected=expected_ids(count))
    assert report.ok, report.violations[:5]
