"""Who works on what, who died of it, and how far the run is.

Ray retries for ever by default. The ledger, one small actor beside the driver, bounds that: a worker tells it which assets
it is about to touch; when another worker is given an asset that a dead worker still holds, that asset is a suspect. Suspects
are run one at a time, and one that has killed its worker `tries` times becomes a failed row. Counts are kept in the output,
so they hold across restarts of the job.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from datagen.errors import ClusterError, DatagenError
from datagen.metrics import Metrics, NoMetrics, RayMetrics, Recorder
from datagen.patience import in_short
from datagen.write import Store
from datagen.write.crashes import read_crashes, write_crashes

_EVENTS_KEPT = 10_000
_LOGGED_ASSETS = 100
_LAST_WORDS_S = 5.0
# What a worker notes -> the progress counter that counts it.
INCIDENTS = {"engine_died": "engine_restarts", "engine_hung": "engine_restarts", "memory_short": "memory_short"}


class Ledger:
    """Who works on what, who died of it, and how far the run is. One per run; runs as an actor, or as a plain object in-process.

    Raises WriteError when the crash file is damaged.
    """

    def __init__(self, store: Store, tries: int, metrics: Callable[[], Metrics] = NoMetrics) -> None:
        self._recorder = Recorder(metrics())
        self._store = store
        self._tries = tries
        self._holder: dict[tuple[str, str], str] = {}
        self._alone: set[tuple[str, str]] = set()
        self._suspects: set[tuple[str, str]] = set()
        self._hung: set[tuple[str, str]] = set()
        self._failed_setups: Counter[tuple[str, str]] = Counter()
        self._loading: dict[tuple[str, str], float] = {}
        self._ended = 0
        self._waiting: str | None = None
        self._fatal: DatagenError | None = None
        self.counters: Counter[str] = Counter()
        self._spans: dict[str, list[float]] = {}
        self._draining = False
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._crashes = read_crashes(store)

    def begin_setup(self, step: str, place: str) -> None:
        """A worker of `step` is about to load its model. Raises ClusterError when too many died doing that in its place.

        place: LedgerClient.place. Workers in other places may be loading at the same time, and are not dead.
        """
        self._failed_setups[step, place] += 1
        self._loading[step, place] = time.monotonic()
        if self._failed_setups[step, place] > self._tries:
            message = f"the {step} worker died {self._tries} times while starting (out of memory?). The run's log has its last words."
            self._fatal = ClusterError(message)
            raise self._fatal

    def end_setup(self, step: str, place: str, seconds: float = 0.0) -> None:
        """The worker is up, and took this long to load."""
        del self._failed_setups[step, place]
        self._loading.pop((step, place), None)
        self.counters[f"{step}_workers"] += 1
        self._recorder.started(step, seconds)
        self._note("worker_started", f"a {step} worker is up", step=step, seconds=round(seconds, 3))

    def begin(self, step: str, worker: str, work_ids: list[str], alone: bool = False, queued: bool = True) -> dict[str, int]:
        """`worker` is about to process these samples. Returns, for each suspect among them, how often it has killed a worker so far.

        queued: they waited for this step behind another one.
        """
        self._recorder.began(step, queued * sum((step, work_id) not in self._holder for work_id in work_ids))
        self._spans.setdefault(step, [time.time()] * 2)
        lost = [work_id for work_id in work_ids if self._holder.get((step, work_id), worker) != worker]
        if lost:
            message = f"a {step} worker was lost with {len(lost)} samples in hand; another one has them now"
            self._note("worker_lost", message, logging.WARNING, step=step, work_ids=lost[:_LOGGED_ASSETS])
        for work_id in work_ids:
            key = (step, work_id)
            if self._holder.get(key, worker) != worker:
                self._suspects.add(key)
                if key in self._alone:
                    self._count_crash(step, work_id)
            self._holder[key] = worker
            (self._alone.add if alone else self._alone.discard)(key)
        return {a: self._crashes.get(f"{step}/{a}", 0) for a in work_ids if (step, a) in self._suspects or f"{step}/{a}" in self._crashes}

    def end(
        self, step: str, work_ids: list[str], seconds: float | None = None, passed: int = 0, failures: Sequence[tuple[str, str]] = ()
    ) -> None:
        """These samples went through, in this time; `passed` of them go on, and those fail: (step, error code)."""
        self._recorder.ended(step, seconds, passed, failures)
        self._spans[step][1] = time.time()
        self._ended += len(work_ids)
        for work_id in work_ids:
            self._holder.pop((step, work_id), None)
            self._alone.discard((step, work_id))

    def _count_crash(self, step: str, work_id: str) -> None:
        key = f"{step}/{work_id}"
        self._crashes[key] = self._crashes.get(key, 0) + 1
        self.counters["crashes"] += 1
        self._recorder.crashed(step)
        self._note("crash", f"{work_id} killed the {step} worker", logging.ERROR, step=step, work_id=work_id, times=self._crashes[key])
        write_crashes(self._store, self._crashes)

    def hung(self, step: str, work_ids: Sequence[str], why: str) -> None:
        """A worker of `step` gave no sign of life while it had these samples, and ends."""
        self._hung |= {(step, work_id) for work_id in work_ids}
        self._note("step_hung", why, logging.ERROR, step=step, work_ids=list(work_ids[:_LOGGED_ASSETS]))

    def has_hung(self, step: str, work_id: str) -> bool:
        """Whether a worker has hung over this sample, alone or with others, in this run."""
        return (step, work_id) in self._hung

    def tries(self) -> int:
        """How often an asset may kill its worker."""
        return self._tries

    def stop(self, error: DatagenError) -> None:
        """Keep the error that stops the job; Ray would hand the driver only its text."""
        self._fatal = self._fatal or error
        self._note("fatal", error.message, logging.ERROR, code=error.code, asset_id=error.asset_id)

    def fatal(self) -> DatagenError | None:
        """The error that stopped the job, if one did."""
        return self._fatal

    def drain(self) -> None:
        """From now on nothing new is to be begun."""
        self._draining = True

    def draining(self) -> bool:
        """Whether a step leaves alone what it has not begun."""
        return self._draining

    def note(self, step: str, event: str, message: str, level: int = logging.INFO, facts: Mapping[str, Any] | None = None) -> None:
        """Something that a worker of `step` has to say; see events.log_event. What counts as an incident is counted."""
        if event in INCIDENTS:
            self.counters[INCIDENTS[event]] += 1
        self._recorder.noted(step, event)
        self._note(event, message, level, step=step, **(facts or {}))

    def count(self, counts: dict[str, int]) -> None:
        """Add to the progress counters."""
        self.counters.update(counts)
        self._recorder.counted(counts)

    def events(self) -> list[dict[str, Any]]:
        """What happened since this was asked last, as arguments of log_event."""
        events = list(self._events)
        self._events.clear()
        return events

    def _note(self, event: str, message: str, level: int = logging.INFO, **facts: Any) -> None:
        self._events.append({"event": event, "message": message, "level": level, "at": time.time(), **facts})

    def pulse(self) -> dict[str, Any]:
        """What is going on, as arguments of patience.Pulse."""
        now, loading = time.monotonic(), dict[str, float]()
        for (step, _), since in self._loading.items():
            loading[step] = max(loading.get(step, 0.0), now - since)
        return {"finished": self._ended, "in_hand": len(self._holder), "loading": loading}

    def wait(self, what: str | None) -> None:
        """What the run waits for, in words, instead of going on; None: for nothing."""
        self._waiting = what

    def waiting(self) -> str | None:
        """What the run waits for."""
        return self._waiting

    def spans(self) -> dict[str, list[float]]:
        """Per step: when its first batch began and its latest ended, seconds since the epoch."""
        return self._spans

    def progress(self, assets: Mapping[str, int] | None = None) -> dict[str, int]:
        """The progress counters: workers that came up and samples per step, regions, output tokens, failures, crashes.

        assets: what the driver knows, for the metrics: `ok`, `empty`, `failed`, `left` -> assets of this run.
        """
        self._recorder.levels(Counter(step for step, _ in self._holder), assets or {})
        return dict(self.counters)


class LedgerClient(Protocol):
    """How a worker reaches the ledger: `ask` waits for the answer, `tell` does not."""

    @property
    def place(self) -> str:
        """Which worker asks. One that is started again after its death has the place of the dead one."""

    def ask(self, method: str, *args: Any) -> Any:
        """Call a ledger method and wait."""

    def ask_within(self, seconds: float, method: str, *args: Any) -> Any:
        """Call a ledger method and wait for so long; None where it does not answer."""

    def tell(self, method: str, *args: Any) -> None:
        """Call a ledger method and go on."""

    def insist(self, method: str, *args: Any) -> None:
        """Call a ledger method and wait until it has heard, but not for long and without an error: for the last words of a worker."""


class LocalLedger:
    """A ledger in the same process."""

    place = "here"

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def ask(self, method: str, *args: Any) -> Any:
        """Call a ledger method."""
        return getattr(self._ledger, method)(*args)

    tell = insist = ask

    def ask_within(self, seconds: float, method: str, *args: Any) -> Any:
        """Call a ledger method."""
        return self.ask(method, *args)


class RayLedger:
    """A ledger that lives in a Ray actor; the handle travels to every worker."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def start(cls, store: Store, tries: int, run_id: str) -> RayLedger:
        """Start the actor on the driver's node, so that it lives and dies with the driver. Raises WriteError for a damaged crash file."""
        read_crashes(store)  # here, where the error is understood
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Ledger)
        return cls(actor.remote(store, tries, partial(RayMetrics, run_id)))

    @property
    def place(self) -> str:
        """The actor's id, which it keeps when Ray starts it again."""
        import ray

        return str(ray.get_runtime_context().get_actor_id())

    def ask(self, method: str, *args: Any) -> Any:
        """Call a ledger method and wait for its answer. Its DatagenError comes back as itself."""
        return self._asked(None, method, *args)

    def ask_within(self, seconds: float, method: str, *args: Any) -> Any:
        """Call a ledger method and wait for so long; None where it does not answer."""
        return self._asked(seconds, method, *args)

    def _asked(self, seconds: float | None, method: str, *args: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self._handle, method).remote(*args), timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, DatagenError) else error) from None
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"the run's ledger is gone: {in_short(str(error)).rstrip('.')}. Rerun the same command to resume."
            ) from error

    def tell(self, method: str, *args: Any) -> None:
        """Call a ledger method without waiting."""
        getattr(self._handle, method).remote(*args)

    def insist(self, method: str, *args: Any) -> None:
        """Call a ledger method and wait a few seconds at most."""
        import ray

        with suppress(ray.exceptions.RayError):
            ray.wait([getattr(self._handle, method).remote(*args)], timeout=_LAST_WORDS_S)
