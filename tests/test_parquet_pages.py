"""Kilobytes of Parquet that stand for gigabytes are read in little memory, or refused by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datagen.decode.members import Members
from datagen.errors import DecodeError
from datagen.job import S3Options, SourceOptions
from datagen.parquet_pages import open_parquet, row_bytes, sliced
from datagen.sources import open_source
from datagen.sources.uris import Inside

# How much more a process holds at its highest after it listed a source than before, MiB.
LISTED = """
import resource, sys
import pyarrow.parquet, pyarrow.compute, datagen.sources.manifest, datagen.sources.image_table
from datagen.job import SourceOptions
from datagen.sources import open_source
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = most()
codes = set()
try:
    for asset in open_source(SourceOptions(input=sys.argv[1], kind=sys.argv[2])):
        codes.add(asset.failure and asset.failure.code)
except Exception as error:
    codes = getattr(error, "code", repr(error))
print(most() - before, codes)
"""
MOST_MIB = 400


def listed(path: Path, kind: str) -> tuple[int, str]:
    command = [sys.executable, "-c", LISTED, str(path), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    used, _, codes = done.stdout.strip().partition(" ")
    return int(used), codes


def bomb(path: Path, columns: dict[str, pa.Array], rows: int, **options: object) -> Path:
    table = pa.table({"uri": [f"{row}.png" for row in range(rows)], "image": pa.array([{"bytes": b"x", "path": "a"}] * rows), **columns})
    pq.write_table(table, path, compression="zstd", **options)
    assert path.stat().st_size < 200_000
    return path


@pytest.mark.parametrize("kind", ["manifest", "dataset"])
def test_one_long_text_in_every_row(kind: str, tmp_path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * 2**20]))
    nested = pa.StructArray.from_arrays([texts, pa.array(range(3000))], ["text", "n"])
    used, codes = listed(bomb(tmp_path / "t.parquet", {"note": texts, "deep": nested}, 3000, store_schema=False), kind)
    assert used < MOST_MIB, used
    assert codes == "{None}"


@pytest.mark.parametrize("kind", ["manifest", "dataset"])
def test_a_list_of_one_value_a_thousand_million_times(kind: str, tmp_path: Path) -> None:
    values = pa.array([7], pa.int8()).take(pa.array([0] * 40_000_000, pa.int32()))
    lists = pa.ListArray.from_arrays(pa.array([0, 40_000_000], pa.int32()), values)
    used, codes = listed(bomb(tmp_path / "t.parquet", {"n": lists}, 1), kind)
    assert used < MOST_MIB, used
    assert "table_too_large" in codes


@pytest.mark.parametrize("kind", ["manifest", "dataset"])
def test_a_page_that_unpacks_a_thousandfold(kind: str, tmp_path: Path) -> None:
    used, codes = listed(bomb(tmp_path / "t.parquet", {"note": pa.array(["x" * 500_000_000])}, 1, use_dictionary=False), kind)
    assert used < MOST_MIB, used
    assert "table_too_large" in codes


def test_a_picture_in_such_a_page_fails_alone(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x" * 300_000_000], pa.binary())})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd")
    with pytest.raises(DecodeError) as failed, (tmp_path / "out").open("wb") as out:
        Members(S3Options(), 2**30).copy(Inside(str(tmp_path / "t.parquet"), "image[0]"), None, out)
    assert failed.value.code == "table_too_large"


def test_ordinary_tables_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [{"uri": f"{n}.png", "tags": ["a", None, str(n)], "who": {"name": "é" * n, "n": n}, "none": None} for n in range(3000)]
    schema = pa.schema(
        [("uri", "string"), ("tags", pa.list_(pa.string())), ("who", pa.struct([("name", "string"), ("n", "int64")])), ("none", "string")]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "m.parquet", row_group_size=700)
    assets = list(open_source(SourceOptions(input=str(tmp_path / "m.parquet"))))
    assert [{**asset.extra, "uri": Path(asset.uri).name} for asset in assets] == rows


def test_sizes_of_rows_are_those_of_their_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": ["x" * 10, None, "x" * 10_000_000, "y"], "b": [["z"], [], None, ["zz", "zz"]]}), tmp_path / "t.parquet")
    [batch] = open_parquet(str(tmp_path / "t.parquet")).iter_batches()
    assert row_bytes(batch) == [11, 0, 10_000_000, 5]
    assert [part.num_rows for part in sliced(batch)] == [4]
    [batch] = open_parquet(str(tmp_path / "t.parquet")).iter_batches()
    double = pa.concat_tables([pa.Table.from_batches([batch])] * 2).combine_chunks().to_batches()[0]
    assert [part.num_rows for part in sliced(double)] == [6, 2]
