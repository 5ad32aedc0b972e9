"""Keys of a bucket are used byte for byte: listed, named by a manifest, fetched and decoded."""

import io
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image
from s3_server import new_bucket, options_of

from datagen import s3
from datagen.errors import SourceError
from datagen.job import SourceOptions, parse_job
from datagen.remote import joined
from datagen.run import run_job
from datagen.sources import open_source

KEYS = [
    *("a//b.png", "//c.png", "/d.png", " e .png", "f /g.png", "h+i.png", "h i.png", "h%20i.png", "h%2Bi.png", "é.png", "e\u0301.png"),
    *("%.png", "%zz.png", "a?b.png", "a#b.png", "a&b=c.png", "tab\t.png", "~.png", "a\\b.png", "日本.png", "'\".png", "..a/b..png"),
]


@pytest.fixture
def bucket_of(s3_address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_address)
    options = options_of(s3_address)
    bucket = new_bucket(options)

    def put(key, data):
        s3.client(options).put_object(Bucket=bucket, Key=key, Body=data)

    return f"s3://{bucket}", options, put


def png(number):
    data = io.BytesIO()
    Image.new("RGB", (20 + number, 30), "red").save(data, "png")
    return data.getvalue()


def widths(bucket, options, source, output):
    fake = {"engine": "fake"}
    data = {"perceive": fake, "describe": fake, "run": {"executor": "inprocess"}, "s3": options.model_dump(), "source": source}
    summary = run_job(parse_job({**data, "output": str(output)}))
    rows = pq.read_table(f"{output}/assets").to_pylist()
    assert summary.statuses == {"ok": len(KEYS)}, [row["error_message"] for row in rows if row["error_message"]]
    return {row["uri"].removeprefix(f"{bucket}/in/"): row["width"] - 20 for row in rows}


@pytest.mark.parametrize("how", ["listed", "relative", "absolute", "media_root"])
def test_every_key_is_the_object_of_that_key(bucket_of, tmp_path, how):
    bucket, options, put = bucket_of
    for number, key in enumerate(KEYS):
        put(f"in/{key}", png(number))
    source = {"input": f"{bucket}/in"}
    if how != "listed":
        # A relative URI begins with no slash: `./` stands before a key that does.
        uris = [f"{bucket}/in/{key}" if how == "absolute" else f"./{key}" for key in KEYS]
        place = "in/list.jsonl" if how == "relative" else "other/list.jsonl"
        put(place, "".join(json.dumps({"uri": uri}) + "\n" for uri in uris).encode())
        source = {"input": f"{bucket}/{place}"} | ({"media_root": f"{bucket}/in"} if how == "media_root" else {})
    assert widths(bucket, options, source, tmp_path / "out") == {key: number for number, key in enumerate(KEYS)}


def test_a_prefix_with_an_empty_part_is_that_prefix(bucket_of):
    bucket, options, put = bucket_of
    for key in ("in/a.png", "in//b.png", "in//c/d.png"):
        put(key, b"x")
    assert [asset.uri for asset in open_source(SourceOptions(input=f"{bucket}/in//"), options)] == [
        f"{bucket}/in//b.png",
        f"{bucket}/in//c/d.png",
    ]
    put("in//list.jsonl", b'{"uri": "b.png"}\n{"uri": "../a.png"}\n')
    found = [asset.uri for asset in open_source(SourceOptions(input=f"{bucket}/in//list.jsonl"), options)]
    assert found == [f"{bucket}/in//b.png", f"{bucket}/in/a.png"]


@pytest.mark.parametrize(
    ("root", "relative", "expected"),
    [
        ("s3://b/in", "a//b", "s3://b/in/a//b"),
        ("s3://b/in", ".//b", "s3://b/in//b"),
        ("s3://b/in/", "b", "s3://b/in//b"),
        ("s3://b", "a/../b", "s3://b/b"),
        ("s3://b/in", "../x/./y", "s3://b/x/y"),
        ("s3://b/in", "a b ", "s3://b/in/a b "),
    ],
)
def test_relative_keys(root, relative, expected):
    assert joined(root, relative) == expected


@pytest.mark.parametrize("relative", ["../../x", "..", "../../b2/x", "a/../../../x"])
def test_relative_keys_that_leave_the_bucket(relative):
    with pytest.raises(SourceError):
        joined("s3://b/in", relative)
