"""The event log: a JSON object per line, which says who, what and why, and no secrets."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from corpora import fake_job
from PIL import Image
from test_guard import Doubler, samples

from datagen.errors import ModelLoadError, WriteError
from datagen.events import event_log, log_event
from datagen.guard import Guarded
from datagen.ledger import Ledger, LocalLedger
from datagen.run import run_job
from datagen.write import open_store


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_tells_its_story(tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "corpus"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (40, 30), (20 * index, 90, 200)).save(folder / f"{index}.png")
    (folder / "x.png").write_bytes(b"no picture")
    job = fake_job(source={"input": str(folder)}, output=str(output), run={"executor": "inprocess"}, write={"assets_per_part": 2})

    summary = run_job(job)

    story = lines(output / "_datagen" / "logs" / f"{summary.run_id}.jsonl")
    names = [line["event"] for line in story]
    assert (names[0], names[-1]) == ("run_started", "run_ended")
    assert (names.count("worker_started"), names.count("part_committed")) == (3, 3)
    assert all(line["run_id"] == summary.run_id and datetime.fromisoformat(line["ts"]).tzinfo for line in story)
    [failed] = [line for line in story if line["event"] == "asset_failed"]
    assert (failed["level"], failed["step"], failed["code"]) == ("warning", "decode", "not_an_image")
    assert failed["asset_id"]
    assert failed["message"]
    assert story[-1]["statuses"] == {"ok": 3, "failed": 1}
    parts = [line for line in story if line["event"] == "part_committed"]
    assert sum(part["regions"] for part in parts) == summary.regions


def test_what_stops_a_run_is_its_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def full(*_: object) -> None:
        raise WriteError("the disk is full, password=hunter2")

    monkeypatch.setattr("datagen.run.commit.publish_part", full)
    job = fake_job(source={"input": str(tmp_path)}, output=str(tmp_path / "corpus"), run={"executor": "inprocess"})
    with pytest.raises(WriteError):
        run_job(job)
    [log] = (tmp_path / "corpus" / "_datagen" / "logs").glob("*.jsonl")
    ended = lines(log)[-1]
    assert (ended["event"], ended["level"], ended["code"]) == ("run_ended", "error", "write")
    assert ended["message"] == "the disk is full, password=***"


def test_warnings_of_the_package_are_in_it_and_other_loggers_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "logs" / "r.jsonl"
    with event_log(log, "r"):
        log_event("thing", "password=hunter2", step="decode", nested={"uri": "https://u:hunter2@h"}, number=3)
        logging.getLogger("datagen.guard").warning("listed %s", "https://u:hunter2@h/a")
        logging.getLogger("ray").warning("not ours")
        try:
            raise ValueError("token=hunter2hunter2hunter2")
        except ValueError:
            logging.getLogger("datagen.describe.step").exception("it broke")
    log_event("late", "nobody hears it")

    thing, warned, broke = lines(log)
    assert list(thing) == ["ts", "level", "event", "step", "run_id", "message", "nested", "number"]
    assert (thing["message"], thing["nested"], thing["number"]) == ("password=***", {"uri": "https://***@h"}, 3)
    assert (warned["event"], warned["logger"], warned["message"]) == ("log", "datagen.guard", "listed https://***@h/a")
    assert "ValueError: token=***" in broke["traceback"]
    assert "hunter2" not in log.read_text()
    assert "thing" not in [record.getMessage() for record in caplog.records], "events are for the file alone"


def test_the_ledger_keeps_what_workers_have_to_say(tmp_path: Path) -> None:
    ledger = Ledger(open_store(str(tmp_path)), tries=2)
    ledger.begin("decode", "dead", ["image a"], True)
    Guarded("decode", Doubler, LocalLedger(ledger)).process(samples("a", "b"))
    with pytest.raises(ModelLoadError):
        Guarded("perceive", lambda: Doubler({"setup": ModelLoadError("no weights")}), LocalLedger(ledger))
    told = [(event["event"], event["level"], event.get("step")) for event in ledger.events()]
    assert told == [
        ("worker_started", logging.INFO, "decode"),
        ("worker_lost", logging.WARNING, "decode"),
        ("crash", logging.ERROR, "decode"),
        ("fatal", logging.ERROR, None),
    ]
    assert ledger.events() == []
