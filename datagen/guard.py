"""The contract of a step, and what turns errors, crashes and hangs into rows. The bookkeeping is in ledger.py."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from datagen.errors import DatagenError, DecodeError, EngineDiedError, ModelOutputError, PromptError
from datagen.faults import fault_point
from datagen.ids import work_id_of
from datagen.ledger import LedgerClient
from datagen.life import Minder
from datagen.portions import is_counted
from datagen.records import Clip, ResumePoint, Sample
from datagen.write import Store, committed_clips

logger = logging.getLogger(__name__)

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


def split_suspects(step: str, ledger: LedgerClient, samples: list[Sample], tries: int) -> list[list[Sample]]:
    """For a step that runs as a Ray task: the samples in the groups to process, suspects alone, those out of tries as failed rows."""
    worker = uuid.uuid4().hex
    ids = [sample.work_id for sample in samples]
    suspects: dict[str, int] = ledger.ask("begin", step, worker, ids, len(ids) == 1)
    for sample in samples:
        if suspects.get(sample.work_id, 0) >= tries and sample.failure is None:
            _give_up(sample, step, suspects[sample.work_id], ledger)
    _name_step(samples, step)
    calm = [sample for sample in samples if sample.work_id not in suspects]
    return [group for group in (calm, *([sample] for sample in samples if sample.work_id in suspects)) if group]


def _give_up(sample: Sample, step: str, crashes: int, ledger: LedgerClient) -> None:
    sample.attempts = crashes
    if ledger.ask("has_hung", step, sample.work_id):
        sample.fail(f"{step}_timeout", f"this asset hung the {step} step {crashes} times ({step}.timeout_s); it is left out")
        return
    sample.fail(f"{step}_crashed", f"this asset killed or hung the {step} worker {crashes} times; it is left out")


def _name_step(samples: list[Sample], step: str) -> list[tuple[str, str]]:
    """Note in new failures where they are from, and return them: (step, code)."""
    new = [(sample, sample.failure) for sample in samples if sample.failure is not None and sample.failure.step is None]
    for sample, failure in new:
        failure.step = "sources" if sample.asset.failure is not None else step
    return [(failure.step or step, failure.code) for _, failure in new]


def _set_up(name: str, make_step: Callable[[], AnyStep], ledger: LedgerClient) -> AnyStep:
    place = ledger.place
    ledger.ask("begin_setup", name, place)
    started = time.monotonic()
    try:
        step = make_step()
        step.setup()
    except DatagenError as error:
        ledger.ask("stop", error)
        raise
    ledger.ask("end_setup", name, place, time.monotonic() - started)
    return step


def leave(step: str, ledger: LedgerClient, samples: list[Sample]) -> list[Sample]:
    """The run ends early: this step does not begin these samples, which an earlier step may have."""
    begun = 0 if step == "decode" else sum(not sample.left for sample in samples)
    for sample in samples:
        sample.leave()
    ledger.tell("count", {"left": begun})
    return samples


class Guarded:
    """A step inside a worker, guarded: crashes are counted against suspects, and progress is reported.

    is_concurrent: `process` is called from several threads at once. renews: nobody starts another worker when the text engine of this
    one dies or hangs, so a new step takes the place of the old one, and counts as another worker; the samples are tried again.
    """

    def __init__(
        self,
        name: str,
        make_step: Callable[[], Step],
        ledger: LedgerClient,
        *,
        is_concurrent: bool = False,
        renews: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        self._name = name
        self._make_step = make_step
        self._ledger = ledger
        self._worker = uuid.uuid4().hex
        self._is_concurrent, self._renews = is_concurrent, renews
        self._one_at_a_time = threading.Lock()
        self._step = _set_up(name, make_step, ledger)
        self._tries: int = ledger.ask("tries")
        self._at_work: list[str] = []
        self._timeout_s = timeout_s
        self._minder = self._minded()

    def _minded(self) -> Minder:
        return Minder(self._name, self._timeout_s, self._renews, lambda why: self._ledger.insist("hung", self._name, self._at_work, why))

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Process a batch; suspects in it go through alone, the ones that used up their tries become failed rows."""
        started = time.monotonic()
        live = [s.work_id for s in samples if s.failure is None]
        try:
            self._run_all(samples)
        except DatagenError as error:
            self._ledger.ask("stop", error)
            raise
        failures = _name_step(samples, self._name)
        if live:
            self._ledger.tell("end", self._name, live, time.monotonic() - started, len(live) - len(failures), failures)
        self._report(samples)
        return samples

    def _run_all(self, samples: Sequence[Sample]) -> None:
        todo = list(samples)
        while todo:
            try:
                self._run_once(todo)
            except EngineDiedError:
                if not self._renews:
                    raise
                self._renew()

    def _run_once(self, todo: list[Sample]) -> None:
        """Run what is to be done; what is through is taken out of the list."""
        live = [s.work_id for s in todo if s.failure is None]
        # Beside others nobody is alone: whose fault it is, only a run of its own can tell.
        is_alone = len(live) == 1 and not self._is_concurrent
        suspects: dict[str, int] = self._ledger.ask("begin", self._name, self._worker, live, is_alone) if live else {}
        with self._kept(calm := [s for s in todo if s.work_id not in suspects]):
            self._run(calm)
        todo[:] = [s for s in todo if s.work_id in suspects]
        for sample in list(todo):
            with self._kept([sample]):
                self._run_suspect(sample, suspects[sample.work_id])
            todo.remove(sample)

    def _renew(self) -> None:
        """Replace the step whose engine has died, as another worker."""
        self._minder.close()
        self._step.teardown()
        self._worker = uuid.uuid4().hex
        self._step = _set_up(self._name, self._make_step, self._ledger)
        self._minder = self._minded()

    @contextmanager
    def _kept(self, samples: Sequence[Sample]) -> Iterator[None]:
        """Where the step can be renewed, samples are as before when their engine dies: half done, they could not be tried again."""
        if not self._renews:
            yield
            return
        arrays: list[pickle.PickleBuffer] = []  # not copied
        kept = pickle.dumps(samples, 5, buffer_callback=arrays.append)
        try:
            yield
        except EngineDiedError:
            _become(samples, pickle.loads(kept, buffers=arrays))  # noqa: S301 (dumped above)
            raise

    def _run(self, samples: list[Sample]) -> None:
        """Run a batch; where it raises about its content, run its samples one by one and fail the one that raises."""
        if not samples:
            return
        try:
            done = self._processed(samples)
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
        _become(samples, done)

    def _processed(self, samples: list[Sample]) -> list[Sample]:
        if self._timeout_s is not None and self._renews:  # a call that hangs may come back one day, and must find nothing to change
            arrays: list[pickle.PickleBuffer] = []
            samples = pickle.loads(pickle.dumps(samples, 5, buffer_callback=arrays.append), buffers=arrays)  # noqa: S301 (dumped here)

        def process() -> list[Sample]:
            for sample in samples:
                fault_point(f"worker.{self._name}", sample.asset.uri)
            return self._step.process(samples)

        self._at_work = [sample.work_id for sample in samples]
        return self._minder.run(process)

    def _run_singly(self, samples: list[Sample], code: str, message: str) -> None:
        if len(samples) == 1:
            logger.exception("%s failed on %s", self._name, samples[0].asset.uri)
            samples[0].fail(code, message)
            return
        for sample in samples:
            self._run([sample])

    def _run_suspect(self, sample: Sample, crashes: int) -> None:
        if crashes >= self._tries:
            _give_up(sample, self._name, crashes, self._ledger)
            return
        with self._one_at_a_time:
            crashes = self._ledger.ask("begin", self._name, self._worker, [sample.work_id], True).get(sample.work_id, crashes)
            sample.attempts = max(sample.attempts, crashes + 1)
            self._run([sample])
            self._ledger.ask("end", self._name, [sample.work_id])

    def _report(self, samples: list[Sample]) -> None:
        num_clips = sum(s.clip is not None for s in samples)
        counts: Counter[str] = Counter({self._name: sum(map(is_counted, samples)) - num_clips, "clips": num_clips})
        if self._name == "perceive":
            counts["regions_found"] = sum(len(s.regions) for s in samples)
        if self._name == "describe":
            counts["regions"] = sum(len(s.regions) for s in samples)
            counts["tracks"] = sum(len(s.tracks) for s in samples)
            counts["failed"] = sum(s.failure is not None and is_counted(s) for s in samples)
            for sample in samples:
                counts.update(sample.usage)
        self._ledger.tell("count", dict(+counts))

    def teardown(self) -> None:
        """Let go of the step's resources."""
        self._minder.close()
        self._step.teardown()


def _become(samples: Sequence[Sample], others: Sequence[Sample]) -> None:
    """Make samples equal to others."""
    for sample, other in zip(samples, others, strict=True):
        if other is not sample:
            for slot in Sample.__slots__:
                setattr(sample, slot, getattr(other, slot))


class GuardedClips:
    """A ClipStep inside a worker, guarded: a clip that kills its worker is tried again, then fails, and ends its video."""

    def __init__(
        self,
        name: str,
        make_step: Callable[[], ClipStep],
        ledger: LedgerClient,
        store: Store,
        *,
        renews: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        self._name = name
        self._make_step, self._renews, self._timeout_s = make_step, renews, timeout_s
        self._at_work: list[str] = []
        self._ledger = ledger
        self._worker = uuid.uuid4().hex
        self._store = store
        self._step = _set_up(name, make_step, ledger)
        self._tries: int = ledger.ask("tries")
        self._minder = self._minded()

    def _minded(self) -> Minder:
        return Minder(self._name, self._timeout_s, self._renews, lambda why: self._ledger.insist("hung", self._name, self._at_work, why))

    def _renew(self) -> None:
        """Replace a step that hangs, as another worker. Its decoder is left to the thread that hangs."""
        self._minder.close()
        self._worker = uuid.uuid4().hex
        self._step = _set_up(self._name, self._make_step, self._ledger)
        self._minder = self._minded()

    def clips(self, sample: Sample) -> Iterator[Sample]:
        """The clips of a video from `sample.resume` on; none more once the run is to end early.

        When Ray calls again because a worker died, it has the clips that came before and skips as many. So those that were committed
        meanwhile are not made again: an empty sample, which nobody will look at, stands for each.
        """
        resume = sample.resume or ResumePoint()
        for clip in committed_clips(self._store, sample.asset.asset_id, resume.clip_index):
            yield replace(sample, clip=clip, resume=None)
            if clip.is_last:
                return
            resume = resume.after(clip)
        try:
            yield from self._clips(replace(sample, resume=resume), resume)
        except DatagenError as error:
            self._ledger.ask("stop", error)
            raise

    def _clips(self, sample: Sample, resume: ResumePoint) -> Iterator[Sample]:
        clips = self._step.clips(sample)
        index, start_s = resume.clip_index, resume.start_s
        while not self._ledger.ask("draining"):
            key = work_id_of(sample.asset.asset_id, index)
            crashes: int = self._ledger.ask("begin", self._name, self._worker, [key], True, False).get(key, 0)
            if crashes >= self._tries:
                lost = replace(sample, clip=Clip(index, start_s, start_s, 0, is_last=True), resume=None)
                _give_up(lost, self._name, crashes, self._ledger)
                self._ledger.tell("end", self._name, [key], None, 0, _name_step([lost], self._name))
                yield lost
                return
            started = time.monotonic()
            self._at_work = [key]
            try:
                done = self._minder.run(partial(self._next, clips, f"{sample.asset.uri}#clip={index};"))
            except EngineDiedError:
                if not self._renews:
                    raise
                self._renew()
                clips = self._step.clips(replace(sample, resume=resume))
                continue
            if done is None or done.clip is None:
                self._ledger.tell("end", self._name, [key])
                return
            failures = _name_step([done], self._name)
            self._ledger.tell("end", self._name, [key], time.monotonic() - started, 1 - len(failures), failures)
            done.attempts = max(done.attempts, crashes + 1)
            self._ledger.tell("count", {"clips_tracked": 1})
            yield done
            index, start_s, resume = index + 1, done.clip.end_s, resume.after(done.clip)

    @staticmethod
    def _next(clips: Iterator[Sample], place: str) -> Sample | None:
        fault_point("worker.perceive", place)
        return next(clips, None)

    def teardown(self) -> None:
        """Let go of the step's resources."""
        self._minder.close()
        self._step.teardown()
