"""Text from data on its way to a terminal or a text log moves no cursor, turns no direction and forges no line."""

from __future__ import annotations

import io
import json
import logging
import re
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from corpora import fake_job, mixed_parts, write_dataset
from damage import change_row, rewrite
from rich.table import Table
from typer.testing import CliRunner

from datagen.cli import app
from datagen.events import event_log, log_event
from datagen.printable import printable, printable_json
from datagen.redaction import redact_file
from datagen.run import run_job
from datagen.run.console import noise_to
from datagen.terminal import Screen, shown

NASTY = "a\x1b[2J\x1b]0;title\x07b\x9bc\rd\u202ee\u2066f\u200bg\x7fh\u2028i\ufeffj\x00k\nevery invariant holds"
BAD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def test_every_character_that_does_more_than_show_is_escaped() -> None:
    for code in [*range(0x2060), *range(0x2070, 0x2100), *range(0x2066, 0x206A), 0xFEFF, 0xD800, 0xE0001]:
        kind, text = unicodedata.category(chr(code)), printable(chr(code))
        if kind in ("Cc", "Zl", "Zp", "Cs") or ((kind == "Cf" and code not in range(0x600, 0x900)) or code == 0x61C):
            assert re.fullmatch(r"\\(?:x..|u....|U........|[nrt])", text), hex(code)
        else:
            assert text == chr(code)
    assert printable("紫色 é 👍 𝒳") == "紫色 é 👍 𝒳"
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


def test_a_screen_obeys_nothing_that_it_shows() -> None:
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=True, color_system="truecolor", width=200)
    table = Table("[red]x[/red]")
    table.add_row(NASTY)
    for renderable in (NASTY, table):
        screen.print(renderable, markup=False)
    screen.print(f"[red]{shown('[bold]' + NASTY)}[/red]")
    text = re.sub("\x1b\\[[0-9;]*m", "", out.getvalue())
    assert not BAD.search(text)
    assert "[bold]a\\x1b[2J" in text
    assert "k\\nevery invariant holds" in text


def test_json_says_the_same() -> None:
    text = printable_json(json.dumps({"m": NASTY + "\U000e0041"}, ensure_ascii=False))
    assert not BAD.search(text)
    assert json.loads(text) == {"m": NASTY + "\U000e0041"}


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    root = tmp_path / "data\x1b[31m"
    write_dataset(root, mixed_parts())
    part = next((root / "regions").glob("*.parquet"))
    for column in ("label_en", "region_id"):
        rewrite(part, change_row(column, lambda _: NASTY))
    return str(root)


@pytest.mark.parametrize("command", ["check", "stats"])
def test_commands_print_data_as_data(command: str, dataset: str) -> None:
    result = CliRunner(env={"COLUMNS": "500"}).invoke(app, [command, dataset])
    assert not BAD.search(result.output)
    assert command == "stats" or not any(line.strip().startswith("every invariant holds") for line in result.output.splitlines())
    assert "\\x1b" in result.output


def test_a_run_and_its_logs_print_data_as_data(tmp_path: Path) -> None:
    name = "p\x1b[2J\u202e.png"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"nothing")
    job = fake_job(source={"input": str(tmp_path / "in")}, output=str(tmp_path / "out"), run={"executor": "inprocess"})
    run_job(job)
    assert pq.read_table(tmp_path / "out" / "assets").to_pylist()[0]["uri"].endswith(name)  # the table keeps what is there
    for log in (tmp_path / "out" / "_datagen" / "logs").iterdir():
        assert not BAD.search(log.read_text(encoding="utf-8"))
    for command in ("status", "stats", "check"):
        assert not BAD.search(CliRunner().invoke(app, [command, str(tmp_path / "out")]).output)


def test_logs_of_both_kinds_are_printable(tmp_path: Path) -> None:
    with event_log(tmp_path / "e.jsonl", "run"):
        log_event("said", NASTY, uri=NASTY)
    assert not BAD.search((tmp_path / "e.jsonl").read_text(encoding="utf-8"))
    with noise_to(tmp_path / "n.log"):
        logging.getLogger("x").warning("%s", NASTY)
    assert not BAD.search((tmp_path / "n.log").read_text(encoding="utf-8"))


def test_what_libraries_printed_is_made_printable_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "r.log").write_bytes(b"\x1b[36m(Worker)\x1b[0m fine\r\n\x1b[2Jforged\n\xff\x80 bytes\n")
    redact_file(tmp_path / "r.log", tmp_path / "t")
    assert (tmp_path / "r.log").read_bytes() == b"(Worker) fine\r\n\\x1b[2Jforged\n\xff\x80 bytes\n"


def test_an_error_message_is_printable(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", f"{tmp_path}/\x1b[2Jnothing"])
    assert not BAD.search(result.output)
