"""Jobs over assets whose ids are of every kind: all are done, once, and known again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import rewrite
from PIL import Image

from datagen.check import check_dataset
from datagen.job import Job, parse_job
from datagen.run import run_job

ODD = [
    "a",
    "b",
    "A",
    "61",
    "é",
    "e\u0301",
    "?",
    " a",
    "a ",
    "a-00001",
    "a-t000001",
    "a-000001",
    "image a",
    "clip 1 of a",
    '["a", "b"]',
    "x" * 1024,
]
REFUSED = ["a\nb", "a\0", "\x1b[2J", "\ud800", "\ud801", "x" * 1025]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (90, 90, 200)).save(tmp_path / "p.png")
    return tmp_path


def job_of(folder: Path, ids: list[str], per_part: int = 7) -> Job:
    (folder / "ids.jsonl").write_text("".join(json.dumps({"uri": "p.png", "asset_id": name}) + "\n" for name in ids))
    fake = {"engine": "fake"}
    data = {"perceive": fake, "describe": fake, "write": {"assets_per_part": per_part}, "run": {"executor": "inprocess"}}
    return parse_job({**data, "source": {"input": str(folder / "ids.jsonl")}, "output": str(folder / "out")})


def stored(folder: Path) -> list[str]:
    report = check_dataset(str(folder / "out"))
    assert report.ok, report.violations
    return sorted(pq.read_table(folder / "out" / "assets")["asset_id"].to_pylist())


@pytest.mark.parametrize(
    "ids", [[str(number) for number in range(100)], [f"{number:02X}" for number in range(64)], ODD], ids=["digits", "hex", "odd"]
)
def test_all_ids_are_done_and_known_again(folder: Path, ids: list[str]) -> None:
    summary = run_job(job_of(folder, ids))
    assert (summary.listed, summary.repeated, summary.statuses) == (len(ids), 0, {"ok": len(ids)})
    assert stored(folder) == sorted(ids)
    again = run_job(job_of(folder, [*ids, "new"]))
    assert (again.done_before, again.todo) == (len(ids), 1)


def test_ids_that_can_be_none_cost_their_rows_and_no_others(folder: Path) -> None:
    summary = run_job(job_of(folder, ["a", "b", *REFUSED], per_part=2))
    assert summary.failures == {"manifest_bad_id": len(REFUSED)}
    assert len(stored(folder)) == 2 + len(REFUSED)
    rows = pq.read_table(folder / "out" / "assets").to_pylist()
    (message,) = [row["error_message"] for row in rows if "U+001B" in (row["error_message"] or "")]
    assert "row 5 of" in message
    assert message.isprintable()
    assert run_job(job_of(folder, ["a", "b", *REFUSED])).todo == 0


def test_a_part_without_rows_is_done_again(folder: Path) -> None:
    run_job(job_of(folder, list("abcd"), per_part=2))
    first, _ = sorted((folder / "out" / "assets").iterdir())
    rewrite(first, lambda table: table.slice(0, 0))
    report = check_dataset(str(folder / "out"))
    assert report.by_code["empty_part"] == 1
    summary = run_job(job_of(folder, list("abcd"), per_part=4))
    assert (summary.done_before, summary.todo) == (2, 2)
    assert stored(folder) == list("abcd")


def test_parts_without_rows_are_violations_in_every_table(folder: Path) -> None:
    run_job(job_of(folder, list("ab")))
    for table in ("assets", "regions"):
        (path,) = (folder / "out" / table).iterdir()
        empty: pa.Table = pq.ParquetFile(path).read().slice(0, 0)
        kept = path.read_bytes()
        rewrite(path, lambda _, empty=empty: empty)
        assert check_dataset(str(folder / "out")).by_code["empty_part"] == 1
        path.write_bytes(kept)
