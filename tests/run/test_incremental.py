"""Runs night after night: new and changed images, failed ones that are tried again a few times, and whatever interrupts that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from video_files import numbered, write_video

from datagen.check import check_dataset
from datagen.errors import WriteError
from datagen.job import Job, WriteOptions, parse_job
from datagen.run import plan_job, run_job
from datagen.run.console import print_run
from datagen.run.summary import RunSummary
from datagen.write import done_assets, open_store
from datagen.write.retries import ASIDE, restore_failed, retrying

FAKE = {"engine": "fake"}


def photo(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), (shade, 90, 200)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Good images a to f, and x and y that cannot be read."""
    folder = tmp_path / "in"
    for index, name in enumerate("abcdef"):
        photo(folder / f"{name}.png", 20 * index)
    for name in "xy":
        (folder / f"{name}.png").write_bytes(b"no picture")
    return folder


def job_of(folder: Path, output: str, retry_failed: int = 0, **source: object) -> Job:
    run = {"executor": "inprocess", "retry_failed": retry_failed}
    data = {"perceive": FAKE, "describe": FAKE, "write": {"assets_per_part": 3}, "run": run, "output": output}
    return parse_job({**data, "source": {"input": str(folder), **source}})


def rows(output: str) -> dict[str, dict]:
    """Rows by file name; fails when a file is there twice, or anything else is wrong with the dataset."""
    report = check_dataset(output)
    assert report.ok, report.violations
    store, found = open_store(output), {}
    for path, _ in store.list("assets"):
        with store.open_input(path) as source:
            for row in pq.ParquetFile(source).read().to_pylist():
                name = Path(row["uri"]).stem
                assert name not in found, f"{name} is there twice"
                found[name] = row
    assert list(store.list(ASIDE)) == []
    return found


def test_failed_images_are_tried_again_a_few_times_and_then_left(photos: Path, output: str) -> None:
    first = run_job(job_of(photos, output, retry_failed=2))
    assert first.diff == {"new": 6, "failed": 2}
    assert plan_job(job_of(photos, output, retry_failed=2))["left"] == 2
    before = rows(output)

    second = run_job(job_of(photos, output, retry_failed=2))
    assert (second.todo, second.diff) == (2, {"failed_again": 2})
    assert (rows(output)["x"]["retries"], rows(output)["x"]["run_id"]) == (1, second.run_id)

    photo(photos / "x.png")
    photo(photos / "new.png")
    third = run_job(job_of(photos, output, retry_failed=2))
    assert third.diff == {"recovered": 1, "failed_again": 1, "new": 1}
    assert (rows(output)["x"]["status"], rows(output)["x"]["retries"]) == ("ok", 2)
    assert (rows(output)["y"]["status"], rows(output)["y"]["retries"]) == ("failed", 2)

    fourth = run_job(job_of(photos, output, retry_failed=2))
    assert (fourth.todo, fourth.failed_before) == (0, 1)
    last = rows(output)
    assert sorted(last) == [*"abcdef", "new", "x", "y"]
    assert all(last[name] == before[name] for name in "abcdef"), "what was done is not touched"
    record = json.loads(open_store(output).read(f"_datagen/runs/{third.run_id}.json"))
    assert record["summary"]["diff"] == dict(third.diff)


@pytest.mark.parametrize("output", ["local"], indirect=True)
def test_without_the_option_failed_images_are_left(photos: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    run_job(job_of(photos, output))
    photo(photos / "x.png")
    summary = run_job(job_of(photos, output))
    assert (summary.todo, summary.failed_before) == (0, 2)
    print_run(Console(), summary)
    assert "2 of its assets failed and are left alone" in capsys.readouterr().out


@pytest.mark.parametrize("output", ["local"], indirect=True)
def test_what_is_not_listed_or_beyond_the_limit_keeps_its_row(photos: Path, output: str) -> None:
    (photos / "z.png").write_bytes(b"no picture")
    run_job(job_of(photos, output))
    before = rows(output)
    (photos / "x.png").unlink()

    summary = run_job(job_of(photos, output, retry_failed=5), limit=1)

    assert (summary.todo, summary.diff) == (1, {"failed_again": 1})
    after = rows(output)
    assert (after["x"]["retries"], after["y"]["retries"], after["z"]["retries"]) == (0, 1, 0)
    changed = {"part_id"}
    assert all(
        {k: v for k, v in after[n].items() if k not in changed} == {k: v for k, v in before[n].items() if k not in changed} for n in "xz"
    )
    other = photos.parent / "other"
    photo(other / "other.png")
    assert run_job(job_of(other, output, retry_failed=5)).diff == {"new": 1}
    assert rows(output) == after | {name: rows(output)[name] for name in ("x", "y", "z", "other")}


@pytest.mark.parametrize("output", ["local"], indirect=True)
def test_changed_files_are_told_from_new_ones(photos: Path, output: str) -> None:
    assert run_job(job_of(photos, output, reprocess_changed=True)).diff == {"new": 6, "failed": 2}
    photo(photos / "a.png", 255)
    photo(photos / "new.png")
    photo(photos / "x.png")
    os.utime(photos / "y.png", (1, 1))
    assert run_job(job_of(photos, output, reprocess_changed=True)).diff == {"changed": 2, "new": 1, "failed": 1}
    assert run_job(job_of(photos, output, reprocess_changed=True)).todo == 0


KILLED_WHEN_IT_WRITES = {"DATAGEN_FAULTS": json.dumps({"write": {"kill_if_uri": "y.png"}})}


def start(job: Job, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path.write_text(json.dumps(job.model_dump(mode="json")))
    command = [sys.executable, "-m", "datagen", "run", str(path), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment)


def test_a_run_that_is_killed_while_it_tries_again_loses_and_doubles_nothing(photos: Path, output: str, tmp_path: Path) -> None:
    (photos / "w.png").write_bytes(b"no picture")
    run_job(job_of(photos, output))
    photo(photos / "x.png")
    photo(photos / "n.png")
    killed = start(job_of(photos, output, retry_failed=1), tmp_path / "job.yaml", **KILLED_WHEN_IT_WRITES)
    assert killed.returncode == -9
    assert [path for path, _ in open_store(output).list(ASIDE)], "killed in the middle of it"
    assert done_assets(open_store(output)).statuses["failed"] < 3

    summary = run_job(job_of(photos, output))
    assert summary.diff in ({}, {"new": 1})
    found = rows(output)
    assert sorted(found) == [*"abcdef", "n", "w", "x", "y"]
    assert found["y"]["status"] == "failed"
    assert found["y"]["retries"] == 0, "the run that was killed does not count"
    assert run_job(job_of(photos, output, retry_failed=1)).diff["failed_again"] >= 1
    assert rows(output)["y"]["retries"] == 1


def test_every_step_of_taking_out_and_bringing_back_may_be_the_last(photos: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call that changes the dataset fails once, as a kill would leave it; the next start repairs it."""
    run_job(job_of(photos, output))
    expected = {name: row["status"] for name, row in rows(output).items()}
    store, options = open_store(output), WriteOptions()
    kind = type(store)
    steps = [(kind, "move"), (kind, "write"), (kind, "delete")]
    for number in range(3):
        for owner, method in steps:
            original, calls = getattr(owner, method), []

            def breaks(self, *arguments, original=original, calls=calls, number=number):
                calls.append(arguments)
                if len(calls) > number:
                    raise WriteError("killed here")
                return original(self, *arguments)

            with monkeypatch.context() as patch:
                patch.setattr(owner, method, breaks)
                try:
                    with retrying(store, done_assets(store), 1, options):
                        pass
                except WriteError:
                    pass
            restore_failed(store, options)
            assert {name: row["status"] for name, row in rows(output).items()} == expected


def test_the_summary_of_a_night_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    summary = RunSummary("r", "corpus", listed=9, done_before=4, todo=5, failed_before=1)
    summary.diff.update(new=3, recovered=1, failed_again=1)
    print_run(Console(width=200), summary)
    said = capsys.readouterr().out
    assert "4 done by earlier runs; 1 failed and are left alone" in said
    assert "3 new, 1 recovered, 1 failed again" in said


# --- videos ----------------------------------------------------------------------------------------------------------------------

DECODER_DIES_IN_THE_SECOND_CLIP = json.dumps({"decode": {"kill_if_uri": "v.mp4#frame=5;"}})
DRIVER_DIES_WHEN_IT_WRITES = {"DATAGEN_FAULTS": json.dumps({"write": {"kill_if_uri": "v.mp4"}})}


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`in`, and `corpus` after one run: v.mp4 of three clips failed in its second, w.mp4 at once, u.mp4 and a picture are good."""
    root = tmp_path_factory.mktemp("films")
    photo(root / "in" / "a.png")
    for name in ("u.mp4", "v.mp4"):
        write_video(root / "in" / name, map(numbered, range(12)), fps=4)
    (root / "in" / "w.mp4").write_bytes(b"no film")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATAGEN_FAULTS", DECODER_DIES_IN_THE_SECOND_CLIP)
        assert run_job(films_job(root / "in", root / "corpus")).statuses == {"ok": 2, "failed": 2}
    return root


@pytest.fixture
def films(run_once: Path, tmp_path: Path) -> Path:
    """The output, to go on with; its input is that of `run_once`."""
    return shutil.copytree(run_once / "corpus", tmp_path / "corpus")


def films_job(folder: Path, output: Path, retry_failed: int = 0) -> Job:
    data = {"perceive": FAKE, "describe": {**FAKE, "tasks": ["caption"]}, "decode": {"max_clip_s": 1.0}, "output": str(output)}
    run = {"executor": "inprocess", "retry_failed": retry_failed}
    return parse_job({**data, "source": {"input": str(folder), "media": "any"}, "run": run})


def clip_rows(output: Path) -> dict[tuple[str, int], dict]:
    return {(Path(row["uri"]).stem, row["clip_index"]): row for row in pq.read_table(output / "clips").to_pylist()}


def without_part(found: dict[str, dict]) -> dict[str, dict]:
    return {name: row | {"part_id": ""} for name, row in found.items()}


def test_a_failed_video_goes_on_at_the_clip_that_failed(run_once: Path, films: Path) -> None:
    assert (rows(str(films))["v"]["num_clips"], rows(str(films))["v"]["error_code"]) == (2, "decoder_crashed")
    before = clip_rows(films)

    summary = run_job(films_job(run_once / "in", films, retry_failed=1))

    assert summary.diff == {"recovered": 1, "failed_again": 1}
    found = {name: (row["status"], row["retries"]) for name, row in rows(str(films)).items()}
    assert found == {"a": ("ok", 0), "u": ("ok", 0), "v": ("ok", 1), "w": ("failed", 1)}
    clips = clip_rows(films)
    assert sorted(key for key in clips if key[0] == "v") == [("v", 0), ("v", 1), ("v", 2)]
    assert clips["v", 0] == before["v", 0], "what was good is not done again"
    assert run_job(films_job(run_once / "in", films, retry_failed=1)).todo == 0


def test_a_video_that_is_not_listed_keeps_its_row_and_its_clips(films: Path, tmp_path: Path) -> None:
    before, clips = rows(str(films)), clip_rows(films)
    photo(tmp_path / "other" / "other.png")
    assert run_job(films_job(tmp_path / "other", films, retry_failed=3)).diff == {"new": 1}
    assert clip_rows(films) == clips
    after = rows(str(films))
    del after["other"]
    assert without_part(after) == without_part(before)


def test_a_run_that_is_killed_while_it_tries_a_video_again_loses_nothing(run_once: Path, films: Path, tmp_path: Path) -> None:
    before, clips = rows(str(films)), clip_rows(films)
    killed = start(films_job(run_once / "in", films, retry_failed=1), tmp_path / "job.yaml", **DRIVER_DIES_WHEN_IT_WRITES)
    assert killed.returncode == -9
    assert len(list(open_store(str(films)).list(ASIDE))) == 3, "the part, and a clip of each"

    assert run_job(films_job(run_once / "in", films)).todo == 0

    assert clip_rows(films) == clips
    assert without_part(rows(str(films))) == without_part(before)
    assert run_job(films_job(run_once / "in", films, retry_failed=1)).diff == {"recovered": 1, "failed_again": 1}
    assert rows(str(films))["v"]["num_clips"] == 3


def test_the_second_of_two_schedules_leaves_with_a_message(photos: Path, output: str, tmp_path: Path) -> None:
    with open_store(output).lease({"run_id": "tonight"}):
        second = start(job_of(photos, output), tmp_path / "job.yaml")
    assert second.returncode == 4
    assert "another run is writing to" in second.stderr
    assert "run_id tonight" in second.stderr.replace("\n", " ")
    assert list(open_store(output).list("assets")) == []
