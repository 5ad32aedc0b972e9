"""The same id or file twice: joined, failed by name, or, where rows say exactly the same, done once and counted."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datagen.check import check_dataset
from datagen.job import parse_job
from datagen.records import Asset
from datagen.run import plan_job, run_job
from datagen.run.distinct import Distinct


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        Image.new("RGB", (200, 100), (90, 90, 200)).save(tmp_path / f"{name}.png")
    return tmp_path


def job_of(folder, name, **source):
    fake = {"engine": "fake"}
    data = {"perceive": fake, "describe": fake, "run": {"executor": "inprocess"}, "source": {"input": f"{folder}/{name}", **source}}
    return parse_job({**data, "output": f"{folder}/out"})


def manifest(folder, *rows):
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return job_of(folder, "m.jsonl")


def stored(folder, table="assets"):
    return pq.read_table(folder / "out" / table).to_pylist()


def test_one_row_per_box_is_one_region_per_box(folder):
    (folder / "flat.csv").write_text("uri,box\n" + "".join(f'{n}.png,"[{b},{b},{b + 9},{b + 9}]"\n' for n in "abc" for b in (1, 20, 30)))
    summary = run_job(job_of(folder, "flat.csv"))
    assert (summary.statuses, summary.regions, summary.repeated) == ({"ok": 3}, 9, 0)
    names = {row["asset_id"]: row["uri"][-5:] for row in stored(folder)}
    boxes = sorted((names[row["asset_id"]], row["prompt"]["box"][0]) for row in stored(folder, "regions"))
    assert sorted({row["region_index"] for row in stored(folder, "regions")}) == [0, 1, 2]
    assert {row["num_prompts"] for row in stored(folder)} == {3}
    assert boxes == [(f"{n}.png", float(b)) for n in "abc" for b in (1, 20, 30)]


def test_one_id_for_two_files_fails_the_second_and_stays_so(folder):
    job = manifest(folder, *({"uri": f"{name}.png", "asset_id": "x"} for name in "abc"))
    summary = run_job(job)
    assert summary.statuses == {"ok": 1, "failed": 2}
    assert summary.failures == {"asset_id_taken": 2}
    rows = {row["uri"][-5:]: row for row in stored(folder)}
    assert [rows[f"{name}.png"]["status"] for name in "abc"] == ["ok", "failed", "failed"]
    assert "'x'" in rows["b.png"]["error_message"]
    assert check_dataset(f"{folder}/out").ok
    assert run_job(job).parts == 0


def test_identical_rows_are_done_once_with_a_warning(folder):
    row = {"uri": "a.png", "box": [1, 2, 30, 40]}
    summary = run_job(manifest(folder, row, row, {"uri": "b.png"}, dict(reversed(row.items()))))
    assert (summary.statuses, summary.repeated, summary.regions >= 1) == ({"ok": 2}, 2, True)
    assert any("2 input rows say exactly what one before them says" in warning for warning in summary.warnings)


def test_a_file_under_two_spellings_with_other_prompts_fails(folder):
    job = manifest(folder, {"uri": "a.png", "box": [1, 2, 30, 40]}, {"uri": "./a.png", "box": [5, 5, 60, 60]})
    summary = run_job(job)
    assert summary.failures == {"asset_listed_twice": 1}
    assert summary.statuses == {"ok": 1, "failed": 1}
    assert run_job(job).parts == 0


def test_members_of_one_id(folder):
    with tarfile.open(folder / "t.tar", "w") as archive:
        for name in "ab":
            for member, data in ((f"{name}.png", (folder / "a.png").read_bytes()), (f"{name}.json", b'{"asset_id": "x"}')):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    assert run_job(job_of(folder, "t.tar")).failures == {"asset_id_taken": 1}


def test_rows_of_a_dataset_that_are_paths(folder):
    pictures = [{"bytes": None, "path": f"{name}.png"} for name in "aab"]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(pictures, kind), "caption": ["one", "two", "three"]}), folder / "d.parquet")
    summary = run_job(job_of(folder, "d.parquet"))
    assert summary.failures == {"asset_listed_twice": 1}
    assert plan_job(job_of(folder, "d.parquet"))["left"] == 0


def test_a_third_that_says_what_the_second_does_is_counted():
    def asset(uri, **more):
        return Asset("x", uri, **more)

    distinct = Distinct([asset("a"), asset("b"), asset("b"), asset("a", extra={"n": 1}), asset("a"), asset("a", license="CC0")])
    found = [(one.uri, one.failure and one.failure.code) for one in distinct]
    assert found == [("a", None), ("b", "asset_id_taken"), ("a", "asset_listed_twice"), ("a", "asset_listed_twice")]
    assert distinct.repeated == 2
    assert len({one.asset_id for one in distinct}) == 4
