"""Datasets in an older version of the tables' schemas: read, proven, and gone on with in that version."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from corpora import CLIP_S, fake_job, make_clip, mixed_clips, mixed_parts, write_dataset

from datagen.assemble import track_row
from datagen.check import check_dataset
from datagen.evaluate import evaluate
from datagen.run import run_job
from datagen.stats import dataset_stats
from datagen.write import VideoProgress, arrow_schema, done_assets, open_store, resume_videos, run_records, stage_clip
from datagen.write.schema import TABLES
from datagen.write.versions import rows_in_version, track_number

SAMPLES = Path(__file__).parents[2] / "samples"
OLD = Path(__file__).parents[1] / "data/v1"  # samples/ as datagen 0.1.0 wrote them before schema v2


@pytest.fixture
def old(tmp_path):
    """The dataset of schema v1, where it can be written to."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.fixture
def begun(tmp_path):
    """A v1 dataset of images and videos, one of them unfinished."""
    root = tmp_path / "begun"
    marker = {"format": 1, "schemas": dict.fromkeys(TABLES, 1), "token_logprobs": False}
    open_store(str(root)).write("_datagen/dataset.json", json.dumps(marker).encode())
    return write_dataset(root, mixed_parts(), mixed_clips())


def schemas(root: Path) -> set[str]:
    files = [path for table in TABLES for path in (root / table).glob("*.parquet")]
    return {pq.read_schema(path).metadata[b"datagen.schema"].decode() for path in files}


def test_an_old_dataset_is_read(old):
    report = check_dataset(str(old))
    assert report.ok, report.violations
    assert dataset_stats(str(old)) is not None
    measured = evaluate(str(old), str(SAMPLES))
    assert measured["masks"]["mean_iou"] == 1.0


def test_an_old_dataset_is_gone_on_with_in_its_version(old):
    job = fake_job(source={"input": str(SAMPLES / "media"), "media": "image"}, run={"executor": "inprocess"}, output=str(old))
    summary = run_job(job)
    assert summary.statuses["ok"] == 12
    assert schemas(old) == {f"{table}.v1" for table in TABLES}
    report = check_dataset(str(old))
    assert report.ok, report.violations
    ids = [name for path in (old / "regions").glob("*.parquet") for name in pq.read_table(path)["region_id"].to_pylist()]
    assert {len(name.rpartition("-")[2]) for name in ids} == {4}


def test_a_video_begun_in_an_old_dataset_is_finished_in_its_version(begun, tmp_path):
    root = tmp_path / "begun"
    progress = VideoProgress(begun, done_assets(begun))
    (run_id,) = (record["run_id"] for record in run_records(begun))
    last = make_clip(24, 2, (0, 3), is_last=True)
    resume = progress.resume_point(last.asset.asset_id)
    assert (resume.clip_index, resume.start_s) == (2, 2 * CLIP_S)
    last.tracks[0].track_id = resume.handovers[0].track_id  # as the old schema wrote it, beside one that is new in this run
    progress.publish(stage_clip(begun, run_id, last, fake_job().write, track_row))
    resume_videos(begun, fake_job().write)
    assert schemas(root) == {f"{table}.v1" for table in TABLES}
    report = check_dataset(str(root))
    assert report.ok, report.violations
    rows = {row["uri"]: row for path in (root / "assets").glob("*.parquet") for row in pq.read_table(path).to_pylist()}
    assert (rows["films/00024.mp4"]["status"], rows["films/00024.mp4"]["num_tracks"]) == ("ok", 2)


def test_rows_lose_what_an_old_version_does_not_have(begun, tmp_path):
    for table in TABLES:
        for path in (tmp_path / "begun" / table).glob("*.parquet"):
            assert pq.read_schema(path).equals(arrow_schema(table, version=1))
    assert rows_in_version("assets", [{"asset_id": "a", "prompts_hash": "b"}], 1) == [{"asset_id": "a"}]
    assert rows_in_version("assets", [{"asset_id": "a", "prompts_hash": "b"}], 2) == [{"asset_id": "a", "prompts_hash": "b"}]


@pytest.mark.parametrize(
    ("track", "number"),
    [
        *(("v-t0003", 3), ("v-t000003", 3), ("v-t12345", 12345), ("v-t1234567", 1234567)),
        *(("v-t03", None), ("v-t00003", None), ("w-t000003", None), ("v-t", None)),
    ],
)
def test_numbers_of_objects_are_read_in_every_version(track, number):
    assert track_number("v", track) == number
