"""Other people's readers open the tables without a plug-in."""

import duckdb
import pandas as pd
import pytest
from corpora import HEIGHT, WIDTH, fake_job, mixed_parts, write_dataset
from pycocotools import mask as coco_mask

from datagen.write import write_card


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("readers") / "corpus"
    write_card(write_dataset(root, mixed_parts()), fake_job())
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


def test_hugging_face_datasets(root, tmp_path):
    import datasets

    for table, num_rows in (("assets", 9), ("regions", 17)):
        files = str(root / table / "*.parquet")
        by_files = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
        by_card = datasets.load_dataset(str(root), table, split="train", cache_dir=str(tmp_path))
        assert by_files.num_rows == by_card.num_rows == num_rows
        assert by_files.features == by_card.features
    check_regions(list(by_card))


def test_duckdb(root):
    joined = duckdb.sql(
        f"SELECT r.*, a.status, a.finished_at FROM '{root}/assets/*.parquet' a JOIN '{root}/regions/*.parquet' r USING (part_id, asset_id)"
    ).fetchdf()
    check_regions(joined.to_dict("records"))
    assert set(joined["status"]) == {"ok"}
    dropped = duckdb.sql(f"SELECT d.reason, sum(d.count) FROM (SELECT unnest(dropped) d FROM '{root}/assets/*.parquet') GROUP BY 1")
    assert dropped.fetchall() == [("box_nms", 9)]


def test_pandas(root):
    assets, regions = pd.read_parquet(root / "assets"), pd.read_parquet(root / "regions")
    assert len(assets) == 9
    assert assets.set_index("asset_id")["num_regions"].sum() == 17
    assert str(assets["finished_at"].dtype).endswith("UTC]")
    check_regions(regions.to_dict("records"))
