"""The six steps in order: sources -> decode -> perceive -> describe -> assemble -> write.

`run_ray` streams them over Ray Data; `run_inprocess` calls the same step functions in this process. Both yield staged parts,
which only the driver publishes. This file and guard.py are the only ones that know Ray.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datagen.assemble import assemble, region_row
from datagen.decode import make_decode_step
from datagen.describe import make_describe_step
from datagen.errors import ClusterError
from datagen.faults import fault_point
from datagen.guard import Guarded, Ledger, LedgerClient, LocalLedger, RayLedger, Step, split_suspects
from datagen.job import Job, Pool
from datagen.perceive import make_perceive_step
from datagen.records import Asset, Sample
from datagen.write import StagedPart, Store, open_store, stage_part

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset

BLOCK_ROWS = 64


@dataclass(frozen=True)
class Plan:
    """What a run needs to know everywhere: the job, where it writes, who it is, and the model's image size in pixels."""

    job: Job
    output: str
    run_id: str
    image_size: int

    @property
    def store(self) -> Store:
        """The output, for a worker or the driver."""
        return open_store(self.output, self.job.s3)


def step_factories(plan: Plan) -> dict[str, Callable[[], Step]]:
    """The steps that live in long-lived workers, in order."""
    return {
        "decode": partial(make_decode_step, plan.job, plan.image_size),
        "perceive": partial(make_perceive_step, plan.job),
        "describe": partial(make_describe_step, plan.job),
    }


def stage(plan: Plan, samples: list[Sample]) -> StagedPart:
    """The last two steps: rows from texts, then one whole Parquet part per table, staged but not published."""
    for sample in samples:
        fault_point("write", sample.asset.uri)
    finished = [assemble(sample, plan.job.assemble) for sample in samples]
    return stage_part(plan.store, plan.run_id, finished, plan.job.write, region_row)


@contextmanager
def started(plan: Plan) -> Iterator[LedgerClient]:
    """What the run needs besides its workers: Ray, unless the job runs in-process, and the ledger. Ends the Ray that it started."""
    if plan.job.run.executor == "inprocess":
        yield LocalLedger(Ledger(plan.store, plan.job.run.crash_tries))
        return
    import ray

    ours = start_ray(plan.job)
    try:
        yield RayLedger.start(plan.store, plan.job.run.crash_tries)
    finally:
        if ours:
            ray.shutdown()


def run(plan: Plan, ledger: LedgerClient, assets: list[tuple[int, Asset]]) -> Iterator[StagedPart]:
    """Run one wave of assets through the six steps. Yields staged parts as they finish, in any order."""
    executor = run_inprocess if plan.job.run.executor == "inprocess" else run_ray
    return executor(plan, ledger, assets)


def run_inprocess(plan: Plan, ledger: LedgerClient, assets: list[tuple[int, Asset]]) -> Iterator[StagedPart]:
    """Run the steps in this process, part by part."""
    workers = [Guarded(name, make, ledger) for name, make in step_factories(plan).items()]
    try:
        for chunk in _chunks((Sample(index, asset) for index, asset in assets), plan.job.write.assets_per_part):
            for worker in workers:
                chunk = worker.process(chunk)
            yield stage(plan, chunk)
    finally:
        for worker in workers:
            worker.teardown()


# --- on Ray Data -----------------------------------------------------------------------------------------------------------------


def start_ray(job: Job) -> bool:
    """Connect to the job's cluster, or start an embedded Ray; False when this process already has one. Raises ClusterError."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": True, "configure_logging": False}
    try:
        if job.run.ray_address:
            ray.init(address=job.run.ray_address, log_to_driver=True, configure_logging=False)
        else:
            store = job.run.object_store_gib
            ray.init(num_cpus=_embedded_cpus(job), object_store_memory=int(store * 2**30) if store else None, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = job.run.ray_address or "an embedded Ray"
        raise ClusterError(f"cannot start or reach {where}: {error}. See the run's log; `ray status` shows a cluster's state.") from error
    return True


def resources(job: Job) -> dict[str, float]:
    """CPUs and GPUs a run would have: those of the job's cluster, or of this machine, without starting anything here."""
    if job.run.ray_address:
        import ray

        start_ray(job)
        return dict(ray.cluster_resources())
    import torch

    return {"CPU": float(_embedded_cpus(job)), "GPU": float(torch.cuda.device_count())}


def _embedded_cpus(job: Job) -> int:
    # Logical: four steps must fit at once, also on the smallest machine.
    return job.run.num_cpus or max(os.cpu_count() or 1, 4)


def pools(job: Job, cluster: dict[str, float]) -> dict[str, Pool]:
    """Workers per step: what the job says, completed by what the cluster has (`CPU`, `GPU` counts as Ray reports them)."""
    cpus, gpus = cluster.get("CPU", 1.0), int(cluster.get("GPU", 0))
    uses_gpu = gpus > 0
    models = max(1, gpus) if uses_gpu else max(1, int(cpus) // 8)
    wanted = {
        "decode": Pool(num_cpus=0.5, num_gpus=0, min_workers=1, max_workers=max(1, int(cpus) // 2)),
        "perceive": Pool(num_cpus=1, num_gpus=0.3 * (uses_gpu and job.perceive.engine == "pam"), min_workers=models, max_workers=models),
        "describe": Pool(num_cpus=1, num_gpus=0.7 * (uses_gpu and job.describe.engine != "fake"), min_workers=models, max_workers=models),
        "write": Pool(num_cpus=0.25, num_gpus=0, min_workers=1, max_workers=max(1, int(cpus))),
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


def run_ray(plan: Plan, ledger: LedgerClient, assets: list[tuple[int, Asset]]) -> Iterator[StagedPart]:
    """Run one wave on Ray Data; only the small records of staged parts reach the driver."""
    import ray

    sizes = pools(plan.job, ray.cluster_resources())
    dataset = _source(assets, sizes)
    concurrency = {"describe": plan.job.describe.concurrent_batches}
    batches = {"decode": plan.job.decode.batch_size, "perceive": plan.job.perceive.batch_size, "describe": plan.job.describe.batch_size}
    for name, make in step_factories(plan).items():
        dataset = dataset.map_batches(
            _WORKERS[name],
            fn_constructor_args=(name, make, ledger),
            batch_size=batches[name],
            batch_format="pyarrow",
            compute=_strategy(sizes[name], concurrency.get(name, 1)),
            num_cpus=sizes[name].num_cpus,
            num_gpus=sizes[name].num_gpus or None,
            udf_modifying_row_count=False,
        )
    dataset = dataset.repartition(target_num_rows_per_block=plan.job.write.assets_per_part, strict=True).map_batches(
        partial(stage_table, plan, ledger), batch_size=None, batch_format="pyarrow", num_cpus=sizes["write"].num_cpus
    )
    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["staged"])
    except ray.exceptions.RayError as error:
        raise ledger.ask("fatal") or ClusterError(f"Ray gave up: {error}. Rerun the same command to resume.") from error


def _strategy(pool: Pool, concurrent: int) -> ActorPoolStrategy:
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        min_size=pool.min_workers,
        max_size=pool.max_workers,
        max_concurrent_calls_per_actor=concurrent,
        max_tasks_in_flight_per_actor=2 * concurrent,
        enable_true_multi_threading=concurrent > 1,
    )


def _source(assets: list[tuple[int, Asset]], sizes: dict[str, Pool]) -> Dataset:
    """One small block per chunk of assets: large enough to pay its scheduling, small enough that every worker gets some."""
    import ray

    workers = sum(pool.max_workers or 1 for pool in sizes.values())
    rows = max(1, min(BLOCK_ROWS, math.ceil(len(assets) / (2 * workers))))
    samples = (Sample(index, asset) for index, asset in assets)
    return ray.data.from_arrow([to_table(chunk) for chunk in _chunks(samples, rows)])


class _Worker:
    """A guarded step as Ray Data calls it."""

    def __init__(self, name: str, make_step: Callable[[], Step], ledger: LedgerClient) -> None:
        self._guarded = Guarded(name, make_step, ledger)

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table(self._guarded.process(from_table(table)))

    def __del__(self) -> None:
        if hasattr(self, "_guarded"):
            self._guarded.teardown()


class DecodeWorker(_Worker):
    """Named so that Ray's dashboard, logs and process titles say what runs."""


class PerceiveWorker(_Worker):
    """See DecodeWorker."""


class DescribeWorker(_Worker):
    """See DecodeWorker."""


_WORKERS = {"decode": DecodeWorker, "perceive": PerceiveWorker, "describe": DescribeWorker}


def stage_table(plan: Plan, ledger: LedgerClient, table: pa.Table) -> pa.Table:
    """The write step as Ray Data calls it: a table of finished samples in, one small record per staged part out."""
    chunks = split_suspects("write", ledger, from_table(table), plan.job.run.crash_tries)
    staged = [pickle.dumps(stage(plan, chunk)) for chunk in chunks]
    ledger.tell("end", "write", [sample.asset.asset_id for chunk in chunks for sample in chunk])
    return pa.table({"staged": pa.array(staged, pa.large_binary())})


# --- samples as Arrow rows ---------------------------------------------------------------------------------------------------------


def to_table(samples: list[Sample]) -> pa.Table:
    """One row per sample: its arrays as raw bytes in one column, everything else as one small pickle in the other."""
    pickles, arrays = [], []
    for sample in samples:
        buffers: list[pickle.PickleBuffer] = []
        pickles.append(pickle.dumps(sample, protocol=5, buffer_callback=buffers.append))
        arrays.append([buffer.raw() for buffer in buffers])
    return pa.table({"sample": pa.array(pickles, pa.large_binary()), "arrays": pa.array(arrays, pa.list_(pa.large_binary()))})


def from_table(table: pa.Table) -> list[Sample]:
    """The samples of a table. Their arrays are read-only views of the table's memory, without a copy."""
    rows = zip(table["sample"], table["arrays"], strict=True)
    return [pickle.loads(sample.as_buffer(), buffers=[array.as_buffer() for array in arrays]) for sample, arrays in rows]


def _chunks(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    chunk: list[Sample] = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
