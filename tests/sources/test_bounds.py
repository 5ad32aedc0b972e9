"""Rows that are too deep, too long or of too much cost themselves, in every source; the others are listed."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import new_bucket, options_of

from datagen import s3
from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.sources import manifest, open_source


def deep(levels):
    return "[" * levels + "]" * levels


ROWS = {
    "700 levels": '{"uri":"b.png","meta":' + deep(700) + "}",
    "65 levels": '{"uri":"b.png","meta":' + deep(65) + "}",
    "100000 levels": '{"uri":"b.png","meta":' + deep(100_000) + "}",
    "objects": '{"uri":"b.png","meta":' + '{"a":' * 700 + "1" + "}" * 700 + "}",
    "license": '{"uri":"b.png","license":' + deep(900) + "}",
    "uri": '{"uri":' + deep(900) + "}",
    "asset_id": '{"uri":"b.png","asset_id":' + deep(900) + "}",
    "prompts": '{"uri":"b.png","prompts":' + deep(900) + "}",
    "prompts as text": json.dumps({"uri": "b.png", "prompts": deep(900)}),
    "box": '{"uri":"b.png","box":' + deep(900) + "}",
    "run of 2**32": '{"uri":"b.png","prompts":[{"mask":{"size":[65536,65536],"counts":[4294967296]}}]}',
    "run of 2**64": '{"uri":"b.png","prompts":[{"mask":{"size":[4,4],"counts":[18446744073709551616]}}]}',
    "side of 2**64": '{"uri":"b.png","prompts":[{"mask":{"size":[18446744073709551616,4],"counts":[4]}}]}',
    "box of 5000 digits": '{"uri":"b.png","box":[1,2,3,1' + "0" * 5000 + "]}",
    "box of 4000 digits": '{"uri":"b.png","box":[1,2,3,1' + "0" * 4000 + "]}",
    "box as text": json.dumps({"uri": "b.png", "box": "[1,2,3,1" + "0" * 4000 + "]"}),
    "frame": '{"uri":"b.mp4","box":[1,2,30,40],"frame":1' + "0" * 4000 + "}",
    "object": '{"uri":"b.mp4","prompts":[{"box":[1,2,30,40],"object_id":-1' + "0" * 4000 + "}]}",
    "counts": '{"uri":"b.png","mask":{"size":[4,3],"counts":[1' + "0" * 4000 + "]}}",
    "points": json.dumps({"uri": "b.png", "prompts": [{"points": [[1, 1]] * 200_000}]}),
    "prompts of 200000": '{"uri":"b.png","prompts":[' + ",".join(['{"box":[1,2,3,4]}'] * 200_000) + "]}",
    "a key twice": '{"uri":"b.png","box":[1,2,30,40],"box":[1,2,3,4]}',
    "a key twice below": '{"uri":"b.png","prompts":[{"box":[1,2,30,40],"box":[1,2,3,4]}]}',
}
CODES = ("row_too_large", "manifest_bad_row", "manifest_bad_prompts", "manifest_no_uri")
TOO_LARGE = ("700 levels", "65 levels", "100000 levels", "objects", "license", "uri", "asset_id", "prompts", "box", "prompts of 200000")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_is_too_much_costs_itself(tmp_path, name):
    (tmp_path / "m.jsonl").write_text('{"uri":"a.png"}\n' + ROWS[name] + '\n{"uri":"c.png"}\n')
    a, b, c = open_source(SourceOptions(input=f"{tmp_path}/m.jsonl"))
    assert (a.failure, c.failure) == (None, None)
    assert b.failure.code in CODES
    assert (b.failure.code == "row_too_large") == (name in TOO_LARGE)
    assert len(b.failure.message) < 1000


def test_what_just_fits_is_read(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"uri":"b.png","meta":' + deep(64) + ',"n":1' + "0" * 4000 + "}\n")
    (asset,) = open_source(SourceOptions(input=f"{tmp_path}/m.jsonl"))
    assert asset.failure is None
    json.dumps(asset.extra)
    points = [[n, n] for n in range(1024)]
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": "b.png", "prompts": [{"points": points}]}))
    (asset,) = open_source(SourceOptions(input=f"{tmp_path}/m.jsonl"))
    assert len(asset.prompts[0].points) == 1024


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_long_line_is_not_kept_in_memory(tmp_path, monkeypatch, request, place):
    monkeypatch.setattr(manifest, "MAX_ROW_BYTES", 10_000)
    data = b'{"uri":"a.png"}\n{"uri":"b.png","x":"' + b"x" * 100_000 + b'"}\n{"uri":"c.png"}\n'
    uri, options = f"{tmp_path}/m.jsonl", None
    if place == "s3":
        options = options_of(request.getfixturevalue("s3_address"))
        bucket = new_bucket(options)
        uri = f"s3://{bucket}/m.jsonl"
        s3.client(options).put_object(Bucket=bucket, Key="m.jsonl", Body=data)
    else:
        (tmp_path / "m.jsonl").write_bytes(data)
    a, b, c = open_source(SourceOptions(input=uri), options)
    assert (a.failure, b.failure.code, c.failure) == (None, "row_too_large", None)


def tar_of(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_metadata_of_a_tar_that_are_too_much(tmp_path, name):
    tar = tar_of(tmp_path / "t.tar", [("a.png", b"x"), ("b.png", b"x"), ("b.json", ROWS[name].encode()), ("c.png", b"x")])
    a, b, c = open_source(SourceOptions(input=str(tar)))
    assert (a.failure, c.failure) == (None, None)
    if name not in ("frame", "object", "prompts as text"):  # of videos, and what passes through
        assert b.failure.code in CODES
        assert (b.failure.code == "row_too_large") == (name in TOO_LARGE)


@pytest.mark.parametrize("name", ["meta.json", "txt"])
def test_other_metadata_of_a_tar(tmp_path, name):
    tar = tar_of(tmp_path / "t.tar", [("a.png", b"x"), (f"a.{name}", deep(700).encode()), ("c.png", b"x")])
    a, c = open_source(SourceOptions(input=str(tar)))
    assert c.failure is None
    assert (a.failure and a.failure.code) == (None if name == "txt" else "row_too_large")


def nested(levels, value):
    kind = pa.int64()
    for _ in range(levels):
        kind, value = pa.struct({"a": kind}), {"a": value}
    return pa.array([None, value, None], kind)


@pytest.mark.parametrize("levels", [10, 80])
def test_nested_columns_of_parquet(tmp_path, levels):
    pq.write_table(pa.table({"uri": ["a.png", "b.png", "c.png"], "deep": nested(levels, 1)}), tmp_path / "m.parquet")
    a, b, c = open_source(SourceOptions(input=f"{tmp_path}/m.parquet"))
    assert (a.failure, c.failure) == (None, None)
    assert (b.failure and b.failure.code) == (None if levels < 64 else "row_too_large")


@pytest.mark.parametrize("levels", [10, 80])
def test_nested_columns_of_a_dataset(tmp_path, levels):
    pictures = pa.array([{"bytes": b"x", "path": None}] * 3, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": pictures, "deep": nested(levels, 1)}), tmp_path / "m.parquet")
    a, b, c = open_source(SourceOptions(input=f"{tmp_path}/m.parquet"))
    assert (a.failure, c.failure) == (None, None)
    assert (b.failure and b.failure.code) == (None if levels < 64 else "row_too_large")


@pytest.mark.parametrize("column", ["uri", "image"])
def test_a_table_that_arrow_finds_too_deep_is_an_error(tmp_path, column):
    pictures = pa.array([{"bytes": b"x", "path": None}] * 3, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    first = pictures if column == "image" else ["a.png", "b.png", "c.png"]
    pq.write_table(pa.table({column: first, "deep": nested(300, 1)}), tmp_path / "m.parquet")
    with pytest.raises(SourceError, match="too deeply nested"):
        list(open_source(SourceOptions(input=f"{tmp_path}/m.parquet")))
