from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import make_sample

from datagen.assemble import region_row
from datagen.errors import SchemaError
from datagen.records import LANGUAGES, TASKS
from datagen.write import arrow_schema, table_from_rows
from datagen.write.rows import asset_row

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def good_region():
    sample = make_sample(0)
    return {**region_row(sample, sample.regions[0], "run"), "part_id": "p"}


def good_asset():
    return asset_row(make_sample(0), "p", "run", NOW)


def test_regions_have_three_columns_per_task_and_language():
    names = arrow_schema("regions").names
    for task in TASKS:
        for language in LANGUAGES:
            assert {f"{task}_{language}", f"{task}_{language}_logprob", f"{task}_{language}_finish"} <= set(names)


def test_schema_carries_its_version():
    assert arrow_schema("assets").metadata == {b"datagen.schema": b"assets.v2"}
    assert arrow_schema("regions").metadata == {b"datagen.schema": b"regions.v2"}


def test_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(SchemaError, match=r"'trakcs'.*assets, regions"):
        arrow_schema("trakcs")


@pytest.mark.parametrize(("name", "make_row"), [("assets", good_asset), ("regions", good_region)])
def test_rows_come_back_from_parquet_as_they_went_in(tmp_path, name, make_row):
    row = make_row()
    table = table_from_rows(name, [row])
    pq.write_table(table, tmp_path / "t.parquet")
    back = pq.read_table(tmp_path / "t.parquet")
    assert back.schema.equals(arrow_schema(name), check_metadata=True)
    (found,) = back.to_pylist()
    for column, value in row.items():
        assert _plain(found[column]) == _plain(value), column


def test_no_rows_give_an_empty_table_of_the_schema():
    assert table_from_rows("regions", []).schema.equals(arrow_schema("regions"))


def test_numpy_scalars_and_whole_numbers_fit():
    row = good_region() | {"area_px": np.int64(7), "predicted_iou": np.float32(0.5), "stability": 1, "region_index": np.int32(3)}
    row["box_xyxy"] = [np.float32(1), np.float64(2), 3, np.int64(4)]
    (back,) = table_from_rows("regions", [row]).to_pylist()
    assert (back["area_px"], back["predicted_iou"], back["stability"], back["region_index"]) == (7, 0.5, 1.0, 3)
    assert back["box_xyxy"] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("column", "value", "where", "expected"),
    [
        ("area_px", 3.0, "area_px", "int64"),
        ("area_px", True, "area_px", "int64"),
        ("area_px", None, "area_px", "never null"),
        ("area_px", "7", "area_px", "int64"),
        ("region_index", 2**31, "region_index", "int32"),
        ("predicted_iou", "0.9", "predicted_iou", "double"),
        ("predicted_iou", True, "predicted_iou", "double"),
        ("predicted_iou", 2**60, "predicted_iou", "double"),
        ("label_en", b"cat", "label_en", "string"),
        ("label_en", "\ud800", "label_en", "UTF-8"),
        ("flags", "truncated", "flags", "list"),
        ("flags", [None], r"flags\[0\]", "never null"),
        ("box_xyxy", [1.0, 2.0, "3", 4.0], r"box_xyxy\[2\]", "double"),
        ("mask", {"size": [3, 4]}, "mask.counts", "missing"),
        ("mask", {"size": [3, 4], "counts": "x", "order": "F"}, "mask.order", "no such column"),
        ("mask", [3, 4], "mask", "struct"),
        ("prompt", good_region()["prompt"] | {"points": [[1.0, None]]}, r"points\[0\]\[1\]", "never null"),
    ],
)
def test_a_wrong_value_is_named_and_refused(column, value, where, expected):
    row = good_region() | {column: value}
    with pytest.raises(SchemaError, match=rf"{row['region_id']}.*{where}: found .*expected .*{expected}") as caught:
        table_from_rows("regions", [good_region(), row])
    assert caught.value.asset_id == row["asset_id"]


def test_missing_and_unknown_columns_are_refused():
    row = good_asset()
    del row["sha256"]
    with pytest.raises(SchemaError, match=r"sha256.*missing"):
        table_from_rows("assets", [row])
    with pytest.raises(SchemaError, match=r"colour.*no such column"):
        table_from_rows("assets", [good_asset() | {"colour": "red"}])


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(SchemaError, match=r"finished_at.*time zone"):
        table_from_rows("assets", [good_asset() | {"finished_at": datetime(2026, 1, 2)}])


def test_schema_survives_a_pickle():
    import pickle

    assert pickle.loads(pickle.dumps(arrow_schema("regions"))).equals(arrow_schema("regions"), check_metadata=True)
    assert isinstance(arrow_schema("assets").field("finished_at").type, pa.TimestampType)


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
