"""The batch script, run with stand-ins for Slurm's commands and Ray's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from datagen.cluster.place import place
from datagen.cluster.profile import Profile, load_profile
from datagen.cluster.render import render
from datagen.errors import JobError
from datagen.job import load_job, parse_job

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = load_profile(ROOT / "cluster" / "slurm.yaml")
JOB = load_job(ROOT / "pipelines" / "image-regions.yaml", values={"source.input": "/data/it's here", "output": "/data/corpus"})
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
# srun runs its command once, as on the head; Ray notes what it was asked for and runs the job; the job ends with the code that is wanted.
# Like the real one, Ray's command ends with 0 when it does not start.
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "$@" >>"$OUT/scontrol"; fi',
    "srun": 'shift; exec "$@"',
    "ray": 'echo "$@" >"$OUT/ray"; if [ "$WANTED" = none ]; then exit 0; fi; while [ "$1" != -- ]; do shift; done; shift; exec "$@"',
    "python": 'echo "$@" >"$OUT/python"; cp "${@: -1}" "$OUT/job.yaml"; env >"$OUT/env"; exit "$WANTED"',
}


@pytest.fixture
def run_script(tmp_path: Path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)

    def run(cluster: Profile, wanted: int | str = 0, restarts: int = 0) -> int:
        script = render(cluster, JOB)
        slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
        environment = {"PATH": f"{commands}:{os.environ['PATH']}", "OUT": str(tmp_path), "TMPDIR": str(tmp_path), "WANTED": str(wanted)}
        return subprocess.run(["bash"], input=script, text=True, env=environment | slurm, timeout=60, check=False).returncode

    return run


def without_setup(**more) -> Profile:
    return SHIPPED.model_copy(update={"setup": ("export FROM_SETUP=yes",), **more})


def test_ray_starts_on_every_node_and_the_job_on_the_first(run_script, tmp_path: Path) -> None:
    assert run_script(without_setup(env={"HF_HOME": "/it's"})) == 0
    asked = (tmp_path / "ray").read_text()
    assert asked.startswith("symmetric-run --address n1:6379 --min-nodes 2 --num-cpus=64 --num-gpus=8 -- ")
    assert (tmp_path / "python").read_text().startswith("-m datagen run ")
    assert parse_job(yaml.safe_load((tmp_path / "job.yaml").read_text())) == place(JOB, SHIPPED)
    environment = (tmp_path / "env").read_text().splitlines()
    assert {"FROM_SETUP=yes", "HF_HOME=/it's", "RAY_AUTH_MODE=token"} <= set(environment)
    assert any(re.fullmatch("RAY_AUTH_TOKEN=[0-9a-f]{64}", line) for line in environment)
    assert not list(tmp_path.glob("tmp.*")), "the job file is cleared away"


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, 0, False), (1, 0, False), (3, 0, True), (3, 2, True), (3, 3, False), (4, 0, False), ("none", 0, True)],
)
def test_a_broken_machine_is_a_reason_to_start_again(run_script, tmp_path: Path, code: int | str, restarts: int, again: bool) -> None:
    assert run_script(without_setup(), code, restarts) == (3 if code == "none" else code)
    assert (tmp_path / "scontrol").exists() == again
    assert not again or (tmp_path / "scontrol").read_text() == "requeue 7\n"


def test_the_allocation_is_the_profiles() -> None:
    options = {line.split()[1] for line in render(SHIPPED, JOB).splitlines() if line.startswith("#SBATCH ")}
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=64", "--gres=gpu:h100:8", "--mem=512000M"} <= options
    assert {"--partition=gpu", "--time=24:00:00", "--requeue", "--no-kill", "--exclusive"} <= options


def test_a_script_needs_a_job() -> None:
    with pytest.raises(JobError, match=r"give a JOB\.yaml"):
        render(SHIPPED)


@pytest.mark.skipif(not SHELLCHECK, reason="shellcheck is not installed")
def test_the_script_is_clean() -> None:
    cluster = SHIPPED.model_copy(update={"env": {"A": "it's $b"}})
    found = subprocess.run([SHELLCHECK, "-"], input=render(cluster, JOB), capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout
