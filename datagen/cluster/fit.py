"""Whether a job's workers fit the nodes of a cluster, before any of them is paid for."""

from __future__ import annotations

from collections.abc import Iterator

from datagen.cluster.profile import Node, Profile
from datagen.errors import JobError
from datagen.job import Job, Pool
from datagen.room import Free, asked, had, pools, side_by_side


def fit(job: Job, cluster: Profile) -> dict[str, Pool]:
    """Workers per step on the cluster at its largest.

    Raises JobError when a worker fits on no node, or when the fewest workers that the job starts with do not fit side by side:
    some would wait, perhaps for ever.
    """
    workers = pools(job, cluster.resources())
    problems = [*_without_gpu(job, cluster), *_too_large(workers, cluster)]
    if not problems and not side_by_side(workers.values(), _nodes(cluster)):
        problems = [_crowded(workers, cluster)]
    if problems:
        raise JobError("\n".join(problems))
    return workers


def _without_gpu(job: Job, cluster: Profile) -> Iterator[str]:
    if cluster.resources()["GPU"]:
        return
    for step, device in (("perceive", job.perceive.device), ("describe", job.describe.device)):
        if device.startswith("cuda"):
            yield (
                f"{step} asks for a GPU ({step}.device: {device}), and no node of {cluster.name} has one. "
                f"Choose a cluster with GPUs, or --set {step}.device=auto."
            )


def _too_large(pools: dict[str, Pool], cluster: Profile) -> Iterator[str]:
    nodes = [(group, node) for group, node, _ in cluster.nodes()]
    group, largest = max(nodes, key=lambda item: (item[1].gpus, item[1].cpus))
    for step, pool in pools.items():
        if not any(Free.of(node.cpus, node.gpus).take(pool) for _, node in nodes):
            yield (
                f"{step} asks {asked(pool)} for each worker, which fits on no node of {cluster.name}; the largest ({group}) has "
                f"{had(largest.cpus, largest.gpus)}. Ask less ({_less(step, pool, largest)}), or choose a cluster with larger nodes."
            )


def _less(step: str, pool: Pool, node: Node) -> str:
    given = {"num_cpus": (pool.num_cpus or 0, node.cpus), "num_gpus": (pool.num_gpus or 0, node.gpus)}
    return " ".join(f"--set {step}.pool.{key}={has}" for key, (asks, has) in given.items() if asks > has) or f"{step}.pool"


def _crowded(pools: dict[str, Pool], cluster: Profile) -> str:
    workers = ", ".join(f"{pool.min_workers} x {step} with {asked(pool)}" for step, pool in pools.items())
    nodes = ", ".join(f"{count} x {group} with {had(node.cpus, node.gpus)}" for group, node, count in cluster.nodes())
    return (
        f"the fewest workers of the job ({workers}) do not fit side by side on the nodes of {cluster.name} ({nodes}). Ask for fewer "
        "(perceive.pool.max_workers, describe.pool.max_workers) or smaller ones (num_cpus, num_gpus), or raise max_nodes."
    )


def _nodes(cluster: Profile) -> list[tuple[float, int]]:
    return [(float(node.cpus), node.gpus) for _, node, count in cluster.nodes() for _ in range(count)]
