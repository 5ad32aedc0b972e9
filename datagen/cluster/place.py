"""A job as it runs on a cluster: its paths mean the same on every node, and its workers are counted for the cluster at its largest."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from datagen.cluster.fit import fit
from datagen.cluster.profile import Profile
from datagen.errors import JobError
from datagen.job import Job, parse_job
from datagen.paths import PATHS, PATHS_OR_NAMES, absolute, is_name
from datagen.run import required


def place(job: Job, cluster: Profile, address: str | None = "auto") -> Job:
    """The job to run on the cluster. address: how its driver finds Ray; None: it starts one of its own.

    Raises JobError when it does not fit there, lacks input or output, or names a path that only this machine has.
    """
    required(job)
    if job.run.executor != "ray":
        raise JobError(f"run.executor is {job.run.executor}, which uses one process of one machine; on a cluster leave it out")
    data = copy.deepcopy(job.model_dump(mode="json"))
    for keys in (*PATHS, *PATHS_OR_NAMES):
        _everywhere(data, keys, cluster)
    for step, pool in fit(job, cluster).items():
        data[step]["pool"] = pool.model_dump()
    data["run"]["ray_address"] = address
    return parse_job(data)


def _everywhere(data: dict[str, Any], keys: tuple[str, ...], cluster: Profile) -> None:
    *parents, last = keys
    for parent in parents:
        data = data[parent]
    path = data[last]
    if path is None or "://" in path or Path(path).is_absolute() or (keys in PATHS_OR_NAMES and is_name(last, path)):
        return
    if cluster.provider != "local":
        raise JobError(
            f"{'.'.join(keys)} is {path}, which only this machine can find. Give a bucket (s3://...), "
            f"or the absolute path of a file system that every node of {cluster.name} sees."
        )
    data[last] = absolute(path)


def job_text(job: Job) -> str:
    """A job file: what differs from the defaults."""
    return to_yaml({"version": job.version} | job.model_dump(mode="json", exclude_defaults=True))


def to_yaml(*documents: Any) -> str:
    """YAML as a person would write it: keys in order, long texts as blocks."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
