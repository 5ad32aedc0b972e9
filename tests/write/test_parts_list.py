"""Content hashes of parts, and the lists of them: whatever ends a run, the next one and the check agree on what there should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import failed_sample, kill, make_clip, make_sample, mixed_clips, mixed_parts, start_python, wait_for, write_dataset
from damage import rewrite
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datagen.check import check_dataset
from datagen.errors import WriteError
from datagen.job import Job, WriteOptions, parse_job
from datagen.run import run_job
from datagen.write import done_assets, open_store, table_from_rows
from datagen.write.parts_list import ListFile, PartsList, listed_marks, read_lists
from datagen.write.seals import COMMITS, computed_seal, parquet_bytes, seal_in, seal_of

OPTIONS = WriteOptions()


def job_of(root: Path, retry_failed: int = 0) -> Job:
    fake = {"engine": "fake"}
    run = {"executor": "inprocess", "retry_failed": retry_failed}
    data = {"perceive": fake, "describe": fake, "write": {"assets_per_part": 2}, "run": run, "output": str(root / "out")}
    return parse_job({**data, "source": {"input": str(root / "in")}})


def photos(root: Path, names: str) -> None:
    (root / "in").mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 30), (ord(name), 90, 200)).save(root / "in" / f"{name}.png")


def checked(root: Path) -> tuple[dict[str, int], int, int]:
    report = check_dataset(str(root))
    return dict(report.by_code), report.num_unproven_parts, report.num_unlisted_parts


# --- hashes ----------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(), max_size=5), st.integers(1, 3))
def test_a_file_proves_itself_and_any_other_byte_is_found(texts, rows_per_group):
    table = pa.table({"a": ["-" * 64, *texts]})
    options = WriteOptions(row_group_rows=rows_per_group)
    data = parquet_bytes(table, options).to_pybytes()
    assert data == parquet_bytes(table, options).to_pybytes()
    seal = seal_of(data)
    assert computed_seal(pa.BufferReader(data), seal) == seal
    assert pq.read_table(pa.BufferReader(data)).equals(table)
    place = np.random.default_rng(len(data)).integers(4, len(data) - 8)
    other = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    assert computed_seal(pa.BufferReader(other), seal) != seal


def test_a_large_file_is_hashed_in_pieces(monkeypatch):
    data = parquet_bytes(pa.table({"a": np.random.default_rng(0).random(4000)}), OPTIONS).to_pybytes()
    seal = seal_of(data)
    for size in (1000, len(data) - 200, len(data)):
        monkeypatch.setattr("datagen.write.seals._CHUNK_BYTES", size)
        assert computed_seal(pa.BufferReader(data), seal) == seal


def test_a_mark_has_the_hash_of_what_it_commits(tmp_path):
    write_dataset(tmp_path, mixed_parts(), mixed_clips())
    for table, mark in (("regions", "assets"), ("tracks", "clips")):
        for path in (tmp_path / table).iterdir():
            commits = json.loads(pq.read_metadata(tmp_path / mark / path.name).metadata[COMMITS])
            assert commits == {table: seal_of(path)}


def test_a_part_written_anew_by_other_means_has_no_hash_that_fits(tmp_path):
    write_dataset(tmp_path, mixed_parts()[1:2])
    (path,) = (tmp_path / "regions").iterdir()
    pq.write_table(pq.read_table(path), path)
    assert checked(tmp_path)[0] == {"changed_part": 1}
    pq.write_table(pq.read_table(path).replace_schema_metadata({"datagen.schema": "regions.v2"}), path)
    assert checked(tmp_path)[0] == {"changed_part": 1}


# --- lists -----------------------------------------------------------------------------------------------------------------------


def test_a_run_lists_what_it_committed_and_its_record_names_the_list(tmp_path):
    photos(tmp_path, "abc")
    summary = run_job(job_of(tmp_path))
    store = open_store(str(tmp_path / "out"))
    record = json.loads(store.read(f"_datagen/runs/{summary.run_id}.json"))
    (listed,) = record["parts"]
    rows = pq.read_table(tmp_path / "out" / listed["path"]).to_pylist()
    parts = {path.stem.removeprefix("part-"): seal_of(path) for path in (tmp_path / "out" / "assets").iterdir()}
    assert {row["part_id"]: row["sha256"] for row in rows} == parts
    assert listed["parts"] == len(parts) == 2
    assert checked(tmp_path / "out") == ({}, 0, 0)


def test_a_removed_part_is_lost_until_the_next_run_has_done_it_again(tmp_path):
    photos(tmp_path, "abcd")
    run_job(job_of(tmp_path))
    name = sorted((tmp_path / "out" / "assets").iterdir())[0].name
    for table in ("assets", "regions"):
        (tmp_path / "out" / table / name).unlink()
    assert checked(tmp_path / "out")[0] == {"lost_part": 1, "lost_asset": 1}
    summary = run_job(job_of(tmp_path))
    assert summary.todo == 2
    assert checked(tmp_path / "out") == ({}, 0, 0)


def test_a_changed_part_stays_one_after_the_next_run(tmp_path):
    photos(tmp_path, "abcd")
    run_job(job_of(tmp_path))
    path = sorted((tmp_path / "out" / "assets").iterdir())[0]
    rewrite(path, lambda table: table)
    photos(tmp_path, "e")
    run_job(job_of(tmp_path))
    assert checked(tmp_path / "out")[0] == {"changed_part": 1}


def test_failed_assets_tried_again_are_listed_anew(tmp_path):
    photos(tmp_path, "ab")
    for name in "xyz":
        (tmp_path / "in" / f"{name}.png").write_bytes(b"no picture")
    run_job(job_of(tmp_path))
    photos(tmp_path, "x")
    (tmp_path / "in" / "y.png").unlink()
    assert run_job(job_of(tmp_path, retry_failed=2)).diff == {"recovered": 1, "failed_again": 1}
    assert checked(tmp_path / "out") == ({}, 0, 0)
    assert run_job(job_of(tmp_path, retry_failed=2)).diff == {"failed_again": 1}
    assert checked(tmp_path / "out") == ({}, 0, 0)
    assert run_job(job_of(tmp_path, retry_failed=2)).todo == 0
    assert checked(tmp_path / "out") == ({}, 0, 0)


KILLED = """
import os, sys, time
from corpora import *
from datagen.write.parts_list import PartsList
store = open_store(sys.argv[1])
with store.lease({}):
    record = RunRecord.new(asked_job())
    prepare_output(store, asked_job())
    record.write(store, status="running")
    marks = PartsList(store, record.run_id)
    for number, samples in enumerate(mixed_parts()):
        part = stage_part(store, record.run_id, samples, WriteOptions(), region_row)
        publish_part(store, part)
        marks.committed("assets", part.part_id, part.seal)
        if number == int(sys.argv[2]):
            marks.flush()
    print("there", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("flushed", [0, 1, 9])
def test_parts_of_a_killed_run_prove_themselves_and_are_adopted(tmp_path, flushed):
    process = start_python(KILLED, tmp_path, flushed)
    wait_for(process, "there")
    kill(process)
    unlisted = 3 - min(flushed + 1, 3) if flushed < 3 else 3
    assert checked(tmp_path)[0] in ({}, {"debris": 1})
    assert checked(tmp_path)[2] == unlisted
    store = open_store(str(tmp_path))
    marks = PartsList(store, "next")
    done_assets(store, marks.see_assets)
    marks.take_stock()
    assert (marks.adopted, marks.gone) == (unlisted, 0)
    assert checked(tmp_path)[1:] == (0, 0)
    (path, *_) = (tmp_path / "assets").iterdir()
    rewrite(path, lambda table: table)
    assert checked(tmp_path)[0].get("changed_part")


def test_datasets_of_earlier_versions_are_said_to_be_unproven(tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "data" / "v1", tmp_path / "v1")
    codes, unproven, unlisted = checked(tmp_path / "v1")
    assert (codes, unlisted) == ({}, 0)
    assert unproven == sum(1 for table in ("assets", "regions", "clips", "tracks") for _ in (tmp_path / "v1" / table).glob("*.parquet"))


def test_the_latest_word_counts_and_names_that_end_in_zeros_are_kept(tmp_path):
    first, second = "0" * 20, "f" * 18 + "00"

    def file(number, *rows):
        return ListFile(
            str(number), number, pa.table(dict(zip(("event", "table", "part_id", "sha256"), zip(*rows, strict=True), strict=True)))
        )

    seal, other = "a" * 62 + "00", "0" * 64
    lists = [
        file(1, ("committed", "assets", first, seal), ("committed", "clips", first, other), ("committed", "assets", second, None)),
        file(2, ("removed", "assets", first, None), ("gone", "clips", first, None)),
        file(3, ("adopted", "assets", first, other)),
    ]
    marks = listed_marks(lists)
    assert (marks.agrees("assets", first, other), marks.agrees("assets", first, seal)) == (True, False)
    assert marks.agrees("clips", first, other) is None
    assert list(marks.unseen()) == [("assets", second)]
    assert (marks.agrees("assets", second, None), marks.agrees("assets", second, seal)) == (True, False)
    assert listed_marks(lists[:2]).agrees("assets", first, seal) is None
    assert len(listed_marks(())) == 0


def test_lists_are_read_in_the_order_in_which_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr("datagen.write.parts_list._LISTED_AT_ONCE", 2)
    store = open_store(str(tmp_path))
    for run_id in ("z", "a"):  # ids of one second come in any order
        marks = PartsList(store, run_id)
        for number in range(3):
            marks.committed("clips", f"{number:020x}", run_id * 64)
        marks.flush()
    assert [file.path.split("/")[-1] for file in read_lists(store)] == [f"{run}.parts-{n:05d}.parquet" for run in "za" for n in range(2)]
    assert listed_marks(read_lists(store)).agrees("clips", f"{0:020x}", "a" * 64)


@pytest.mark.parametrize("damage", [b"", b"PAR1", pa.table({"a": [1]})])
def test_a_damaged_list_is_named(tmp_path, damage):
    path = tmp_path / "_datagen" / "runs" / "x.parts-00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(damage, path) if isinstance(damage, pa.Table) else path.write_bytes(damage)
    with pytest.raises(WriteError, match=r"x.parts-00000.parquet, a list of parts, is damaged.*Delete it"):
        PartsList(open_store(str(tmp_path)), "run")


def test_seals_are_no_columns(tmp_path):
    write_dataset(tmp_path, [[make_sample(0), failed_sample(1)]], [make_clip(22, 0, (), is_last=True, num_clips=1)])
    for path in (tmp_path / "assets").iterdir():
        assert seal_in(pq.read_metadata(path).metadata) == seal_of(path)
        table = pq.read_table(path)
        assert table_from_rows("assets", table.to_pylist()).schema.equals(table.schema)
