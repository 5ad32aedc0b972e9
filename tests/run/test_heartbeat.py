"""`datagen status`: what it says of a run that is on, has ended, was killed, or is not heard of any more."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from corpora import fake_job
from PIL import Image
from rich.console import Console

from datagen.errors import SourceError, WriteError
from datagen.job import Job
from datagen.processes import this_process
from datagen.run import heartbeat, run_job
from datagen.run.console import print_status
from datagen.run.heartbeat import HEARTBEAT, beating, run_status
from datagen.run.reporting import Progress
from datagen.run.summary import RunSummary
from datagen.write import RunRecord, open_store, prepare_output


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(6):
        Image.new("RGB", (40, 30), (20 * index, 90, 200)).save(folder / f"{index}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


def job_of(folder: Path, output: str) -> Job:
    run = {"executor": "inprocess"}
    return fake_job(source={"input": str(folder)}, output=output, run=run, write={"assets_per_part": 2})


def shown(output: str) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as said:
        print_status(console, run_status(output))
    return said.get()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it never came true")


def test_a_run_is_followed_from_outside_and_its_end_is_known(photos: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    @contextmanager
    def screen(log: Path) -> Iterator[Progress]:
        def look(summary: RunSummary) -> None:
            if summary.counters.get("describe") and not seen:
                wait_until(lambda: run_status(output).beat["steps"]["describe"]["samples"] > 0)
                seen.append(run_status(output).to_dict())

        yield look

    monkeypatch.setattr("datagen.run.driver.beating", lambda *arguments: beating(*arguments, every_s=0.05))
    monkeypatch.setattr("datagen.run.reporting.POLL_S", 0.01)
    summary = run_job(job_of(photos, output), screen=screen)

    on = seen[0]
    assert (on["verdict"], on["run_id"], on["state"]) == ("alive", summary.run_id, "running")
    assert (on["assets"]["listed"], on["assets"]["todo"], on["assets"]["done_before"]) == (7, 7, 0)
    assert on["steps"]["describe"]["samples"] >= 1
    assert on["steps"]["decode"]["workers"] == 1

    ended = run_status(output)
    assert (ended.verdict, ended.ok, ended.beat["state"]) == ("ended", True, "finished")
    assert ended.beat["assets"] == {
        **{"listed": 7, "all_listed": True, "done_before": 0},
        **{"todo": 7, "done": 7, "failed": 1, "left": 0},
    }
    assert ended.beat["output_tokens"] == summary.usage["output_tokens"] > 0
    assert "7 of 7 done, 1 failed, 0 left" in shown(output)
    assert re.search(r"finished \d+ s ago", shown(output))

    again = run_job(job_of(photos, output))
    assert (again.todo, run_status(output).beat["run_id"], run_status(output).beat["assets"]["done_before"]) == (0, again.run_id, 7)


def test_an_error_and_an_interruption_are_told_apart(output: str) -> None:
    store, record = open_store(output), RunRecord.new(fake_job())
    with store.lease({}):
        prepare_output(store, fake_job())
        with pytest.raises(WriteError), beating(store, record, RunSummary("r", output)):
            raise WriteError("the disk is full")
        assert run_status(output).beat["error"] == {"code": "write", "message": "the disk is full"}
        assert "the disk is full" in shown(output)
        with pytest.raises(KeyboardInterrupt), beating(store, record, RunSummary("r", output)):
            raise KeyboardInterrupt
    assert (run_status(output).beat["state"], run_status(output).beat["error"]) == ("interrupted", None)


def age(output: str, **changes: Any) -> None:
    """As if another machine had written the heartbeat, some time ago by its clock."""
    store = open_store(output)
    store.write(HEARTBEAT, json.dumps({**json.loads(store.read(HEARTBEAT)), "state": "running", "process": None, **changes}).encode())


@pytest.mark.parametrize("output", ["local"], indirect=True)
def test_a_killed_run_has_died(photos: Path, output: str) -> None:
    run_job(job_of(photos, output))
    gone = subprocess.Popen(["true"])
    gone.wait()
    age(output, process={**(this_process() or {}), "pid": gone.pid})
    assert (run_status(output).verdict, run_status(output).ok) == ("died", False)
    assert "run the same command to resume" in shown(output)
    age(output, process=this_process())
    assert run_status(output).verdict == "alive"


@pytest.mark.parametrize("output", ["local"], indirect=True)
@pytest.mark.parametrize("minutes", [10, -10], ids=["late", "a clock that is ahead"])
def test_a_run_elsewhere_is_watched_when_its_clock_says_too_little(photos: Path, output: str, minutes: int) -> None:
    run_job(job_of(photos, output))
    then = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()
    age(output, beat_at=then, every_s=0.1)
    assert (run_status(output).verdict, run_status(output).ok) == ("silent", False)

    over = threading.Event()

    def beats() -> None:
        beat = 100
        while not over.wait(0.02):
            age(output, beat_at=then, every_s=0.5, beat=(beat := beat + 1))

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        assert run_status(output).verdict == "alive"
    finally:
        over.set()
        thread.join()


def test_a_heartbeat_that_cannot_be_written_costs_the_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(str(tmp_path / "corpus"))
    prepare_output(store, fake_job())
    (tmp_path / "corpus" / HEARTBEAT).mkdir()
    with beating(store, RunRecord.new(fake_job()), RunSummary("r", "")):
        pass
    assert "no heartbeat: cannot write" in caplog.text


def test_where_there_is_no_heartbeat_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no datagen dataset"):
        run_status(str(tmp_path))
    store = open_store(str(tmp_path / "corpus"))
    prepare_output(store, fake_job())
    with pytest.raises(SourceError, match="has left a heartbeat"):
        run_status(store.uri)
    store.write(HEARTBEAT, b"{")
    with pytest.raises(SourceError, match="damaged"):
        run_status(store.uri)


def test_a_run_says_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    summary, pace = RunSummary("r", ""), heartbeat._Pace()
    summary.todo, summary.all_listed = 100, True
    numbers = heartbeat._numbers(summary, pace)
    assert (numbers["eta_s"], numbers["tokens_per_s"]) == (None, None)
    summary.counters = {"describe": 10, "output_tokens": 50}
    assert heartbeat._numbers(summary, pace)["eta_s"] is None
    now[0], summary.counters = 120.0, {"describe": 30, "output_tokens": 450}
    numbers = heartbeat._numbers(summary, pace)
    assert (numbers["eta_s"], numbers["tokens_per_s"]) == (70.0, 20.0)
    summary.all_listed = False
    assert heartbeat._numbers(summary, pace)["eta_s"] is None
