"""Runs that end early in good order: by a deadline, GPU-hours, a cost or SIGTERM; and go on from there."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from corpora import fake_job
from PIL import Image
from video_files import numbered, write_video

from datagen import graph
from datagen.blocks import from_table, to_table
from datagen.budget import BudgetOptions, Spending, deadline_of
from datagen.check import check_dataset
from datagen.errors import ClusterError, JobError
from datagen.graph import DecodeWorker, DescribeWorker, Plan, stage_table
from datagen.interrupts import sigterm_calls, sigterm_is_ctrl_c
from datagen.job import Job, parse_job
from datagen.ledger import Ledger, LocalLedger
from datagen.run import run_job
from datagen.run.heartbeat import run_status
from datagen.run.reporting import Progress, Screen
from datagen.run.stopping import Stop
from datagen.run.summary import RunSummary
from datagen.write import open_store

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
COUNT = 12


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("90m", NOW + timedelta(minutes=90)),
        ("1h30m", NOW + timedelta(minutes=90)),
        ("1.5h", NOW + timedelta(minutes=90)),
        ("2d 30s", NOW + timedelta(days=2, seconds=30)),
        ("5min", NOW + timedelta(minutes=5)),
        ("2026-11-26T06:00+01:00", datetime(2026, 11, 26, 6, tzinfo=timezone(timedelta(hours=1)))),
        ("2026-11-26 06:00:30", datetime(2026, 11, 26, 6, 0, 30).astimezone()),
    ],
)
def test_a_deadline_is_a_time_or_a_duration(text: str, when: datetime) -> None:
    assert deadline_of(text, NOW) == when


@pytest.mark.parametrize(("zone", "hour"), [("UTC", 6), ("Asia/Tokyo", 21), ("America/New_York", 11)])
def test_a_deadline_without_a_zone_is_of_the_clock_on_the_wall(zone: str, hour: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        day = 26 if zone != "Asia/Tokyo" else 25
        assert deadline_of("2026-11-26T06:00", NOW) == datetime(2026, 11, day, hour, tzinfo=UTC)
        assert deadline_of("2026-11-26T06:00+02:00", NOW) == datetime(2026, 11, 26, 4, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "soon", "h", "3", "..h", "-2h", "1e9d", "25:00", "2026-13-01"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(JobError, match=r"`run.budget.deadline`.*a duration such as 2h, 90m or 1h30m"):
        parse_job({"run": {"budget": {"deadline": text}}})


def test_a_budget_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(JobError, match="max_cost needs gpu_hour_price"):
        parse_job({"run": {"budget": {"max_cost": 10}}})
    with pytest.raises(JobError, match="is over"):
        Spending(BudgetOptions(deadline="2020-01-01T00:00"))
    with pytest.raises(JobError, match=r"--set run\.budget\.gpus"):
        Spending(BudgetOptions(max_gpu_hours=1)).refuse_uncounted(0)
    Spending(BudgetOptions(max_gpu_hours=1)).refuse_uncounted(8)
    Spending(BudgetOptions(max_gpu_hours=1, gpus=2)).refuse_uncounted(0)


def test_a_time_that_yaml_understands_is_a_deadline(tmp_path: Path) -> None:
    from datagen.job import load_job

    (tmp_path / "job.yaml").write_text("run: {budget: {deadline: 2099-11-26T06:00:00}}")
    assert load_job(tmp_path / "job.yaml").run.budget.deadline == "2099-11-26T06:00:00"


def test_gpu_hours_follow_a_cluster_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("datagen.budget._clock", lambda: now[0])
    spending, gpus = Spending(BudgetOptions(max_gpu_hours=3, gpu_hour_price=2.5)), [1.0]

    def after(seconds: float, at_once: bool = False) -> float:
        now[0] += seconds
        spending.count(lambda: gpus[0], at_once)
        return spending.gpu_hours

    assert after(3600) == 1.0
    assert after(1) == 1.0, "nobody is asked more often than every ten seconds"
    gpus[0] = 8.0
    assert after(899) == pytest.approx(3.0)
    assert spending.over() == "3 GPU-hours are used up"
    assert spending.cost == pytest.approx(7.5)
    assert after(1, at_once=True) > 3.0


def test_a_cluster_that_does_not_answer_costs_no_error_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("datagen.budget._clock", lambda: now[0])
    summary, spending = RunSummary("r", ""), Spending(BudgetOptions())
    stop = Stop(spending, 0.0)

    def gone() -> float:
        raise ClusterError("the head is gone")

    now[0] = 1800.0
    stop._count(summary, gone, at_once=True)
    assert summary.gpu_hours == 0
    now[0] = 3600.0
    stop._count(summary, lambda: 4.0)
    assert summary.gpu_hours == 4.0


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(COUNT):
        Image.new("RGB", (40, 30), (20 * index, 90, 200)).save(folder / f"{index:02d}.png")
    return folder


def job_of(folder: Path, *, delay_s: float = 0.0, budget: dict[str, Any] | None = None, **run: Any) -> Job:
    data: dict[str, Any] = {
        "perceive": {"engine": "fake", "fake_delay_s": delay_s},
        "write": {"assets_per_part": 2},
        "run": {"executor": "inprocess", "budget": budget or {}, **run},
    }
    return fake_job(source={"input": str(folder), "media": "any"}, output=str(folder.parent / "out"), **data)


def finish(job: Job, done_before: int) -> None:
    """The same job without a budget does the rest, and nothing is lost or there twice."""
    rest = run_job(parse_job({**job.model_dump(), "run": {"executor": "inprocess"}, "perceive": {"engine": "fake"}}))
    assert (rest.done_before, sum(rest.statuses.values())) == (done_before, COUNT - done_before)
    report = check_dataset(job.output or "")
    assert report.ok, report.violations
    assert report.num_assets == COUNT


@pytest.fixture
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datagen.run.reporting.POLL_S", 0.02)


@pytest.fixture
def an_hour_passes(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A screen that puts the clocks forward once something is in the dataset."""
    hours: list[int] = []
    clock = time.monotonic
    monkeypatch.setattr("datagen.budget._clock", lambda: clock() + 3600 * len(hours))
    monkeypatch.setattr("datagen.budget._now", lambda: datetime.now(UTC) + timedelta(hours=len(hours)))

    @contextmanager
    def screen(log: Path) -> Iterator[Progress]:
        yield lambda summary: hours.append(1) if (summary.parts or summary.clips) and not hours else None

    return screen


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"deadline": "1h"}, "the deadline 1h is reached"),
        ({"max_gpu_hours": 1.5, "gpus": 2}, "1.5 GPU-hours are used up"),
        ({"max_cost": 4, "gpu_hour_price": 2.5, "gpus": 2}, "a cost of 4 is reached"),
    ],
)
def test_a_budget_is_over_when_one_of_its_parts_is(budget: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = [0.0]
    monkeypatch.setattr("datagen.budget._clock", lambda: 3600 * hours[0])
    monkeypatch.setattr("datagen.budget._now", lambda: NOW + timedelta(hours=hours[0]))
    spending, found = Spending(BudgetOptions(**budget)), []
    for hours[0] in (0.5, 1.0):
        spending.count(lambda: 0.0)
        found.append(spending.over())
    assert found == [None, reason]


@pytest.mark.usefixtures("quick_polls")
def test_a_used_up_budget_ends_the_run_at_a_part_in_whatever_thread_it_is(photos: Path, an_hour_passes: Screen) -> None:
    reason = "a cost of 4 is reached"
    job = job_of(photos, delay_s=0.3, budget={"max_cost": 4, "gpu_hour_price": 2.5, "gpus": 2, "max_gpu_hours": 100})
    with ThreadPoolExecutor(1) as other:
        summary = other.submit(run_job, job, screen=an_hour_passes).result()

    done = sum(summary.statuses.values())
    assert (summary.stopped, summary.interrupted) == (reason, False)
    assert 0 < done < COUNT
    assert done % 2 == 0, "what was begun is finished"
    status = run_status(job.output or "")
    assert (status.verdict, status.beat["state"], status.beat["assets"]["left"]) == ("ended", "stopped", COUNT - done)
    record = json.loads(open_store(job.output or "").read(f"_datagen/runs/{summary.run_id}.json"))
    assert (record["status"], record["summary"]["stopped"]) == ("stopped", reason)
    events = open_store(job.output or "").read(f"_datagen/logs/{summary.run_id}.jsonl").decode()
    assert f'"reason": "{reason}"' in events
    finish(job, done)


def test_a_budget_that_is_enough_changes_nothing(photos: Path) -> None:
    job = job_of(photos, budget={"deadline": "1h", "max_gpu_hours": 1, "gpus": 4, "gpu_hour_price": 100})
    summary = run_job(job)
    assert (summary.stopped, summary.statuses) == (None, {"ok": COUNT})
    assert 0 < summary.gpu_hours < 1
    assert summary.cost == pytest.approx(100 * summary.gpu_hours)


@contextmanager
def sends(number: signal.Signals, times: int = 1) -> Iterator[Progress]:
    """A screen that signals this process once there is something in the dataset."""
    sent: list[int] = []

    def look(summary: RunSummary) -> None:
        if summary.parts and len(sent) < times:
            sent.append(number)
            os.kill(os.getpid(), number)

    yield look


@pytest.fixture
def on_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    sigterm_is_ctrl_c()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("on_sigterm", "quick_polls")
def test_sigterm_finishes_what_is_begun_and_ctrl_c_does_not_wait(photos: Path) -> None:
    job = job_of(photos, delay_s=0.3)
    drained = run_job(job, screen=lambda log: sends(signal.SIGTERM))
    assert (drained.interrupted, drained.stopped) == (True, "SIGTERM")
    assert 2 < drained.statuses["ok"] < COUNT - 2, "the part that it was in when the signal came, and not all"

    at_once = run_job(job, screen=lambda log: sends(signal.SIGINT))
    assert (at_once.interrupted, at_once.stopped, at_once.statuses["ok"]) == (True, None, 2)
    finish(job, drained.statuses["ok"] + 2)


@pytest.mark.usefixtures("on_sigterm", "quick_polls")
@pytest.mark.parametrize(("grace_s", "signals"), [(0.2, 1), (60.0, 2)], ids=["its grace is over", "a second one"])
def test_sigterm_waits_no_longer_than_it_may(photos: Path, grace_s: float, signals: int) -> None:
    job = job_of(photos, delay_s=0.8, grace_s=grace_s)
    summary = run_job(job, screen=lambda log: sends(signal.SIGTERM, signals))
    assert (summary.interrupted, summary.stopped, summary.statuses["ok"]) == (True, "SIGTERM", 2)


@pytest.mark.usefixtures("on_sigterm", "quick_polls")
def test_sigterm_works_where_a_job_server_blocks_ctrl_c(photos: Path) -> None:
    job = job_of(photos, delay_s=0.8, grace_s=0.2)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        summary = run_job(job, screen=lambda log: sends(signal.SIGTERM))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (summary.interrupted, summary.stopped, summary.statuses["ok"]) == (True, "SIGTERM", 2)


@pytest.mark.usefixtures("on_sigterm")
def test_outside_of_a_run_sigterm_is_ctrl_c() -> None:
    heard: list[str] = []
    with sigterm_calls(lambda: heard.append("term")):
        signal.raise_signal(signal.SIGTERM)
    assert heard == ["term"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("quick_polls")
def test_a_video_stops_between_two_clips(tmp_path: Path, an_hour_passes: Screen) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_video(folder / "v.mp4", map(numbered, range(60)))
    job = job_of(folder, delay_s=0.3, budget={"deadline": "1h"})
    job = parse_job({**job.model_dump(), "decode": {"max_clip_s": 1.0}})
    first = run_job(job, screen=an_hour_passes)
    assert first.stopped
    assert 0 < first.clips < 6
    rest = run_job(parse_job({**job.model_dump(), "run": {"executor": "inprocess"}, "perceive": {"engine": "fake"}}))
    assert (first.clips + rest.clips, rest.statuses) == (6, {"ok": 1})
    assert check_dataset(job.output or "").ok


def test_on_ray_a_step_leaves_alone_what_it_has_not_begun(photos: Path) -> None:
    """The workers as Ray Data calls them, without Ray."""
    job = job_of(photos)
    plan = Plan(job, str(photos.parent / "out"), "r", 64)
    ledger = LocalLedger(Ledger(plan.store, 3))
    make = graph.step_factories(plan, ledger)
    decode, describe = DecodeWorker("decode", make["decode"], ledger, False), DescribeWorker("describe", make["describe"], ledger, True)
    from datagen.records import Asset, Sample

    waiting = to_table([Sample(index, Asset(f"{index:020x}", str(path))) for index, path in enumerate(sorted(photos.iterdir()))])
    decoded = decode(waiting.slice(0, 4))
    summary = RunSummary("r", "", todo=COUNT)
    summary.counters = ledger.ask("progress")
    assert summary.in_flight()

    ledger.ask("drain")
    never, begun = decode(waiting.slice(4)), describe(decoded)

    assert all(sample.left and sample.pixels is None for sample in from_table(never) + from_table(begun))
    assert stage_table(plan, ledger, begun).num_rows == 0
    summary.counters = ledger.ask("progress")
    assert (summary.counters["decode"], summary.counters["left"], summary.in_flight()) == (4, 4, False)
