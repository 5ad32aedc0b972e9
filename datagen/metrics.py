"""What a run exports to Prometheus, through the endpoint that Ray has on every node.

The run's ledger records it, so that each number is there once.
`cluster/grafana-dashboard.json` shows these metrics. Ray puts `ray_` before every name, and its own labels beside ours; all of ours have
the label `run_id`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class Metric:
    """A metric and its labels besides `run_id`; boundaries: upper bounds of a histogram's buckets."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """The names as Prometheus sees them."""
        name = f"ray_{self.name}"
        return (f"{name}_bucket", f"{name}_sum", f"{name}_count") if self.kind == "histogram" else (name,)


METRICS = (
    Metric("counter", "datagen_samples_total", "images, or clips of videos, that left a step, failed ones included", ("step",)),
    Metric("counter", "datagen_regions_total", "regions of images that have their texts"),
    Metric("counter", "datagen_tracks_total", "tracks of clips that have their texts"),
    Metric("counter", "datagen_tokens_total", "tokens of the language model: `prompt`, of these `cached`, and `output`", ("kind",)),
    Metric("counter", "datagen_failures_total", "samples that became failed rows, by the step and the error code", ("step", "code")),
    Metric("counter", "datagen_crashes_total", "times that a sample was seen to kill its worker", ("step",)),
    Metric("counter", "datagen_engine_restarts_total", "times that a text engine was replaced: it `died` or `hung`", ("cause",)),
    Metric("counter", "datagen_memory_short_total", "times that the device's memory was short, and less was asked of it", ("step",)),
    Metric("counter", "datagen_worker_starts_total", "workers that came up", ("step",)),
    Metric("histogram", "datagen_worker_start_seconds", "how long a worker took to load", ("step",), _SECONDS),
    Metric("histogram", "datagen_step_seconds", "how long a step had a batch of samples, or one clip, in hand", ("step",), _SECONDS),
    Metric("gauge", "datagen_queue_depth", "samples that wait for a step", ("step",)),
    Metric("gauge", "datagen_in_progress", "samples that a step has in hand", ("step",)),
    Metric("gauge", "datagen_assets", "assets of this run: `ok`, `empty` and `failed` are committed, `left` are not", ("state",)),
)


class Metrics(Protocol):
    """Where numbers go. Names and labels are those of METRICS; a counter or histogram ignores nothing, and a value of 0 adds nothing."""

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""


class NoMetrics:
    """Without Ray nobody asks for numbers."""

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Nothing."""

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Nothing."""

    def set(self, name: str, value: float, **labels: str) -> None:
        """Nothing."""


class RayMetrics:
    """A run's metrics, exported by the Ray worker process that this is made in."""

    def __init__(self, run_id: str) -> None:
        from ray.util import metrics as ray_metrics

        kinds = {"counter": ray_metrics.Counter, "gauge": ray_metrics.Gauge, "histogram": ray_metrics.Histogram}
        self._metrics: dict[str, Any] = {}
        for metric in METRICS:
            more: dict[str, Any] = {"boundaries": list(metric.boundaries)} if metric.boundaries else {}
            exported = kinds[metric.kind](metric.name, description=metric.help, tag_keys=("run_id", *metric.labels), **more)
            self._metrics[metric.name] = exported.set_default_tags({"run_id": run_id})

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter; Ray refuses to add 0."""
        if amount > 0:
            self._metrics[name].inc(amount, tags=labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram."""
        self._metrics[name].observe(value, tags=labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._metrics[name].set(value, tags=labels)


class Recorder:
    """Turns what a run's ledger hears into metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._begun: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()
        self._failed = 0

    def started(self, step: str, seconds: float) -> None:
        """A worker came up after this time."""
        self._metrics.add("datagen_worker_starts_total", step=step)
        self._metrics.observe("datagen_worker_start_seconds", seconds, step=step)

    def crashed(self, step: str) -> None:
        """A sample killed its worker."""
        self._metrics.add("datagen_crashes_total", step=step)

    def noted(self, step: str, event: str) -> None:
        """A worker of this step said that something happened."""
        if event in ("engine_died", "engine_hung"):
            self._metrics.add("datagen_engine_restarts_total", cause=event.removeprefix("engine_"))
        elif event == "memory_short":
            self._metrics.add("datagen_memory_short_total", step=step)

    def began(self, step: str, new: int) -> None:
        """A step took samples in hand, `new` of them for the first time."""
        self._begun[step] += new

    def ended(self, step: str, seconds: float | None, passed: int, failures: Iterable[tuple[str, str]]) -> None:
        """A step let go of a batch after this time; `passed` of its samples go on, and those fail: (step, error code)."""
        self._passed[step] += passed
        if seconds is not None:
            self._metrics.observe("datagen_step_seconds", seconds, step=step)
        for where, code in failures:
            self._failed += 1
            self._metrics.add("datagen_failures_total", step=where, code=code)

    def counted(self, counts: Mapping[str, int]) -> None:
        """Progress counters of a batch, as the guard reports them."""
        for name, amount in counts.items():
            if name in _COUNTERS:
                metric, labels = _COUNTERS[name]
                self._metrics.add(metric, amount, **labels)

    def levels(self, in_hand: Mapping[str, int], assets: Mapping[str, int]) -> None:
        """Set the gauges. in_hand: step -> samples. assets: `ok`, `empty`, `failed`, `left` -> assets of this run.

        A failed sample passes the steps that are left untouched, and waits for none but `write`.
        """
        for before, step in pairwise(_IN_ORDER):
            waiting = self._passed[before] + (self._failed if step == "write" else 0) - self._begun[step]
            self._metrics.set("datagen_queue_depth", max(0, waiting), step=step)
        for step in _IN_ORDER:
            self._metrics.set("datagen_in_progress", in_hand.get(step, 0), step=step)
        for state, count in assets.items():
            self._metrics.set("datagen_assets", count, state=state)


_IN_ORDER = ("decode", "perceive", "describe", "write")
# Progress counter -> the metric it adds to.
_COUNTERS: dict[str, tuple[str, dict[str, str]]] = {
    **{step: ("datagen_samples_total", {"step": step}) for step in _IN_ORDER},
    "clips_tracked": ("datagen_samples_total", {"step": "perceive"}),
    "clips": ("datagen_samples_total", {"step": "describe"}),
    "regions": ("datagen_regions_total", {}),
    "tracks": ("datagen_tracks_total", {}),
    **{f"{kind}_tokens": ("datagen_tokens_total", {"kind": kind}) for kind in ("prompt", "cached", "output")},
}
