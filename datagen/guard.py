"""The contract of a step, and what turns errors, crashes and hangs into rows.

Ray retries for ever by default. The ledger, one small actor beside the driver, bounds that: a worker tells it which assets
it is about to touch; when another worker is given an asset that a dead worker still holds, that asset is a suspect. Suspects
are run one at a time, and one that has killed its worker `tries` times becomes a failed row. Counts are kept in the output,
so they hold across restarts of the job.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from datagen.errors import ClusterError, DatagenError, DecodeError, ModelOutputError, PromptError
from datagen.faults import fault_point
from datagen.records import Clip, ResumePoint, Sample, work_id_of
from datagen.write import committed_clips, open_store

logger = logging.getLogger(__name__)

CRASHES = "_datagen/crashes.json"
AnyStep = TypeVar("AnyStep", "Step", "ClipStep")
ONE_SAMPLE = (DecodeError, PromptError, ModelOutputError)


class Step(Protocol):
    """One step's worker code. It lives in one worker, is set up once, and sees many batches.

    `process` returns the same samples in the same order, each further along or failed; a failed sample that comes in is left
    alone. An error about one sample becomes that sample's failure inside the step; ModelLoadError and JobError are raised and
    stop the job. `process` of a step whose worker runs several calls at once (describe) must be thread-safe.
    """

    def setup(self) -> None:
        """Load what is heavy. Called once, before the first batch, in the worker."""

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Take a batch one step further."""

    def teardown(self) -> None:
        """Let go of processes and memory. Called once, after the last batch."""


class ClipStep(Protocol):
    """A step that turns one sample of a video into samples of its clips. Lives like a Step.

    `clips` goes on from `sample.resume`; the same sample gives the same clips, so that a retried worker can take over. The last one
    has `clip.is_last`. An error about the video becomes a failed last clip; ModelLoadError, JobError and ClusterError stop the job.
    """

    def setup(self) -> None:
        """Load what is heavy."""

    def clips(self, sample: Sample) -> Iterator[Sample]:
        """The clips of a video, each when it is done."""

    def teardown(self) -> None:
        """Let go of processes and memory."""


class Ledger:
    """Who works on what, who died of it, and how far the run is. One per run; runs as an actor, or as a plain object in-process."""

    def __init__(self, output: str, tries: int) -> None:
        self._store = open_store(output)
        self._tries = tries
        self._holder: dict[tuple[str, str], str] = {}
        self._alone: set[tuple[str, str]] = set()
        self._suspects: set[tuple[str, str]] = set()
        self._failed_setups: Counter[str] = Counter()
        self._fatal: DatagenError | None = None
        self.counters: Counter[str] = Counter()
        self._spans: dict[str, list[float]] = {}
        self._crashes: dict[str, int] = json.loads(self._store.read(CRASHES)) if self._store.exists(CRASHES) else {}

    def begin_setup(self, step: str) -> None:
        """A worker of `step` is about to load its model. Raises ClusterError when too many died doing that."""
        self._failed_setups[step] += 1
        if self._failed_setups[step] > self._tries:
            message = f"the {step} worker died {self._tries} times while starting (out of memory?). The run's log has its last words."
            self._fatal = ClusterError(message)
            raise self._fatal

    def end_setup(self, step: str) -> None:
        """The worker is up."""
        self._failed_setups[step] = 0

    def begin(self, step: str, worker: str, work_ids: list[str], alone: bool = False) -> dict[str, int]:
        """`worker` is about to process these samples. Returns, for each suspect among them, how often it has killed a worker so far."""
        self._spans.setdefault(step, [time.time()] * 2)
        for work_id in work_ids:
            key = (step, work_id)
            if self._holder.get(key, worker) != worker:
                self._suspects.add(key)
                if key in self._alone:
                    self._count_crash(step, work_id)
            self._holder[key] = worker
            (self._alone.add if alone else self._alone.discard)(key)
        return {a: self._crashes.get(f"{step}/{a}", 0) for a in work_ids if (step, a) in self._suspects or f"{step}/{a}" in self._crashes}

    def end(self, step: str, work_ids: list[str]) -> None:
        """These assets went through."""
        self._spans[step][1] = time.time()
        for work_id in work_ids:
            self._holder.pop((step, work_id), None)
            self._alone.discard((step, work_id))

    def _count_crash(self, step: str, work_id: str) -> None:
        key = f"{step}/{work_id}"
        self._crashes[key] = self._crashes.get(key, 0) + 1
        self.counters["crashes"] += 1
        self._store.write(CRASHES, json.dumps(self._crashes, indent=0, sort_keys=True).encode())

    def tries(self) -> int:
        """How often an asset may kill its worker."""
        return self._tries

    def stop(self, error: DatagenError) -> None:
        """Keep the error that stops the job; Ray would hand the driver only its text."""
        self._fatal = self._fatal or error

    def fatal(self) -> DatagenError | None:
        """The error that stopped the job, if one did."""
        return self._fatal

    def count(self, counts: dict[str, int]) -> None:
        """Add to the progress counters."""
        self.counters.update(counts)

    def spans(self) -> dict[str, list[float]]:
        """Per step: when its first batch began and its latest ended, seconds since the epoch."""
        return self._spans

    def progress(self) -> dict[str, int]:
        """The progress counters: samples per step, regions, output tokens, failures, crashes."""
        return dict(self.counters)


class LedgerClient(Protocol):
    """How a worker reaches the ledger: `ask` waits for the answer, `tell` does not."""

    def ask(self, method: str, *args: Any) -> Any:
        """Call a ledger method and wait."""

    def tell(self, method: str, *args: Any) -> None:
        """Call a ledger method and go on."""


class LocalLedger:
    """A ledger in the same process."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def ask(self, method: str, *args: Any) -> Any:
        """Call a ledger method."""
        return getattr(self._ledger, method)(*args)

    tell = ask


class RayLedger:
    """A ledger that lives in a Ray actor; the handle travels to every worker."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def start(cls, output: str, tries: int) -> RayLedger:
        """Start the actor on the driver's node, so that it lives and dies with the driver."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Ledger)
        return cls(actor.remote(output, tries))

    def ask(self, method: str, *args: Any) -> Any:
        """Call a ledger method and wait for its answer. Its DatagenError comes back as itself."""
        import ray

        try:
            return ray.get(getattr(self._handle, method).remote(*args))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, DatagenError) else error) from None
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the run's ledger is gone ({error}); rerun the same command to resume") from error

    def tell(self, method: str, *args: Any) -> None:
        """Call a ledger method without waiting."""
        getattr(self._handle, method).remote(*args)


def split_suspects(step: str, ledger: LedgerClient, samples: list[Sample], tries: int) -> list[list[Sample]]:
    """For a step that runs as a Ray task: the samples in the groups to process, suspects alone, those out of tries as failed rows."""
    worker = uuid.uuid4().hex
    ids = [sample.work_id for sample in samples]
    suspects: dict[str, int] = ledger.ask("begin", step, worker, ids, len(ids) == 1)
    for sample in samples:
        if suspects.get(sample.work_id, 0) >= tries and sample.failure is None:
            _give_up(sample, step, suspects[sample.work_id])
    calm = [sample for sample in samples if sample.work_id not in suspects]
    return [group for group in (calm, *([sample] for sample in samples if sample.work_id in suspects)) if group]


def _give_up(sample: Sample, step: str, crashes: int) -> None:
    sample.attempts = crashes
    sample.fail(f"{step}_crashed", f"this asset killed the {step} worker {crashes} times; it is left out")


def _set_up(name: str, make_step: Callable[[], AnyStep], ledger: LedgerClient) -> AnyStep:
    ledger.ask("begin_setup", name)
    try:
        step = make_step()
        step.setup()
    except DatagenError as error:
        ledger.ask("stop", error)
        raise
    ledger.ask("end_setup", name)
    return step


class Guarded:
    """A step inside a worker, guarded: crashes are counted against suspects, and progress is reported."""

    def __init__(self, name: str, make_step: Callable[[], Step], ledger: LedgerClient) -> None:
        self._name = name
        self._ledger = ledger
        self._worker = uuid.uuid4().hex
        self._one_at_a_time = threading.Lock()
        self._step = _set_up(name, make_step, ledger)
        self._tries: int = ledger.ask("tries")

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Process a batch; suspects in it go through alone, the ones that used up their tries become failed rows."""
        live = [s.work_id for s in samples if s.failure is None]
        suspects: dict[str, int] = self._ledger.ask("begin", self._name, self._worker, live, len(live) == 1) if live else {}
        calm = [s for s in samples if s.work_id not in suspects]
        try:
            self._run(calm)
            for sample in samples:
                if sample.work_id in suspects:
                    self._run_suspect(sample, suspects[sample.work_id])
        except DatagenError as error:
            self._ledger.ask("stop", error)
            raise
        if live:
            self._ledger.tell("end", self._name, live)
        self._report(samples)
        return samples

    def _run(self, samples: list[Sample]) -> None:
        """Run a batch; where it raises about its content, run its samples one by one and fail the one that raises."""
        if not samples:
            return
        try:
            for sample in samples:
                fault_point(f"worker.{self._name}", sample.asset.uri)
            done = self._step.process(samples)
        except ONE_SAMPLE as error:
            self._run_singly(samples, error.code, error.message)
            return
        except DatagenError:
            raise
        except Exception as error:  # noqa: BLE001 (a bad sample is a row)
            self._run_singly(samples, f"{self._name}_error", f"{type(error).__name__}: {error}")
            return
        if [s.index for s in done] != [s.index for s in samples]:
            raise DatagenError(f"the {self._name} step returned other samples than it was given")
        for sample, finished in zip(samples, done, strict=True):
            if finished is not sample:
                for slot in Sample.__slots__:
                    setattr(sample, slot, getattr(finished, slot))

    def _run_singly(self, samples: list[Sample], code: str, message: str) -> None:
        if len(samples) == 1:
            logger.exception("%s failed on %s", self._name, samples[0].asset.uri)
            samples[0].fail(code, message)
            return
        for sample in samples:
            self._run([sample])

    def _run_suspect(self, sample: Sample, crashes: int) -> None:
        if crashes >= self._tries:
            _give_up(sample, self._name, crashes)
            return
        with self._one_at_a_time:
            crashes = self._ledger.ask("begin", self._name, self._worker, [sample.work_id], True).get(sample.work_id, crashes)
            sample.attempts = max(sample.attempts, crashes + 1)
            self._run([sample])
            self._ledger.ask("end", self._name, [sample.work_id])

    def _report(self, samples: list[Sample]) -> None:
        num_clips = sum(s.clip is not None for s in samples)
        counts: Counter[str] = Counter({self._name: len(samples) - num_clips, "clips": num_clips})
        if self._name == "perceive":
            counts["regions_found"] = sum(len(s.regions) for s in samples)
        if self._name == "describe":
            counts["regions"] = sum(len(s.regions) for s in samples)
            counts["tracks"] = sum(len(s.tracks) for s in samples)
            counts["failed"] = sum(s.failure is not None for s in samples)
            for sample in samples:
                counts.update(sample.usage)
        self._ledger.tell("count", dict(+counts))

    def teardown(self) -> None:
        """Let go of the step's resources."""
        self._step.teardown()


class GuardedClips:
    """A ClipStep inside a worker, guarded: a clip that kills its worker is tried again, then fails, and ends its video."""

    def __init__(self, name: str, make_step: Callable[[], ClipStep], ledger: LedgerClient, output: str) -> None:
        self._name = name
        self._ledger = ledger
        self._worker = uuid.uuid4().hex
        self._store = open_store(output)
        self._step = _set_up(name, make_step, ledger)
        self._tries: int = ledger.ask("tries")

    def clips(self, sample: Sample) -> Iterator[Sample]:
        """The clips of a video from `sample.resume` on.

        When Ray calls again because a worker died, it has the clips that came before and skips as many. So those that were committed
        meanwhile are not made again: an empty sample, which nobody will look at, stands for each.
        """
        resume = sample.resume or ResumePoint(0, 0.0, 0, [])
        for clip in committed_clips(self._store, sample.asset.asset_id, resume.clip_index):
            yield replace(sample, clip=clip, resume=None)
            if clip.is_last:
                return
            resume = ResumePoint(clip.clip_index + 1, clip.end_s, max(resume.next_track, clip.next_track), clip.handovers)
        try:
            yield from self._clips(replace(sample, resume=resume), resume)
        except DatagenError as error:
            self._ledger.ask("stop", error)
            raise

    def _clips(self, sample: Sample, resume: ResumePoint) -> Iterator[Sample]:
        clips = self._step.clips(sample)
        index, start_s = resume.clip_index, resume.start_s
        while True:
            key = work_id_of(sample.asset.asset_id, index)
            crashes: int = self._ledger.ask("begin", self._name, self._worker, [key], True).get(key, 0)
            if crashes >= self._tries:
                lost = replace(sample, clip=Clip(index, start_s, start_s, 0, is_last=True), resume=None)
                _give_up(lost, self._name, crashes)
                yield lost
                return
            fault_point(f"worker.{self._name}", f"{sample.asset.uri}#clip={index};")
            done = next(clips, None)
            self._ledger.tell("end", self._name, [key])
            if done is None or done.clip is None:
                return
            done.attempts = max(done.attempts, crashes + 1)
            self._ledger.tell("count", {"clips_tracked": 1})
            yield done
            index, start_s = index + 1, done.clip.end_s

    def teardown(self) -> None:
        """Let go of the step's resources."""
        self._step.teardown()
