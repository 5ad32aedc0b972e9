"""`datagen submit` and `datagen job`, against a server that speaks Ray's Job Submission API."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from command_line import Datagen
from job_server import LOGS, JobServer, job_server

from datagen.job import parse_job

JOB = "name: try\nperceive: {engine: fake}\ndescribe: {engine: fake, languages: [zh]}\n"
SLURM = Path(__file__).resolve().parents[2] / "cluster" / "slurm.yaml"
PLACE = {"name": "place", "provider": "local", "python": "python3.12", "env": {"HF_HOME": "/cache"}}


@pytest.fixture(scope="module")
def server() -> Iterator[JobServer]:
    with job_server() as running:
        yield running


@pytest.fixture
def arguments(tmp_path: Path, server: JobServer, monkeypatch: pytest.MonkeyPatch) -> tuple[Path | str, ...]:
    """A job, a profile and its paths; the profile's address is the server's."""
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    place = PLACE | {"address": server.address, "head": {"cpus": 8, "gpus": 1, "memory_gib": 8, "works": True}}
    (tmp_path / "place.yaml").write_text(yaml.safe_dump(place))
    return tmp_path / "job.yaml", "--cluster", tmp_path / "place.yaml", "-i", "photos", "-o", "corpus"


def test_code_and_job_travel_and_run_elsewhere(datagen: Datagen, server: JobServer, arguments: tuple, tmp_path: Path) -> None:
    submitted = datagen("submit", *arguments, "--set", "write.assets_per_part=7")
    assert submitted.returncode == 0, submitted.stderr
    job = server.jobs[submitted.stdout.strip()]
    assert f"datagen job stop {submitted.stdout.strip()}" in submitted.stderr
    assert job["entrypoint"] == "python3.12 -m datagen run job.yaml"
    assert job["runtime_env"]["env_vars"]["HF_HOME"] == "/cache"

    there = tmp_path / "there"
    package = server.packages[job["runtime_env"]["working_dir"].removeprefix("gcs://")]
    zipfile.ZipFile(io.BytesIO(package)).extractall(there)
    code = """
import datagen.cli, datagen.run, datagen.job, datagen.write
datagen.write.arrow_schema("regions")
print(datagen.__file__)
print(datagen.job.load_job("job.yaml").model_dump_json())
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=there, capture_output=True, text=True, timeout=120, check=True, env={})
    file, text = found.stdout.splitlines()
    assert Path(file).is_relative_to(there)
    shipped = parse_job(json.loads(text))
    assert (shipped.write.assets_per_part, shipped.describe.languages, shipped.run.ray_address) == (7, ("zh",), "auto")
    assert (shipped.source.input, shipped.output) == (str(tmp_path / "photos"), str(tmp_path / "corpus"))
    assert not [name for name in zipfile.ZipFile(io.BytesIO(package)).namelist() if "__pycache__" in name or "tests" in name]


def test_the_same_code_and_job_travel_once(datagen: Datagen, server: JobServer, arguments: tuple) -> None:
    first = datagen("submit", *arguments).stdout.strip()
    known = len(server.packages)
    second = datagen("submit", *arguments).stdout.strip()
    assert first != second
    assert len(server.packages) == known


def test_a_job_is_watched_and_stopped(datagen: Datagen, server: JobServer, arguments: tuple) -> None:
    job, at = datagen("submit", *arguments).stdout.strip(), ("--address", server.address)
    assert json.loads(datagen("job", "list", *at, "--json").stdout)[0]["id"] == job
    assert job in datagen("job", "list", *at).stdout
    assert datagen("job", "logs", job, *at).stdout == LOGS
    assert json.loads(datagen("job", "status", job, *at, "--json").stdout)["status"] == "RUNNING"
    assert datagen("job", "stop", job, *at).stdout == "asked to stop\n"
    assert datagen("job", "stop", job, *at).stdout == "it has ended already\n"
    assert datagen("job", "status", job, *arguments[1:3]).stdout == "STOPPED: it stopped\n"
    assert datagen("job", "logs", job, *at, "--follow").stdout == LOGS


def test_waiting_shows_the_output_and_ends_as_the_job_did(datagen: Datagen, server: JobServer, arguments: tuple, monkeypatch) -> None:
    done = datagen("submit", *arguments, "--wait")
    assert (done.returncode, done.stdout.split("\n", 1)[1]) == (0, LOGS)

    monkeypatch.setattr(server, "end", lambda job, *_: JobServer.end(server, job, "FAILED", 4))
    assert datagen("submit", *arguments, "--wait").returncode == 4
    monkeypatch.setattr(server, "end", lambda job, *_: JobServer.end(server, job, "FAILED"))
    assert datagen("submit", *arguments, "--wait").returncode == 3


def test_the_command_line_wins_over_the_environment_and_that_over_the_profile(
    datagen: Datagen, server: JobServer, arguments: tuple, monkeypatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert datagen("submit", *arguments).returncode == 3
    assert datagen("submit", *arguments, "--address", server.address).returncode == 0


def test_what_cannot_be_is_explained(datagen: Datagen, server: JobServer, arguments: tuple) -> None:
    unknown = datagen("job", "logs", "nothing", "--follow", "--address", server.address)
    assert (unknown.returncode, "datagen job list" in unknown.stderr) == (2, True)
    assert datagen("job", "status", "nothing", "--address", server.address).returncode == 2
    away = datagen("job", "list", "--address", "http://127.0.0.1:1")
    assert (away.returncode, "http://127.0.0.1:1" in away.stderr) == (3, True)

    slurm = datagen("submit", arguments[0], "--cluster", SLURM, "-i", "/photos", "-o", "/corpus")
    assert (slurm.returncode, "| sbatch" in " ".join(slurm.stderr.split())) == (2, True)

    known = len(server.jobs)
    refused = datagen("submit", *arguments, "--set", "describe.pool.num_gpus=2")
    assert (refused.returncode, "describe asks" in refused.stderr, len(server.jobs)) == (2, True, known)
