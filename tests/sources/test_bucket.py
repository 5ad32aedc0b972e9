"""Sources in buckets: S3 as moto serves it, and another store through fsspec (its memory file system under the name of gs://)."""

import csv
import hashlib
import importlib.util
import io
import json
import sys
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3_server import FaultyProxy, new_bucket, once, options_of

from datagen import s3
from datagen.errors import SourceError, StorageError
from datagen.job import SourceOptions
from datagen.sources import open_source


class FakeGs(MemoryFileSystem):
    protocol = "gs"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")

    def ls(self, path, detail=True, **more):
        entries = super().ls(path, detail=True, **more)
        return [entry | {"name": entry["name"].strip("/"), "etag": self.etag(entry["name"])} for entry in entries]

    def info(self, path, **more):
        return super().info(path, **more) | {"etag": self.etag(self._strip_protocol(path))}

    def etag(self, name):
        return hashlib.md5(self.store[name].getvalue()).hexdigest() if name in self.store else None


@pytest.fixture(params=["s3", "gs"])
def place(request):
    """(URI of an empty folder, options, a function that puts a file there)."""
    if request.param == "gs":
        fsspec.register_implementation("gs", FakeGs, clobber=True)
        FakeGs.store.clear()
        fs = FakeGs()
        yield "gs://bucket/photos", options_of("http://127.0.0.1:9"), lambda name, data: fs.pipe_file(f"gs://bucket/{name}", data)
        sys.modules["fsspec.registry"]._registry.pop("gs")
        return
    options = options_of(request.getfixturevalue("s3_address"))
    bucket = new_bucket(options)
    yield f"s3://{bucket}/photos", options, lambda name, data: s3.client(options).put_object(Bucket=bucket, Key=name, Body=data)


def source_of(uri, options, **more):
    return open_source(SourceOptions(input=uri, **more), options)


def test_a_folder_is_listed_recursively_in_order_and_only_it(place):
    uri, options, put = place
    for name in ("photos/b.JPG", "photos/a/z.png", "photos/a b/ça+%41?#é.jpeg", "photos/film.mp4", "photos/notes.txt", "photos-2/x.png"):
        put(name, b"x")
    source = source_of(uri, options)
    listed = [asset.uri.removeprefix(uri) for asset in source]
    assert sorted(listed) == ["/a b/ça+%41?#é.jpeg", "/a/z.png", "/b.JPG"]
    assert listed == [asset.uri.removeprefix(uri) for asset in source_of(f"{uri}/", options)]
    assert source.skipped == {"video": 1, ".txt file": 1}
    assert [asset.uri for asset in source_of(uri, options, media="video")] == [f"{uri}/film.mp4"]
    assert uri in source.describe()


def test_changed_files_are_new_only_when_asked_and_a_manifest_agrees_with_the_folder(place):
    uri, options, put = place
    put("photos/a.png", b"one")
    put("photos/b.png", b"b")
    put("photos/list.jsonl", b'{"uri": "a.png"}\n{"uri": "gone.png"}\n')

    def ids(**more):
        return [asset.asset_id for asset in source_of(uri, options, **more)]

    before, versions = ids(), ids(reprocess_changed=True)
    put("photos/a.png", b"another")
    assert ids() == before
    changed = ids(reprocess_changed=True)
    assert changed[0] not in (versions[0], before[0])
    assert changed[1] == versions[1]
    listed, gone = source_of(f"{uri}/list.jsonl", options, reprocess_changed=True)
    assert listed.asset_id == changed[0]
    assert gone.failure is None, "reading it will tell"


def test_nothing_there_is_an_error_and_no_empty_run(place):
    uri, options, put = place
    put("elsewhere/a.png", b"x")
    with pytest.raises(SourceError, match="nothing below"):
        source_of(uri, options)


ROWS = [{"uri": "x/../a.png", "box": [1, 2, 3, 4]}, {"uri": "sub/b.png", "box": None}]


def written(kind):
    if kind == "jsonl":
        return "\n".join(map(json.dumps, ROWS)).encode()
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["uri", "box"])
        writer.writeheader()
        writer.writerows(ROWS)
        return text.getvalue().encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "json"])
def test_manifests_and_coco_files_name_files_beside_them(place, kind):
    uri, options, put = place
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "sub/b.png"}],
        "annotations": [{"id": 7, "image_id": 1, "bbox": [1, 2, 2, 2]}],
    }
    put(f"photos/list.{kind}", json.dumps(coco).encode() if kind == "json" else written(kind))
    first, second = source_of(f"{uri}/list.{kind}", options)
    assert [first.uri, second.uri] == [f"{uri}/a.png", f"{uri}/sub/b.png"]
    assert first.prompts[0].box == (1, 2, 3, 4)
    assert second.prompts is None


@pytest.mark.parametrize(
    ("image", "found"),
    [
        ({"file_name": "val2017/a.png"}, "val2017/a.png"),
        ({"file_name": "val2017\\a.png"}, "val2017/a.png"),
        ({"file_name": "a.png", "coco_url": "http://images.cocodataset.org/val2017/a.png"}, "val2017/a.png"),
        ({"coco_url": "http://images.cocodataset.org/val2017/a.png"}, "val2017/a.png"),
        ({"file_name": "D:\\coco\\val2017\\a.png"}, "val2017/a.png"),
        ({"file_name": "../../../../a.png"}, None),
    ],
)
def test_pictures_of_a_coco_file_are_found_beside_its_folder(place, image, found):
    uri, options, put = place
    put("photos/annotations/x.json", json.dumps({"images": [{"id": 1, **image}, {"id": 2, "file_name": "gone.png"}]}).encode())
    put("photos/val2017/a.png", b"x")
    first, gone = source_of(f"{uri}/annotations/x.json", options)
    assert (first.uri == f"{uri}/{found}") if found else (first.failure.code == "unsupported_uri")
    assert gone.uri.endswith("gone.png")


def test_a_remote_manifest_names_no_local_file_unless_allowed_and_none_outside_a_root(place):
    uri, options, put = place
    local = ["/etc/passwd", "file:///etc/passwd", "file://localhost/etc/passwd", "FILE:///etc/passwd"]
    outside = ["../other/a.png", uri.replace("photos", "other/a.png"), f"{uri}-2/a.png"]
    put("photos/list.jsonl", "\n".join(json.dumps({"uri": name}) for name in [*local, *outside, "../../../x.png"]).encode())

    def codes(**more):
        return [asset.failure and asset.failure.code for asset in source_of(f"{uri}/list.jsonl", options, **more)]

    assert codes() == [*["refused_uri"] * 4, *[None] * 3, "unsupported_uri"]
    assert codes(allow_local_uris=True)[:4] == [None] * 4
    assert codes(media_root=f"{uri}/") == [*["refused_uri"] * 7, "unsupported_uri"]


def test_a_manifest_is_read_through_a_bad_network(s3_address):
    options = options_of(s3_address)
    bucket = new_bucket(options)
    lines = "\n".join(json.dumps({"uri": f"{index}.png", "note": "x" * 500}) for index in range(2000)).encode()
    s3.client(options).put_object(Bucket=bucket, Key="list.jsonl", Body=lines)
    with FaultyProxy(s3_address, once("cut", "slow_down", "reset_after", "cut", methods="GET")) as proxy:
        names = [asset.uri for asset in source_of(f"s3://{bucket}/list.jsonl", options_of(proxy.address))]
        assert sum(proxy.done.values()) == 4
    assert names == [f"s3://{bucket}/{index}.png" for index in range(2000)]


def test_a_bucket_that_is_missing_says_so(s3_address):
    with pytest.raises(StorageError, match="bucket's name") as caught:
        source_of("s3://no-such-bucket/photos", options_of(s3_address))
    assert caught.value.code == "missing_bucket"


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_package_that_is_missing_is_named():
    with pytest.raises(StorageError, match="pip install gcsfs"):
        source_of("gs://bucket/photos", options_of("http://127.0.0.1:9"))
