"""Jobs on a running Ray cluster, through Ray's Job Submission API: submit, list, watch, stop.

What travels is this datagen and the job file; the dependencies are those of the cluster's nodes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datagen
from datagen.cluster.place import job_text
from datagen.cluster.profile import Profile
from datagen.errors import ClusterError, JobError
from datagen.job import Job
from datagen.share import share_path

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

# Ray kills a job that is told to stop after 3 s; a commit, above all to a bucket, may take longer.
_STOP_S = 60
_POLL_S = 1.0
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_EXIT_CODES = {"SUCCEEDED": 0, "STOPPED": 130}


class Jobs:
    """The job server of one cluster. Every method raises ClusterError when it cannot be reached, JobError for an unknown id."""

    def __init__(self, address: str) -> None:
        self.address = address
        with self._explained(), _this_address_counts():
            from ray.job_submission import JobSubmissionClient

            for noisy in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
                logging.getLogger(noisy).setLevel(logging.WARNING)
            self._client: JobSubmissionClient = JobSubmissionClient(address)

    def submit(self, job: Job, cluster: Profile) -> str:
        """Ship this datagen and a job that comes from `place`; returns the id of what was started."""
        submission_id = f"{job.name}-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory() as folder, self._explained():
            _pack(Path(folder), job)
            self._client.submit_job(
                entrypoint=f"{cluster.python} -m datagen run job.yaml",
                submission_id=submission_id,
                runtime_env={"working_dir": folder, "env_vars": cluster.env | {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S)}},
                metadata={"datagen": datagen.__version__, "job": job.name, "output": str(job.output)},
            )
        return submission_id

    def list(self) -> list[dict[str, Any]]:
        """`status` of every submitted job, the newest first."""
        with self._explained():
            jobs = [_facts(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job["started_ms"] or 0, reverse=True)

    def status(self, submission_id: str) -> dict[str, Any]:
        """id, status (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED), message, exit_code, started_ms, ended_ms, metadata."""
        with self._explained(submission_id):
            return _facts(self._client.get_job_info(submission_id))

    def logs(self, submission_id: str) -> str:
        """What it has printed so far."""
        with self._explained(submission_id):
            return str(self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str, write: Callable[[str], None]) -> None:
        """Hand on what it prints until it ends."""

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(submission_id):
                write(lines)

        with self._explained(submission_id):
            asyncio.run(tail())

    def wait(self, submission_id: str) -> int:
        """Until it has ended; its exit code, 130 when it was stopped, 3 when it was lost."""
        while (facts := self.status(submission_id))["status"] not in ("SUCCEEDED", "FAILED", "STOPPED"):
            time.sleep(_POLL_S)
        return _EXIT_CODES.get(facts["status"], facts["exit_code"] or ClusterError.exit_code)

    def stop(self, submission_id: str) -> bool:
        """Ask it to end; False when it has ended already. What is committed stays, and the same job goes on from there."""
        with self._explained(submission_id):
            return bool(self._client.stop_job(submission_id))

    @contextmanager
    def _explained(self, submission_id: str | None = None) -> Iterator[None]:
        from aiohttp import ClientError
        from requests import RequestException

        try:
            yield
        except (RuntimeError, ConnectionError, ValueError, RequestException, ClientError) as error:
            if submission_id and ("status code 404" in str(error) or getattr(error, "status", None) == 404):
                raise JobError(f"{self.address} knows no job {submission_id}; `datagen job list` shows them") from error
            if str(error).startswith("Authentication"):
                raise ClusterError(f"the job server {self.address} asks for a token: {ClusterError.token_wanted}") from error
            raise ClusterError(
                f"the job server {self.address} does not do it: {str(error).rstrip('.')}. Give --address http://HOST:8265 of Ray's head; "
                "from outside, forward its port first (see docs/clusters.md)."
            ) from error


@contextmanager
def _this_address_counts() -> Iterator[None]:
    # Ray prefers these variables to what it is given; they have been asked already, after the command line.
    kept = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _pack(folder: Path, job: Job) -> None:
    """All that a node needs of this machine: the code, the schemas, the job file."""
    package = Path(datagen.__file__).parent
    shutil.copytree(package, folder / "datagen", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(share_path("schemas"), folder / "schemas", dirs_exist_ok=True)
    (folder / "job.yaml").write_text(job_text(job), encoding="utf-8")


def _facts(details: Any) -> dict[str, Any]:
    return {
        "id": details.submission_id,
        "status": str(getattr(details.status, "value", details.status)),
        "message": details.message,
        "exit_code": details.driver_exit_code,
        "started_ms": details.start_time,
        "ended_ms": details.end_time,
        "metadata": details.metadata or {},
    }
