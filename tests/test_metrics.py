"""Metrics: what the ledger records, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import fake_job
from PIL import Image
from test_guard import Doubler, samples

from datagen import graph
from datagen.errors import DecodeError
from datagen.guard import Guarded
from datagen.ledger import Ledger, LocalLedger
from datagen.metrics import METRICS, NoMetrics
from datagen.run import run_job
from datagen.write import open_store

BY_NAME = {metric.name: metric for metric in METRICS}
DASHBOARD = Path(__file__).resolve().parents[1] / "cluster" / "grafana-dashboard.json"
EVERYWHERE = {"run_id", "le"}


class Recorded:
    """Keeps what is recorded; refuses what METRICS does not declare, as Ray would."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()
        self.observed: dict[tuple[str, ...], list[float]] = {}

    def _key(self, kind: str, name: str, labels: dict[str, str]) -> tuple[str, ...]:
        assert (BY_NAME[name].kind, set(BY_NAME[name].labels)) == (kind, set(labels))
        assert all(isinstance(value, str) for value in labels.values())
        return (name, *labels.values())

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        assert amount >= 0
        self.values[self._key("counter", name, labels)] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        assert value >= 0
        self.observed.setdefault(self._key("histogram", name, labels), []).append(value)

    def set(self, name: str, value: float, **labels: str) -> None:
        self.values[self._key("gauge", name, labels)] = value


def test_a_run_records_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(5):
        Image.new("RGB", (40, 30), (20 * index, 90, 200)).save(tmp_path / f"{index}.png")
    (tmp_path / "x.png").write_bytes(b"no picture")
    recorded = Recorded()
    monkeypatch.setattr(graph, "Ledger", lambda store, tries: Ledger(store, tries, lambda: recorded))
    run = {"executor": "inprocess"}

    summary = run_job(fake_job(source={"input": str(tmp_path)}, output=str(tmp_path / "out"), run=run, write={"assets_per_part": 3}))

    values = recorded.values
    assert {step: values["datagen_samples_total", step] for step in ("decode", "perceive", "describe")} == dict.fromkeys(
        ("decode", "perceive", "describe"), 6
    )
    assert values["datagen_regions_total",] == summary.regions == 15
    for kind in ("prompt", "output"):
        assert values["datagen_tokens_total", kind] == summary.usage[f"{kind}_tokens"] > 0
    assert values["datagen_failures_total", "decode", "not_an_image"] == 1
    assert {state: values["datagen_assets", state] for state in ("ok", "empty", "failed", "left")} == {
        **{"ok": 5, "empty": 0},
        **{"failed": 1, "left": 0},
    }
    assert values["datagen_worker_starts_total", "perceive"] == 1
    assert len(recorded.observed["datagen_step_seconds", "describe"]) == 2
    assert [values["datagen_in_progress", step] for step in ("decode", "perceive", "describe")] == [0, 0, 0]


def test_queues_are_what_one_step_let_go_and_the_next_did_not_take(tmp_path: Path) -> None:
    recorded = Recorded()
    ledger = Ledger(open_store(str(tmp_path)), 2, lambda: recorded)

    def levels(name: str) -> list[float]:
        ledger.progress({})
        return [recorded.values[name, step] for step in ("perceive", "describe", "write")]

    broken = Doubler({"c": DecodeError("no pixels")})
    batch = Guarded("decode", lambda: broken, LocalLedger(ledger)).process(samples("a", "b", "c", "d"))
    assert levels("datagen_queue_depth") == [3, 0, 1], "the failed one waits for nothing but its row"
    ledger.begin("perceive", "lost", ["a", "b"])
    ledger.begin("perceive", "takes over", ["a", "b"])
    assert levels("datagen_queue_depth") == [1, 0, 1], "a sample that is tried again has left the queue once"
    assert levels("datagen_in_progress") == [2, 0, 0]
    ledger.end("perceive", ["a", "b"], 0.5, 2)
    assert levels("datagen_queue_depth") == [1, 2, 1]
    Guarded("describe", Doubler, LocalLedger(ledger)).process(batch[:2])
    assert levels("datagen_queue_depth") == [1, 0, 3]


def test_without_ray_nothing_is_recorded(tmp_path: Path) -> None:
    assert Ledger(open_store(str(tmp_path)), 2)._recorder._metrics.__class__ is NoMetrics


def expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key in ("expr", "definition") and isinstance(value, str))
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)


def test_the_dashboard_asks_for_what_the_code_exports_and_for_all_of_it() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = {name for text in expressions(dashboard) for name in re.findall(r"\bray_\w+", text)}
    exported = {name: metric.name for metric in METRICS for name in metric.exported}
    assert asked <= exported.keys()
    assert {exported[name] for name in asked} == BY_NAME.keys()


def test_the_dashboard_groups_by_labels_that_there_are() -> None:
    exported = {name: metric for metric in METRICS for name in metric.exported}
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            known = {label for name in re.findall(r"\bray_\w+", target["expr"]) for label in exported[name].labels}
            by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")}
            chosen = set(re.findall(r"(\w+)=~?\"", target["expr"]))
            assert by | chosen <= known | EVERYWHERE, panel["title"]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= by, panel["title"]


def test_names_follow_the_habits_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"datagen_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.boundaries) == (metric.kind == "histogram")
