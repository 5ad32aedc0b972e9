"""Whether a job's workers fit the nodes of a cluster, before any of them is paid for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from datagen import graph
from datagen.cluster.profile import Node, Profile
from datagen.errors import JobError
from datagen.job import Job, Pool

_ROOM = 1e-6  # 0.51 + 0.49 of a GPU is one GPU


def fit(job: Job, cluster: Profile) -> dict[str, Pool]:
    """Workers per step on the cluster at its largest.

    Raises JobError when a worker fits on no node, or when the fewest workers that the job starts with do not fit side by side:
    some would wait, perhaps for ever.
    """
    pools = graph.pools(job, cluster.resources())
    problems = [*_without_gpu(job, cluster), *_too_large(pools, cluster)]
    if not problems and not _side_by_side(pools, cluster):
        problems = [_crowded(pools, cluster)]
    if problems:
        raise JobError("\n".join(problems))
    return pools


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
        if not any(_Free.of(node).take(pool) for _, node in nodes):
            yield (
                f"{step} asks {_asked(pool)} for each worker, which fits on no node of {cluster.name}; the largest ({group}) has "
                f"{_had(largest)}. Ask less ({_less(step, pool, largest)}), or choose a cluster with larger nodes."
            )


def _less(step: str, pool: Pool, node: Node) -> str:
    given = {"num_cpus": (pool.num_cpus or 0, node.cpus), "num_gpus": (pool.num_gpus or 0, node.gpus)}
    return " ".join(f"--set {step}.pool.{key}={has}" for key, (asks, has) in given.items() if asks > has) or f"{step}.pool"


def _side_by_side(pools: dict[str, Pool], cluster: Profile) -> bool:
    """Whether the fewest workers of all steps fit at once; the most demanding are placed first, as far from GPUs as they can be."""
    free = [_Free.of(node) for _, node, count in cluster.nodes() for _ in range(count)]
    free.sort(key=lambda node: len(node.gpus))
    for pool in sorted(pools.values(), key=lambda pool: (pool.num_gpus or 0, pool.num_cpus or 0), reverse=True):
        left = pool.min_workers or 1
        for node in free:
            while left and node.take(pool):
                left -= 1
        if left:
            return False
    return True


def _crowded(pools: dict[str, Pool], cluster: Profile) -> str:
    workers = ", ".join(f"{pool.min_workers} x {step} with {_asked(pool)}" for step, pool in pools.items())
    nodes = ", ".join(f"{count} x {group} with {_had(node)}" for group, node, count in cluster.nodes())
    return (
        f"the fewest workers of the job ({workers}) do not fit side by side on the nodes of {cluster.name} ({nodes}). Ask for fewer "
        "(perceive.pool.max_workers, describe.pool.max_workers) or smaller ones (num_cpus, num_gpus), or raise max_nodes."
    )


def _asked(pool: Pool) -> str:
    return f"{pool.num_cpus:g} CPU" + (f" and {pool.num_gpus:g} GPU" if pool.num_gpus else "")


def _had(node: Node) -> str:
    return f"{node.cpus} CPU and {node.gpus} GPU"


@dataclass
class _Free:
    """What of a node is free: CPUs, and of each GPU a share, because a worker's fraction is of one GPU."""

    cpus: float
    gpus: list[float]

    @classmethod
    def of(cls, node: Node) -> _Free:
        return cls(float(node.cpus), [1.0] * node.gpus)

    def take(self, pool: Pool) -> bool:
        """Place one worker; False when it has no room."""
        cpus, gpus = pool.num_cpus or 0.0, pool.num_gpus or 0.0
        share, count = (gpus, 1) if gpus <= 1 else (1.0, int(gpus))
        roomy = [index for index, free in enumerate(self.gpus) if free >= share - _ROOM][:count] if gpus else []
        if cpus > self.cpus + _ROOM or (gpus and len(roomy) < count):
            return False
        self.cpus -= cpus
        for index in roomy:
            self.gpus[index] -= share
        return True
