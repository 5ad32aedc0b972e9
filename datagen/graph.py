"""The six steps in order: sources -> decode -> perceive -> describe -> assemble -> write.

An image is one sample all the way. A video becomes one sample per clip: its perceive worker reads it, clip after clip, through a
decoding child of its own, because a video's frames are too many to travel.

Ray Data streams the steps, or the same step functions are called in this process. Both yield staged parts, which only the driver
publishes. Only this file, ledger.py, metrics.py and workers.py know Ray.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datagen.assemble import assemble, region_row, track_row
from datagen.blocks import Waiting, chunks, from_table, to_table
from datagen.decode import make_decode_step, make_video_reader
from datagen.describe import make_describe_step
from datagen.errors import ClusterError, JobError
from datagen.events import log_event
from datagen.faults import fault_point
from datagen.guard import AnyStep, ClipStep, Guarded, GuardedClips, Step, leave, split_suspects
from datagen.interrupts import handlers_kept
from datagen.job import Job, Pool
from datagen.landmarks import Landmark, Landmarks, look_for
from datagen.ledger import Ledger, LedgerClient, LocalLedger, RayLedger
from datagen.loopback import keep_token_private, on_loopback
from datagen.machine import ray_folder
from datagen.patience import in_short
from datagen.perceive import make_perceive_step, make_video_step
from datagen.portions import in_portions, is_counted, weighed
from datagen.records import Sample
from datagen.room import embedded_cpus, pools, timeout_of
from datagen.workers import Overseer, let_executors_end, refuse_crowd, tables_of
from datagen.write import StagedPart, StagedPortion, Store, open_store, put_together, stage_clip, stage_part, stage_portion

if TYPE_CHECKING:
    from ray.data import ActorPoolStrategy, Dataset


_LAST_WORDS_S = 10.0


@dataclass(frozen=True)
class Plan:
    """What a run needs to know everywhere: the job, where it writes, who it is, the model's image size in pixels, what is to be seen."""

    job: Job
    output: str
    run_id: str
    image_size: int
    landmarks: Landmarks = field(default_factory=Landmarks)

    @property
    def store(self) -> Store:
        """The output, for a worker or the driver."""
        return open_store(self.output, self.job.s3)


def step_factories(plan: Plan, ledger: LedgerClient) -> dict[str, Callable[[], Step]]:
    """The steps that live in long-lived workers, in order. What happens to them is told to the ledger."""
    media, weights = plan.landmarks.media, plan.landmarks.weights
    return {
        "decode": partial(_where, media, partial(make_decode_step, plan.job, plan.image_size)),
        "perceive": partial(_where, weights, partial(make_perceive_step, plan.job, partial(note_to, ledger, "perceive"))),
        "describe": partial(_where, weights, partial(make_describe_step, plan.job, partial(note_to, ledger, "describe"))),
    }


def clip_step_factory(plan: Plan, ledger: LedgerClient) -> Callable[[], ClipStep]:
    """The perceive step of videos, which decodes them, too."""
    make_reader, seen = partial(make_video_reader, plan.job), plan.landmarks
    make = partial(make_video_step, plan.job, plan.image_size, make_reader, partial(note_to, ledger, "perceive"))
    return partial(_where, (*seen.media, *seen.weights, *seen.output), make)


def _where(landmarks: Sequence[Landmark], make: Callable[[], AnyStep]) -> AnyStep:
    """A step, in a worker that sees what the driver sees. Raises JobError elsewhere."""
    look_for(landmarks)
    return make()


def note_to(ledger: LedgerClient, step: str, event: str, message: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """An events.Note of a step's workers."""
    ledger.insist("note", step, event, message, level, facts)


def stage(plan: Plan, samples: list[Sample]) -> list[StagedPart | StagedPortion]:
    """The last two steps: rows from texts, then one whole Parquet part per table, staged but not published.

    samples: any number of images, or one clip of a video. Failed images get a part of their own, which a later run can take out.
    """
    if samples[0].clip is not None:
        return [_staged_clip(plan, samples[0])]
    for sample in samples:
        fault_point("write", sample.asset.uri)
    to_row = partial(region_row, token_logprobs=plan.job.describe.logprobs > 0)
    finished, where = [assemble(sample, plan.job.assemble) for sample in samples], (plan.store, plan.run_id)
    portions = [stage_portion(*where, sample, plan.job.write, to_row) for sample in finished if sample.portion]
    images = [sample for sample in finished if not sample.portion]
    groups = [[sample for sample in images if (sample.failure is None) == is_good] for is_good in (True, False)]
    return [*portions, *(stage_part(*where, group, plan.job.write, to_row) for group in groups if group)]


def _staged_clip(plan: Plan, sample: Sample) -> StagedPart:
    fault_point("write", sample.asset.uri)
    to_row = partial(track_row, token_logprobs=plan.job.describe.logprobs > 0)
    return stage_clip(plan.store, plan.run_id, assemble(sample, plan.job.assemble), plan.job.write, to_row)


@contextmanager
def started(plan: Plan) -> Iterator[LedgerClient]:
    """What the run needs besides its workers: Ray, unless the job runs in-process, and the ledger. Ends the Ray that it started."""
    # torch, here and in the processes that inherit it: large tensors in huge pages. On a CPU page faults took a sixth of the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if plan.job.run.executor == "inprocess":
        yield LocalLedger(Ledger(plan.store, plan.job.run.crash_tries))
        return
    import ray

    ours = start_ray(plan.job)
    try:
        if not plan.job.run.ray_address:
            refuse_crowd(plan.job)
        yield RayLedger.start(plan.store, plan.job.run.crash_tries, plan.run_id)
    finally:
        if ours:
            let_executors_end()
            ray.shutdown()


def run_images(plan: Plan, ledger: LedgerClient, samples: Waiting) -> Iterator[StagedPart]:
    """Run one wave of images through the six steps. Yields staged parts as they finish, in any order."""
    run = _images_on_ray if plan.job.run.executor == "ray" else _images_here
    yield from put_together(plan.store, plan.run_id, run(plan, ledger, samples), plan.job.write)


def _images_here(plan: Plan, ledger: LedgerClient, samples: Waiting) -> Iterator[StagedPart | StagedPortion]:
    makers, job = step_factories(plan, ledger).items(), plan.job
    workers = [Guarded(name, make, ledger, renews=name != "decode", timeout_s=timeout_of(job, name)) for name, make in makers]
    most, max_regions = job.write.assets_per_part, job.perceive.everything.max_regions
    with _torn_down(workers):
        for chunk in chunks(in_portions(samples), most):
            finished: list[Sample] = []
            for some in weighed(chunk, most, max_regions):
                if ledger.ask("draining"):
                    break
                for worker in workers:
                    some = worker.process(some)
                finished += some
            yield from stage(plan, finished) if finished else []
            if len(finished) < len(chunk):
                return


def run_videos(plan: Plan, ledger: LedgerClient, samples: list[Sample]) -> Iterator[StagedPart]:
    """Run one wave of videos. Yields one staged part per clip as it finishes, in any order."""
    if plan.job.run.executor == "ray":
        yield from _videos_on_ray(plan, ledger, samples)
        return
    factory, timeout_s = clip_step_factory(plan, ledger), plan.job.perceive.timeout_s
    perceive = GuardedClips("perceive", factory, ledger, plan.store, renews=True, timeout_s=timeout_s)
    with _torn_down([perceive]):
        describe = Guarded("describe", step_factories(plan, ledger)["describe"], ledger, renews=True)
        with _torn_down([describe]):
            for sample in samples:
                for clip in perceive.clips(sample):
                    yield from (_staged_clip(plan, done) for done in describe.process([clip]))


@contextmanager
def _torn_down(workers: Sequence[Guarded | GuardedClips]) -> Iterator[None]:
    try:
        yield
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
    # `local`: without an address Ray would join whatever cluster was last started on this machine.
    embedded: dict[str, Any] = {"address": "local", "include_dashboard": False, "num_cpus": embedded_cpus(job), "_temp_dir": ray_folder()}
    if os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV") == "0":  # it may have been imported before that was said
        ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    quiet: dict[str, Any] = {"log_to_driver": True, "configure_logging": False}
    try:
        with handlers_kept():
            if job.run.ray_address:
                ray.init(address=job.run.ray_address, **quiet)
            else:
                memory = int(job.run.object_store_gib * 2**30) if job.run.object_store_gib else None
                keep_token_private()
                with on_loopback():
                    ray.init(object_store_memory=memory, _metrics_export_port=job.run.metrics_port, **embedded, **quiet)
    except Exception as error:  # Ray raises that itself when a node does not start in time
        where = job.run.ray_address or "an embedded Ray"
        if "InvalidAuthToken" in f"{error} {error.__cause__}":
            raise ClusterError(f"{where} asks for another token than this machine has: {ClusterError.token_wanted}") from error
        raise ClusterError(f"cannot start or reach {where}: {error}. See the run's log; `ray status` shows a cluster's state.") from error
    nodes = [node for node in ray.nodes() if node["Alive"]]
    endpoints = [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]
    log_event("ray_started", f"Ray has {len(nodes)} nodes, with metrics for Prometheus at these addresses", endpoints=endpoints)
    return True


def resources(job: Job) -> dict[str, float]:
    """CPUs and GPUs a run would have: those of the job's cluster, or of this machine, without starting anything here."""
    if job.run.ray_address:
        import ray

        start_ray(job)
        return dict(ray.cluster_resources())
    import torch

    return {"CPU": float(embedded_cpus(job)), "GPU": float(torch.cuda.device_count())}


def num_gpus(job: Job) -> float:
    """GPUs of the cluster or machine that a run is on, once it is on. Raises ClusterError when Ray does not answer."""
    if job.run.executor == "ray":
        import ray

        try:
            return float(ray.cluster_resources().get("GPU", 0))
        except Exception as error:  # Ray has many ways to say that its head is gone
            raise ClusterError(f"the cluster does not say what it has: {error}. Rerun the same command to resume.") from error
    torch = sys.modules.get("torch")  # an engine that uses one has loaded it
    return float(torch.cuda.device_count()) if torch else 0.0


def _images_on_ray(plan: Plan, ledger: LedgerClient, samples: Waiting) -> Iterator[StagedPart | StagedPortion]:
    import ray

    sizes, job = pools(plan.job, ray.cluster_resources()), plan.job
    # A block is a task in every step: large enough to pay its scheduling, small enough that every model worker gets some soon.
    models = max(sizes["perceive"].max_workers or 1, sizes["describe"].max_workers or 1)
    rows = min(job.perceive.batch_size, math.ceil(len(samples) / (2 * models)))
    together = weighed(in_portions(samples), rows, job.perceive.everything.max_regions)
    dataset = ray.data.from_blocks(list(map(to_table, together)))
    for name, make in step_factories(plan, ledger).items():
        dataset = _with_step(dataset, name, (name, make, ledger, name == "describe", timeout_of(job, name)), sizes[name], job)
    dataset = dataset.repartition(target_num_rows_per_block=job.write.assets_per_part, strict=True)
    yield from _staged(plan, ledger, dataset, sizes["write"])


def _videos_on_ray(plan: Plan, ledger: LedgerClient, samples: list[Sample]) -> Iterator[StagedPart]:
    import ray

    sizes, job = pools(plan.job, ray.cluster_resources()), plan.job
    context = ray.data.DataContext.get_current()
    before, context.target_max_block_size = context.target_max_block_size, 1
    try:  # every clip is a block of its own, handed on as soon as it is there; the dataset keeps a copy of the context
        dataset = ray.data.from_blocks([to_table([sample]) for sample in samples])
    finally:
        context.target_max_block_size = before
    dataset = _with_step(
        dataset, "clips", ("perceive", clip_step_factory(plan, ledger), ledger, plan.store, job.perceive.timeout_s), sizes["perceive"], job
    )
    dataset = _with_step(dataset, "describe", ("describe", step_factories(plan, ledger)["describe"], ledger, True), sizes["describe"], job)
    yield from _staged(plan, ledger, dataset, sizes["write"])


def _with_step(dataset: Dataset, worker: str, arguments: tuple[Any, ...], pool: Pool, job: Job) -> Dataset:
    # A batch is a block, as it is. The public map_batches refuses that for workers with a GPU, because it cannot know how large a block is;
    # Ray's own map_groups calls this one for the same reason.
    return dataset.map_batches_internal(
        _WORKERS[worker],
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        compute=_strategy(pool, job.describe.concurrent_batches if worker == "describe" else 1),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
        udf_modifying_row_count=worker == "clips",
    )


def _staged(plan: Plan, ledger: LedgerClient, dataset: Dataset, pool: Pool) -> Iterator[StagedPart]:
    """The write step, block by block; only the small records of staged parts reach the driver."""
    import ray

    staged = dataset.map_batches(
        partial(stage_table, plan, ledger),
        batch_size=None,
        batch_format="pyarrow",
        # Without a limit Ray starts a process for every part that waits, and a process takes longer to start than a part to write.
        compute=ray.data.TaskPoolStrategy(pool.max_workers),
        num_cpus=pool.num_cpus,
    )
    overseer = Overseer(plan.job.run, ledger)
    try:
        with overseer.watching():
            bundles = overseer.wait_for(staged.iter_internal_ref_bundles)
            while (bundle := overseer.wait_for(partial(next, bundles, None))) is not None:
                for table in overseer.wait_for(partial(tables_of, bundle)):
                    yield from map(pickle.loads, table["staged"].to_pylist())
    except ray.exceptions.RayError as error:
        fatal = ledger.ask_within(_LAST_WORDS_S, "fatal")
        raise fatal or ClusterError(f"Ray gave up: {in_short(str(error)).rstrip('.')}. Rerun the same command to resume.") from error


def _strategy(pool: Pool, concurrent: int) -> ActorPoolStrategy:
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(
        min_size=pool.min_workers,
        max_size=pool.max_workers,
        max_concurrent_calls_per_actor=concurrent,
        max_tasks_in_flight_per_actor=2 * concurrent,
        enable_true_multi_threading=concurrent > 1,
    )


class _Worker:
    """A guarded step as Ray Data calls it."""

    def __init__(self, name: str, make: Callable[[], Step], ledger: LedgerClient, concurrent: bool, timeout_s: float | None = None) -> None:
        self._name, self._ledger = name, ledger
        self._guarded = Guarded(name, make, ledger, is_concurrent=concurrent, timeout_s=timeout_s)

    def __call__(self, table: pa.Table) -> pa.Table:
        samples = from_table(table)
        if self._ledger.ask("draining"):
            return to_table(leave(self._name, self._ledger, samples))
        return to_table(self._guarded.process(samples))

    def __del__(self) -> None:
        if hasattr(self, "_guarded"):
            self._guarded.teardown()


class DecodeWorker(_Worker):
    """Named so that Ray's dashboard, logs and process titles say what runs."""


class PerceiveWorker(_Worker):
    """See DecodeWorker."""


class DescribeWorker(_Worker):
    """See DecodeWorker."""


class ClipsWorker:
    """The guarded perceive step of videos as Ray Data calls it: a video in, its clips out, one by one."""

    def __init__(self, name: str, make_step: Callable[[], ClipStep], ledger: LedgerClient, store: Store, timeout_s: float) -> None:
        self._guarded = GuardedClips(name, make_step, ledger, store, timeout_s=timeout_s)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """One table per clip."""
        for sample in from_table(table):
            for clip in self._guarded.clips(sample):
                yield to_table([clip])

    def __del__(self) -> None:
        if hasattr(self, "_guarded"):
            self._guarded.teardown()


_WORKERS = {"decode": DecodeWorker, "perceive": PerceiveWorker, "clips": ClipsWorker, "describe": DescribeWorker}


def stage_table(plan: Plan, ledger: LedgerClient, table: pa.Table) -> pa.Table:
    """The write step as Ray Data calls it: a table of finished samples in, one small record per staged part out."""
    started = time.monotonic()
    try:
        look_for(plan.landmarks.output)
    except JobError as error:
        ledger.ask("stop", error)
        raise
    samples = [sample for sample in from_table(table) if not sample.left]
    groups = split_suspects("write", ledger, samples, plan.job.run.crash_tries) if samples else []
    staged = [pickle.dumps(part) for group in groups for part in stage(plan, group)]
    if samples:
        ledger.tell("end", "write", [sample.work_id for sample in samples], time.monotonic() - started, len(samples))
        ledger.tell("count", {"write": sum(map(is_counted, samples))})
    return pa.table({"staged": pa.array(staged, pa.large_binary())})
