"""How many workers each step gets, and whether they find room: CPUs and GPUs of nodes, as Ray gives them out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from datagen.job import Job, Pool

_ROOM = 1e-6  # 0.51 + 0.49 of a GPU is one GPU


def pools(job: Job, cluster: dict[str, float]) -> dict[str, Pool]:
    """Workers per step: what the job says, completed by what the cluster has (`CPU`, `GPU` counts as Ray reports them)."""
    cpus, gpus = cluster.get("CPU", 1.0), int(cluster.get("GPU", 0))
    uses_gpu = gpus > 0
    models = max(1, gpus) if uses_gpu else max(1, int(cpus) // 8)
    # Without a GPU a worker computes with as many threads as it has CPUs, and the language model has the most to do.
    threads = 1 if uses_gpu else max(1, int((cpus / models - 2) * 2 / 3))
    # A share decides only who fits beside whom: more than half, so that two perceive workers never meet on a GPU whose describe worker
    # then finds room nowhere. How much memory the language model takes is describe.gpu_memory_fraction.
    on_gpu = {
        "perceive": 0.51 * (uses_gpu and job.perceive.engine == "pam"),
        "describe": 0.49 * (uses_gpu and job.describe.engine != "fake"),
    }
    wanted = {
        "decode": Pool(num_cpus=0.5, num_gpus=0, min_workers=1, max_workers=max(1, int(cpus - 2) // 2)),
        "perceive": Pool(num_cpus=max(1, threads // 2), num_gpus=on_gpu["perceive"], min_workers=models, max_workers=models),
        "describe": Pool(num_cpus=threads, num_gpus=on_gpu["describe"], min_workers=models, max_workers=models),
        "write": Pool(num_cpus=0.25, num_gpus=0, min_workers=1, max_workers=max(2, int(cpus) // 4)),
    }
    given = {"decode": job.decode.pool, "perceive": job.perceive.pool, "describe": job.describe.pool, "write": job.write.pool}
    return {step: _complete(given[step], default) for step, default in wanted.items()}


def _complete(given: Pool, default: Pool) -> Pool:
    values = default.model_dump() | given.model_dump(exclude_none=True)
    if given.max_workers and not given.min_workers:
        values["min_workers"] = min(values["min_workers"], given.max_workers)
    if given.min_workers and not given.max_workers:
        values["max_workers"] = max(values["max_workers"], given.min_workers)
    return Pool(**values)


@dataclass
class Free:
    """What of a node is free: CPUs, and of each GPU a share, because a worker's fraction is of one GPU."""

    cpus: float
    gpus: list[float]

    @classmethod
    def of(cls, cpus: float, gpus: int) -> Free:
        """A whole node."""
        return cls(float(cpus), [1.0] * gpus)

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


def side_by_side(pools: Iterable[Pool], nodes: Sequence[tuple[float, int]]) -> bool:
    """Whether the fewest workers of all steps fit at once; the most demanding are placed first, as far from GPUs as they can be.

    nodes: CPUs and GPUs of each.
    """
    free = [Free.of(cpus, gpus) for cpus, gpus in nodes]
    free.sort(key=lambda node: len(node.gpus))
    for pool in sorted(pools, key=lambda pool: (pool.num_gpus or 0, pool.num_cpus or 0), reverse=True):
        left = pool.min_workers or 1
        for node in free:
            while left and node.take(pool):
                left -= 1
        if left:
            return False
    return True


def asked(pool: Pool) -> str:
    """What a worker asks for, in words."""
    return f"{pool.num_cpus or 0:g} CPU" + (f" and {pool.num_gpus:g} GPU" if pool.num_gpus else "")


def had(cpus: float, gpus: int) -> str:
    """What a node has, in words."""
    return f"{cpus:g} CPU and {gpus} GPU"


def no_room(pools: Mapping[str, Pool], nodes: Sequence[tuple[float, int]], where: str) -> str | None:
    """Why the fewest workers of these steps can never all be there; None where they can. where: what the nodes are of, in words."""
    for step, pool in pools.items():
        if not any(Free.of(*node).take(pool) for node in nodes):
            largest = max(nodes, key=lambda node: (node[1], node[0]), default=(0.0, 0))
            return (
                f"{step} asks {asked(pool)} for each worker, which fits on no node of {where}; the largest has {had(*largest)}. "
                f"Ask less: {step}.pool.num_cpus, {step}.pool.num_gpus"
            )
    if side_by_side(pools.values(), nodes):
        return None
    workers = ", ".join(f"{pool.min_workers} x {step} with {asked(pool)}" for step, pool in pools.items())
    return (
        f"the fewest workers of the job ({workers}) do not fit side by side on {where} ({', '.join(had(*node) for node in nodes)}), and "
        "each step waits for the others. Ask for fewer (perceive.pool.max_workers, describe.pool.max_workers) or smaller ones "
        "(num_cpus, num_gpus)"
    )


def embedded_cpus(job: Job) -> int:
    """CPUs of an embedded Ray, counted as Ray does."""
    # Logical: four steps must fit at once, also on the smallest machine, and two threads of the language model.
    return job.run.num_cpus or max(os.cpu_count() or 1, 6)


def timeout_of(job: Job, step: str) -> float | None:
    """How long a call of a step may give no sign of life, seconds; None where it watches itself, as decoding and the text engine do."""
    return job.perceive.timeout_s if step == "perceive" else None
