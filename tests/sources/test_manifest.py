import contextlib
import csv
import datetime
import decimal
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from datagen.errors import SourceError
from datagen.ids import asset_id_of
from datagen.job import SourceOptions
from datagen.records import Asset, Prompt
from datagen.sources import Source, open_source
from datagen.sources.prompts import note_prompts
from datagen.sources.uris import Roots, path_of_uri

MASK = {"size": [4, 3], "counts": coco_mask.encode(np.asfortranarray(np.eye(4, 3, dtype=np.uint8)))["counts"].decode()}


def source_of(path: Path, **options) -> Source:
    return open_source(SourceOptions(input=str(path), **options))


def jsonl(folder: Path, *rows: object, name: str = "manifest.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(folder: Path, rows: list[dict], **options) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, **options), folder / "manifest.parquet")
    return folder / "manifest.parquet"


def csv_file(folder: Path, rows: list[dict]) -> Path:
    path = folder / "manifest.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def codes_of(assets: list[Asset]) -> list[str | None]:
    return [asset.failure and asset.failure.code for asset in assets]


PROMPTS = [
    {"box": [1, 2.5, 30, 40]},
    {"points": [[3, 4], [5, 6]], "labels": [1, 0]},
    {"mask": MASK},
    {"box": [0, 0, 9, 9], "points": [[1, 1]]},
]
PARSED = [
    Prompt(box=(1.0, 2.5, 30.0, 40.0), index=0),
    Prompt(points=[(3.0, 4.0), (5.0, 6.0)], labels=[1, 0], index=1),
    Prompt(mask=MASK, index=2),
    Prompt(box=(0.0, 0.0, 9.0, 9.0), points=[(1.0, 1.0)], labels=[1], index=3),
]
FULL_ROW = {"uri": "a.png", "asset_id": "mine", "license": "CC0", "prompts": PROMPTS, "photographer": "Zoë", "year": 1999}


def check_full_row(asset: Asset, folder: Path, year: object = 1999) -> None:
    assert asset.failure is None
    extra = {"photographer": "Zoë", "year": year}
    expected = Asset("mine", str(folder / "a.png"), prompts=PARSED, license="CC0", extra=extra)
    assert asset == note_prompts(expected)
    assert asset.num_prompts == 4
    assert len(asset.prompts_hash) == 16
    assert [prompt.type for prompt in asset.prompts] == ["box", "points", "mask", "box+points"]


def test_the_three_formats_say_the_same(tmp_path):
    text_row = {**FULL_ROW, "prompts": json.dumps(PROMPTS)}
    check_full_row(*source_of(jsonl(tmp_path, FULL_ROW)), tmp_path)
    check_full_row(*source_of(jsonl(tmp_path, text_row)), tmp_path)
    check_full_row(*source_of(csv_file(tmp_path, [text_row])), tmp_path, year="1999")
    check_full_row(*source_of(parquet(tmp_path, [text_row])), tmp_path)
    check_full_row(*source_of(parquet(tmp_path, [FULL_ROW])), tmp_path)


def test_a_parquet_text_that_is_not_utf8_costs_its_row_alone(tmp_path):
    path = tmp_path / "manifest.parquet"
    texts = pa.array([b"a.png", b"b\xec\x01.png", b"c.png"], pa.binary())
    pq.write_table(pa.table({"uri": pa.StringArray.from_buffers(3, *texts.buffers()[1:])}), path)
    assets = list(source_of(path))
    assert codes_of(assets) == [None, "manifest_bad_row", None]
    assert "UTF-8" in assets[1].failure.message


ODD_VALUES = {
    "a date long ago": (pa.array([-(10**6)], pa.date32()), "-0768-02-04"),
    "a time far away": (pa.array([10**18], pa.timestamp("us")), f"{10**18} us after 1970-01-01T00:00:00"),
    "a zone of no map": (pa.array([10**9], pa.timestamp("s", tz="Mars/Phobos")), "2001-09-09T01:46:40.000+00:00"),
    "an odd offset": (pa.array([10**9], pa.timestamp("ms", tz="+99:99")), "1970-01-12T13:46:40.000+00:00"),
    "a zone": (pa.array([10**9], pa.timestamp("ms", tz="+05:30")), "1970-01-12T19:16:40+05:30"),
    "a long time": (pa.array([2**62], pa.duration("s")), "4611686018427387904 s"),
    "a large decimal": (pa.array([decimal.Decimal("1" * 60)], pa.decimal256(70, 0)), "1" * 60),
    "half": (pa.array([1.5], pa.float16()), 1.5),
    "inside": (
        pa.array([{"a": [10**9, None]}], pa.struct({"a": pa.list_(pa.timestamp("s", tz="Mars/Phobos"))})),
        {"a": ["2001-09-09T01:46:40.000+00:00", None]},
    ),
    "a map": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())), [["a", 1]]),
    "words": (pa.array(["x"]).dictionary_encode(), "x"),
    "a large number": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    "bytes": (pa.array([b"\xff"]), "/w=="),
    "nothing": (pa.nulls(1), None),
}


@pytest.mark.parametrize("name", ODD_VALUES)
def test_a_type_that_python_does_not_have_costs_nothing(tmp_path, name):
    values, expected = ODD_VALUES[name]
    path = tmp_path / "manifest.parquet"
    rows = pa.concat_arrays([values, pa.nulls(1, values.type)])
    pq.write_table(pa.table({"uri": ["a.png", "b.png"], "x": rows}), path)
    a, b = source_of(path)
    assert (a.failure, b.failure) == (None, None)
    assert (a.extra, b.extra) == ({"x": expected}, {"x": None})


def test_times_of_nanoseconds_are_read_without_pandas(tmp_path):
    path = tmp_path / "manifest.parquet"
    columns = {"t": pa.array([1700000000123456789], pa.timestamp("ns")), "d": pa.array([123456789123], pa.duration("ns"))}
    pq.write_table(pa.table({"uri": ["a.png"], **columns}), path)
    script = f"""
import sys
class No:
    def find_spec(self, name, *more):
        if name.partition(".")[0] == "pandas":
            raise ImportError(name)
sys.meta_path.insert(0, No())
from datagen.job import SourceOptions
from datagen.sources import open_source
print([(asset.failure, asset.extra) for asset in open_source(SourceOptions(input={str(path)!r}))])
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[(None, {'t': '2023-11-14T22:13:20.123456789', 'd': '123456789123 ns'})]"


def test_a_column_whose_name_is_not_utf8_is_an_error_of_the_file(tmp_path):
    path = tmp_path / "manifest.parquet"
    pq.write_table(pa.table({"uri": ["a.png"], "strange": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"strange", b"str\xecnge"))
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        list(source_of(path))


def test_parquet_streams_all_rows_in_order(tmp_path):
    path = parquet(tmp_path, [{"uri": f"{index}.png"} for index in range(2500)])
    assert [Path(asset.uri).name for asset in source_of(path)] == [f"{index}.png" for index in range(2500)]


@pytest.mark.parametrize("empty", [None, [], "", "[]", "null"])
def test_a_row_without_prompts_asks_for_everything(tmp_path, empty):
    (asset,) = source_of(jsonl(tmp_path, {"uri": "a.png", "prompts": empty}))
    assert asset.failure is None
    assert asset.prompts is None


def test_shorthand_columns_make_one_prompt(tmp_path):
    rows = [
        {"uri": "a.png", "box": [1, 2, 3, 4]},
        {"uri": "b.png", "points": "[[1, 2]]"},
        {"uri": "c.png", "box": "[1,2,3,4]", "points": [[1, 2], [3, 4]], "labels": [1, 0]},
        {"uri": "d.png", "box": None},
    ]
    box, points, both, none = source_of(jsonl(tmp_path, *rows))
    assert box.prompts == [Prompt(box=(1.0, 2.0, 3.0, 4.0), index=0)]
    assert points.prompts == [Prompt(points=[(1.0, 2.0)], labels=[1], index=0)]
    assert both.prompts[0].type == "box+points"
    assert none.prompts is None
    assert box.extra == {}
    (from_csv, empty) = source_of(csv_file(tmp_path, [{"uri": "a.png", "box": "[1, 2, 3, 4]"}, {"uri": "b.png", "box": ""}]))
    assert from_csv.prompts == box.prompts
    assert empty.prompts is None


def test_not_a_number_passes_to_the_prompts_check(tmp_path):
    (asset,) = source_of(jsonl(tmp_path, '{"uri": "a.png", "prompts": [{"box": [NaN, 1, 2, 3]}]}'))
    assert math.isnan(asset.prompts[0].box[0])


BAD_PROMPTS = [
    ("[{", "not JSON"),
    ("everything", "not JSON"),
    ({"box": [1, 2, 3, 4]}, "list"),
    ([[1, 2, 3, 4]], "prompt 0"),
    ([{}], "asks for nothing"),
    ([{"points": []}], "asks for nothing"),
    ([{"box": [1, 2, 3]}, {"box": [1, 2]}], "none of its 2 prompts can be used (2 prompt_malformed); prompt 0"),
    ([{"box": ["1", 2, 3, 4]}], "four numbers"),
    ([{"box": [1, 2, 3, 10**400]}], "too large"),
    ([{"box": [1, 2, 3, True]}], "four numbers"),
    ([{"points": [1, 2]}], "pairs"),
    ([{"points": [[1, 2]], "labels": [1, 0]}], "1 points but 2 labels"),
    ([{"points": [[1, 2]], "labels": [2]}], "labels are 1"),
    ([{"text": "the dog"}], "unknown key text; allowed: box, points, labels, mask"),
    ([{"mask": "abc"}], "mask is not JSON"),
    ([{"mask": {"size": [4, 3]}}], "counts"),
    ([{"mask": {"size": [4], "counts": "1"}}], "height, width"),
    ([{"mask": {"size": [4, 3], "counts": [5, 5]}}], "cover 10 pixels"),
    ([{"mask": {"size": [4, 3], "counts": [-1, 13]}}], "negative"),
    ([{"mask": {"size": [4, 3], "counts": "~~~"}}], "compressed COCO string"),
    ([{"mask": {"size": [5, 3], "counts": MASK["counts"]}}], "cover 12 pixels"),
    ([{"mask": {"size": [4, 3], "counts": MASK["counts"] + "P"}}], "middle of a number"),
]


@pytest.mark.parametrize(("prompts", "said"), BAD_PROMPTS)
def test_malformed_prompts_fail_their_row_and_say_why(tmp_path, prompts, said):
    bad, good = source_of(jsonl(tmp_path, {"uri": "a.png", "prompts": prompts}, {"uri": "b.png"}))
    assert bad.failure.code == "manifest_bad_prompts"
    assert said in bad.failure.message
    assert "row 1 of" in bad.failure.message
    assert bad.uri == str(tmp_path / "a.png")
    assert good.failure is None


def test_two_ways_to_prompt_in_one_row_are_refused(tmp_path):
    (asset,) = source_of(jsonl(tmp_path, {"uri": "a.png", "prompts": [{"box": [1, 2, 3, 4]}], "box": [1, 2, 3, 4]}))
    assert asset.failure.code == "manifest_bad_prompts"


def test_mask_runs_become_the_compressed_string(tmp_path):
    mask = np.zeros((4, 3), np.uint8)
    mask[1:3, 1] = 1
    prompt = {"mask": {"size": [4, 3], "counts": [5, 2, 5]}}
    (asset,) = source_of(jsonl(tmp_path, {"uri": "a.png", "prompts": [prompt]}))
    decoded = coco_mask.decode({"size": [4, 3], "counts": asset.prompts[0].mask["counts"].encode()})
    np.testing.assert_array_equal(decoded, mask)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_every_mask_of_pycocotools_is_accepted(height, width, seed, share):
    from datagen.sources.rle import parse_rle

    mask = np.random.default_rng(seed).random((height, width)) < share
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert parse_rle(encoded) == {"size": [height, width], "counts": encoded["counts"].decode()}


def test_rows_that_cannot_be_used_are_kept_as_failures(tmp_path):
    path = jsonl(tmp_path, {"uri": "a.png"}, {"uri": None, "n": 1}, {"uri": " "}, {"uri": 5}, "{broken", "[1]", "", {"uri": "b.png"})
    assets = list(source_of(path))
    assert codes_of(assets) == [None, "manifest_no_uri", "manifest_no_uri", "manifest_no_uri", "manifest_bad_row", "manifest_bad_row", None]
    assert assets[1].uri == f"{path}#row=2"
    assert assets[1].asset_id == asset_id_of(assets[1].uri)
    assert assets[1].extra == {"n": 1}
    assert "row 5" in assets[4].failure.message
    assert len({asset.asset_id for asset in assets}) == len(assets)


def test_bytes_that_are_not_text_break_only_their_row(tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"uri": "a.png"}\n{"uri": "caf\xe9.png"}\n{"uri": "\\ud800.png"}\n{"uri": "a\\u0000.png"}\n')
    assert codes_of(list(source_of(path))) == [None, "manifest_bad_row", "unsupported_uri", "unsupported_uri"]


def test_csv_rows(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_bytes('\ufeffuri,note\r\n"a, b.png",ça\r\nx.png\r\n,empty\r\n\r\n"caf'.encode() + b'\xe9.png",ok\r\n')
    assets = list(source_of(path))
    assert codes_of(assets) == [None, "manifest_bad_row", "manifest_no_uri", None]
    assert assets[0].uri == str(tmp_path / "a, b.png")
    assert assets[0].extra == {"note": "ça"}
    assert assets[3].uri == f"file://{tmp_path}/caf%E9.png"


def test_uris_start_from_the_manifest_or_the_media_root(tmp_path):
    path = jsonl(tmp_path, {"uri": "x/../a.png"}, {"uri": "/data/b.png"}, {"uri": "file:///data/c%20d.png"})
    assert [asset.uri for asset in source_of(path)] == [str(tmp_path / "a.png"), "/data/b.png", "/data/c d.png"]
    (tmp_path / "photos").mkdir()
    assert next(iter(source_of(path, media_root=f"{tmp_path}/photos/"))).uri == f"{tmp_path}/photos/a.png"
    with pytest.raises(SourceError, match="not a folder"):
        source_of(path, media_root=f"{tmp_path}/nothing")


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.org/a.png",
        "ftp://host/a.png",
        "file://host/a.png",
        "s3://bucket/../a.png",
        "s3:///a.png",
        "s3://me:secret@bucket/a.png",
    ],
)
def test_uris_that_cannot_be_read(tmp_path, uri):
    (asset,) = source_of(jsonl(tmp_path, {"uri": uri}))
    assert asset.failure.code == "unsupported_uri"
    assert "secret" not in asset.uri + asset.failure.message
    assert asset.uri == uri.replace("me:secret", "***")


def test_a_video_row_is_marked(tmp_path):
    (asset,) = source_of(jsonl(tmp_path, {"uri": "film.MP4"}))
    assert asset.media_type == "video"


def test_extra_columns_become_strict_json(tmp_path):
    row = {
        "uri": "a.png",
        "when": datetime.datetime(2024, 5, 1, 12, 30),
        "price": decimal.Decimal("1.50"),
        "raw": b"\x00\xff",
        "score": float("nan"),
        "tags": ["x", None],
        "nested": {"day": datetime.date(2024, 5, 1)},
    }
    (asset,) = source_of(parquet(tmp_path, [row]))
    assert json.loads(json.dumps(asset.extra, allow_nan=False)) == {
        "when": "2024-05-01T12:30:00",
        "price": "1.50",
        "raw": "AP8=",
        "score": None,
        "tags": ["x", None],
        "nested": {"day": "2024-05-01"},
    }


def test_given_ids_win_and_versions_follow_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    path = jsonl(tmp_path, {"uri": "a.png", "asset_id": 7}, {"uri": "a.png"}, {"uri": "gone.png"})
    before = [asset.asset_id for asset in source_of(path, reprocess_changed=True)]
    (tmp_path / "a.png").write_bytes(b"longer")
    after = [asset.asset_id for asset in source_of(path, reprocess_changed=True)]
    assert before[0] == after[0] == "7"
    assert before[1] != after[1]
    assert before[2] == after[2] == asset_id_of(str(tmp_path / "gone.png"))


def test_a_missing_uri_column_stops_with_what_was_found(tmp_path):
    rows = [{"url": "a.png", "license": "x"}]
    for path in (jsonl(tmp_path, *rows), csv_file(tmp_path, rows), parquet(tmp_path, rows)):
        with pytest.raises(SourceError, match=r"no column `uri`; found: url, license; .*rename `url` to `uri`"):
            source_of(path)


def test_an_empty_manifest_has_no_assets(tmp_path):
    assert list(source_of(jsonl(tmp_path))) == []
    (tmp_path / "manifest.csv").write_text("")
    assert list(source_of(tmp_path / "manifest.csv")) == []
    assert list(source_of(parquet(tmp_path, [], schema=pa.schema({"uri": pa.string()})))) == []
    with pytest.raises(SourceError, match="no column `uri`"):
        source_of(parquet(tmp_path, [], schema=pa.schema({"path": pa.string()})))


def test_a_file_that_is_not_parquet(tmp_path):
    (tmp_path / "manifest.parquet").write_bytes(b"PAR0 or so")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        source_of(tmp_path / "manifest.parquet")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
rows = st.fixed_dictionaries(
    {"uri": st.just("a.png") | json_values},
    optional=dict.fromkeys(("license", "prompts", "box", "points", "labels", "mask", "frame", "time_s", "object_id", "other"), json_values),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(rows.map(json.dumps) | st.text(max_size=20).filter(lambda text: text.strip() and "\n" not in text), max_size=4))
def test_any_rows_become_as_many_assets_that_tables_can_hold(tmp_path_factory, lines):
    lines = [line.replace('"a.png"', f'"{number}.png"') for number, line in enumerate(lines)]
    path = jsonl(tmp_path_factory.mktemp("any"), {"uri": "first.png"}, *lines)
    assets = list(source_of(path))
    assert len(assets) == 1 + len([line for line in path.read_bytes().split(b"\n")[1:] if line.strip()])
    for asset in assets:
        json.dumps([asset.asset_id, asset.uri, asset.license, asset.extra, asset.failure and asset.failure.message], allow_nan=False)
        pa.array([asset.asset_id, asset.uri, asset.license, asset.failure and asset.failure.message], pa.string())


def test_with_a_media_root_no_uri_leads_out_of_it(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    uris = ["a.png", "x/../b.png", f"{root}/c.png", f"file://{root}/d.png"]
    refused = [
        "../e.png",
        "x/../../e.png",
        "/etc/passwd",
        "file:///etc/passwd",
        f"{root}-other/e.png",
        f"file://{root}/%2e%2e/e.png",
        "s3://b/e.png",
    ]
    assets = list(source_of(jsonl(tmp_path, *({"uri": uri} for uri in uris + refused)), media_root=str(root)))
    assert [Path(asset.uri).name for asset in assets if asset.failure is None] == ["a.png", "b.png", "c.png", "d.png"]
    assert codes_of(assets)[len(uris) :] == ["refused_uri"] * len(refused)
    assert "media_root" in assets[-1].failure.message


PIECES = [
    "..",
    ".",
    "a",
    "",
    "%2e%2e",
    "photos",
    "photos-other",
    "/",
    "\\",
    "~",
    "file://",
    "FILE:///",
    "s3://",
    "gs://b",
    "hf://",
    "\0",
    "é",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=7).map("/".join) | st.text(max_size=30))
def test_no_uri_whatever_it_is_leaves_its_root(uri):
    """Inside a local or a remote root, or refused; and a manifest in a bucket never reaches a local file."""
    local = _resolved(Roots("/data/photos", confined=True), uri)
    if local is not None:
        place = path_of_uri(local)
        assert place.startswith("/data/photos/")
        assert place.removesuffix("/") == os.path.normpath(place)  # a folder of frames keeps its `/`
    remote = _resolved(Roots("s3://bucket/photos", confined=True, local_allowed=False), uri)
    if remote is not None:
        assert remote.startswith("s3://bucket/photos/")
        assert not {".", ".."} & set(remote.split("/"))
    free = _resolved(Roots("s3://bucket/photos", local_allowed=False), uri)
    assert free is None or free.split("://")[0] in ("s3", "gs", "hf")


def _resolved(roots, uri):
    with contextlib.suppress(SourceError):
        return roots.resolve(uri)
    return None


def test_decimals_of_tables_are_numbers(tmp_path):
    kind = pa.list_(pa.decimal128(9, 2))
    rows = pa.table(
        {"uri": ["a.jpg"], "box": pa.array([[decimal.Decimal(n) for n in ("1.5", "2", "30", "40")]], kind), "n": [decimal.Decimal("1.50")]}
    )
    pq.write_table(rows, tmp_path / "m.parquet")
    (asset,) = source_of(tmp_path / "m.parquet")
    assert (asset.prompts[0].box, asset.extra) == ((1.5, 2, 30, 40), {"n": "1.50"})


def test_an_asset_id_is_a_text_or_a_whole_number(tmp_path):
    ids = [5, 5.0, "5", True, [1], {"a": 1}, 1.5]
    assets = list(source_of(jsonl(tmp_path, *({"uri": "a.jpg", "asset_id": one} for one in ids))))
    assert [(asset.asset_id, asset.extra) for asset in assets if asset.failure is None] == [("5", {}), ("1.5", {})]
    assert [code for code in codes_of(assets) if code] == ["manifest_bad_id"] * 3


def test_a_folder_of_tables_with_uris_says_what_a_manifest_is(tmp_path):
    folder = tmp_path / "m.parquet"
    folder.mkdir()
    parquet(folder, [{"uri": "a.jpg"}])
    with pytest.raises(SourceError, match="A manifest is one file"):
        source_of(folder)


def test_windows_paths_lead_to_the_files_that_are_there(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/a.jpg", "in\\b.jpg", "in/b.jpg"):
        (tmp_path / name).touch()
    path = jsonl(tmp_path, *({"uri": uri} for uri in ("in\\a.jpg", "in\\b.jpg", "in\\none.jpg", "..\\x\\in\\a.jpg")))
    names = ["in/a.jpg", "in\\b.jpg", "in\\none.jpg", "..\\x\\in\\a.jpg"]
    assert [asset.uri for asset in source_of(path)] == [f"{tmp_path}/{name}" for name in names]
    (tmp_path.parent / "out.jpg").touch()
    (asset,) = source_of(jsonl(tmp_path, {"uri": "..\\out.jpg"}), media_root=str(tmp_path))
    assert asset.failure.code == "refused_uri"
