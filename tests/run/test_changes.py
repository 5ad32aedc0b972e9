"""What changed since the last run is noticed, counted and said: prompts, the way of counting changes, the place of the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from datagen.check import check_dataset
from datagen.job import Job, parse_job
from datagen.run import plan_job, run_job
from datagen.run.console import print_plan, print_run
from datagen.write.done import NO_PROMPTS, NOT_SAID, DoneSet, id_keys, prompts_code

BOX, OTHER = [2, 3, 20, 22], [5, 5, 30, 28]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for index in range(3):
        Image.new("RGB", (40, 30), (60 * index, 90, 200)).save(tmp_path / "in" / f"{index}.png")
    return tmp_path


def job_of(root: Path, source: str, **options: object) -> Job:
    fake = {"engine": "fake"}
    data = {"perceive": fake, "describe": fake, "run": {"executor": "inprocess"}, "output": str(root / "out")}
    return parse_job({**data, "source": {"input": str(root / source), **options}})


def listed(root: Path, *boxes: list[int] | None) -> None:
    rows = [{"uri": f"in/{index}.png"} | ({} if box is None else {"box": box}) for index, box in enumerate(boxes)]
    (root / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stored(root: Path) -> dict[str, list[list[float]]]:
    report = check_dataset(str(root / "out"))
    assert report.ok, report.violations
    found: dict[str, list[list[float]]] = {}
    for row in pq.read_table(root / "out" / "regions").to_pylist():
        found.setdefault(row["asset_id"], []).append(row["prompt"]["box"])
    return found


def test_changed_prompts_of_done_assets_are_counted_and_their_rows_stay(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed(root, BOX, BOX, None)
    assert run_job(job_of(root, "list.jsonl")).changed_prompts == 0
    before = stored(root)
    listed(root, BOX, OTHER, BOX)
    plan = plan_job(job_of(root, "list.jsonl"))
    assert (plan["left"], plan["changed_prompts"]) == (0, 2)
    summary = run_job(job_of(root, "list.jsonl"))
    assert (summary.todo, summary.changed_prompts) == (0, 2)
    print_plan(Console(width=200), plan)
    print_run(Console(width=200), summary)
    assert capsys.readouterr().out.count("the prompts of 2 assets differ") == 2
    assert stored(root) == before
    listed(root, BOX, BOX, None)
    assert run_job(job_of(root, "list.jsonl")).changed_prompts == 0


def test_reprocess_changed_does_changed_prompts_anew_once(root: Path) -> None:
    listed(root, BOX, BOX)
    reprocess = job_of(root, "list.jsonl", reprocess_changed=True)
    assert run_job(reprocess).diff == {"new": 2}
    listed(root, BOX, OTHER)
    assert plan_job(reprocess)["left"] == 1
    summary = run_job(reprocess)
    assert (summary.changed_prompts, summary.diff, summary.redone) == (1, {"changed": 1}, 0)
    record = json.loads((root / "out" / "_datagen" / "runs" / f"{summary.run_id}.json").read_text())
    assert record["summary"]["changed_prompts"] == 1
    found = stored(root)
    (anew,) = [name for name in found if "@" in name]
    assert found[anew] == [OTHER]
    assert found[anew.partition("@")[0]] == [BOX]
    assert (run_job(reprocess).todo, run_job(reprocess).changed_prompts) == (0, 0)
    listed(root, BOX, BOX)
    assert run_job(reprocess).todo == 0, "the first prompts are done, too"


def test_reprocess_changed_switched_on_is_said_before_and_after(root: Path) -> None:
    assert run_job(job_of(root, "in")).todo == 3
    plan = plan_job(job_of(root, "in", reprocess_changed=True))
    assert (plan["left"], plan["redone"]) == (3, 3)
    assert "3 assets were done while source.reprocess_changed was off" in plan["warnings"][0]
    summary = run_job(job_of(root, "in", reprocess_changed=True))
    assert (summary.redone, summary.diff) == (3, {"changed": 3})
    assert run_job(job_of(root, "in", reprocess_changed=True)).redone == 0


def test_reprocess_changed_switched_off_and_other_ids_are_said_by_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files are where they were: nothing is said of another place."""
    assert run_job(job_of(root, "in", reprocess_changed=True)).other_ids == 0
    plan = plan_job(job_of(root, "in"))
    assert (plan["left"], plan["other_ids"], plan["same_names"]) == (3, 3, 0)
    print_plan(Console(width=400), plan)
    assert "3 of its first 3 files are in the table under other ids" in capsys.readouterr().out
    rows = [{"uri": f"in/{index}.png", "asset_id": str(index)} for index in range(2)] + [{"uri": "other/2.png", "asset_id": "x"}]
    (root / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run_job(job_of(root, "list.jsonl"))
    assert (summary.other_ids, summary.same_names) == (2, 1)
    assert sum("source.reprocess_changed was on for those" in warning for warning in summary.warnings) == 1


def test_of_changed_files_nothing_is_said_but_that_they_changed(root: Path) -> None:
    reprocess = job_of(root, "in", reprocess_changed=True)
    assert run_job(reprocess).diff == {"new": 3}
    for index in range(3):
        Image.new("RGB", (41, 30), (60 * index, 90, 200)).save(root / "in" / f"{index}.png")
    summary = run_job(reprocess)
    assert (summary.diff, summary.warnings, summary.other_ids, summary.same_names) == ({"changed": 3}, [], 0, 0)


def test_files_of_known_names_in_another_place_are_said(root: Path) -> None:
    assert run_job(job_of(root, "in")).same_names == 0
    shutil.copytree(root / "in", root / "moved")
    plan = plan_job(job_of(root, "moved"))
    assert (plan["left"], plan["same_names"]) == (3, 3)
    summary = run_job(job_of(root, "moved"))
    assert (summary.todo, summary.same_names) == (3, 3)
    assert "3 of its first 3 files have the name of one that is in" in " ".join(summary.warnings)
    assert run_job(job_of(root, "moved")).same_names == 0


def test_a_set_knows_what_each_was_asked() -> None:
    names = [str(number) for number in range(50)]
    codes = np.arange(100, 150, dtype=np.uint64)
    done = DoneSet(id_keys(names), prompts=codes)
    assert done.asked(names).tolist() == codes.tolist()
    assert done.without(names[:10]).asked(names[10:]).tolist() == codes[10:].tolist()
    assert DoneSet(id_keys(names)).asked(names[:1]).tolist() == [NOT_SAID]
    assert (prompts_code(None), prompts_code("f" * 15 + "0")) == (NO_PROMPTS, 2**64 - 16)
