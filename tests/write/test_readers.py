"""Other people's readers open the tables without a plug-in."""

import re

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from corpora import CLIP_FRAMES, HEIGHT, WIDTH, fake_job, mixed_clips, mixed_parts, write_dataset
from pycocotools import mask as coco_mask

from datagen.masklets import masklet
from datagen.write import write_card


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("readers") / "corpus"
    write_card(write_dataset(root, mixed_parts(), mixed_clips()), fake_job())
    return root


def check_regions(rows):
    assert len(rows) == 17
    for row in rows:
        assert row["prompt"]["type"] == "box+points"
        pixels = coco_mask.decode({"size": list(row["mask"]["size"]), "counts": row["mask"]["counts"]})
        assert pixels.shape == (HEIGHT, WIDTH)
        assert pixels.sum() == row["area_px"]
        assert row["label_zh"] == "东西"
        assert row["definition_en"] is None or pd.isna(row["definition_en"])


def check_tracks(rows):
    """Rows as any reader gives them."""
    assert len(rows) == 11
    for row in rows:
        masks = masklet(row)
        assert masks.shape == (CLIP_FRAMES, HEIGHT, WIDTH)
        assert np.flatnonzero(~masks.is_seen).tolist() == [2, 5]
        for mask, frame in zip(masks, row["frames"], strict=True):
            if frame["mask"] is None:
                assert not mask.any()
                assert frame["box_xyxy"] is None
            else:
                pixels = coco_mask.decode({"size": list(frame["mask"]["size"]), "counts": frame["mask"]["counts"]})
                assert np.array_equal(mask, pixels)
        assert [event["text_zh"] for event in row["events"]] == ["它走了", "它开门"]
        assert row["caption_en"] == "It opens the door and"


def test_hugging_face_datasets(root, tmp_path):
    tables = {}
    for table, num_rows in (("assets", 13), ("regions", 17), ("clips", 11), ("tracks", 11)):
        files = str(root / table / "*.parquet")
        by_files = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
        tables[table] = datasets.load_dataset(str(root), table, split="train", cache_dir=str(tmp_path))
        assert by_files.num_rows == tables[table].num_rows == num_rows
        assert by_files.features == tables[table].features
    assert datasets.load_dataset(str(root), split="train", cache_dir=str(tmp_path)).column_names == tables["regions"].column_names
    check_regions(list(tables["regions"]))
    check_tracks(list(tables["tracks"]))


def test_duckdb(root):
    joined = duckdb.sql(
        f"SELECT r.*, a.status, a.finished_at FROM '{root}/assets/*.parquet' a JOIN '{root}/regions/*.parquet' r USING (part_id, asset_id)"
    ).fetchdf()
    check_regions(joined.to_dict("records"))
    assert set(joined["status"]) == {"ok"}
    dropped = duckdb.sql(
        f"SELECT d.reason, sum(d.count) FROM (SELECT unnest(dropped) d FROM '{root}/assets/*.parquet') GROUP BY 1 ORDER BY 1"
    )
    assert dropped.fetchall() == [("already_followed", 10), ("box_nms", 9)]


def test_duckdb_reads_tracks(root):
    joined = duckdb.sql(f"SELECT t.*, c.uri FROM '{root}/clips/*.parquet' c JOIN '{root}/tracks/*.parquet' t USING (part_id)").fetchdf()
    check_tracks(joined.to_dict("records"))
    frames = duckdb.sql(f"SELECT frames FROM '{root}/tracks/*.parquet'").fetchall()
    assert {masklet(row[0]).shape for row in frames} == {(CLIP_FRAMES, HEIGHT, WIDTH)}
    handed_over = duckdb.sql(f"SELECT sum(len(handovers)) FROM '{root}/clips/*.parquet'")
    assert handed_over.fetchall() == [(10,)]


def test_pandas(root):
    assets, regions = pd.read_parquet(root / "assets"), pd.read_parquet(root / "regions")
    assert len(assets) == 13
    assert assets.set_index("asset_id")["num_regions"].sum() == 17
    assert assets.set_index("asset_id")["num_clips"].sum() == 9
    assert str(assets["finished_at"].dtype).endswith("UTC]")
    check_regions(regions.to_dict("records"))
    tracks = pd.read_parquet(root / "tracks")
    check_tracks(tracks.to_dict("records"))
    assert masklet(tracks.iloc[0]).shape == masklet(tracks["frames"][0]).shape == (CLIP_FRAMES, HEIGHT, WIDTH)


def test_pyarrow(root):
    tracks = pq.read_table(root / "tracks")
    check_tracks(tracks.to_pylist())
    assert masklet(tracks["frames"][0]).shape == (CLIP_FRAMES, HEIGHT, WIDTH)


def test_the_examples_of_the_card_work(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    examples = dict(re.findall(r"```(python|sql)\n(.*?)```", (root / "README.md").read_text(), re.DOTALL))
    names = {}
    exec(examples["python"], names)
    assert len(names["assets"]) == 13
    assert names["masks"].shape == (CLIP_FRAMES, HEIGHT, WIDTH)
    assert "It walks to the door." in capsys.readouterr().out
    regions, events = (query for query in examples["sql"].split(";") if query.strip())
    assert len(duckdb.sql(regions).fetchall()) == 17
    assert len(duckdb.sql(events).fetchall()) == 22
