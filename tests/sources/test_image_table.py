"""Hugging Face datasets as a source: Parquet files and what save_to_disk writes, here, in a bucket and on the hub."""

import hashlib
import importlib.util
import json
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import codes, picture, run, tar_bytes
from hub_server import FakeHub, serving
from s3_server import options_of

from datagen import s3
from datagen.decode.copies import LocalCopies
from datagen.errors import DecodeError, SourceError, StorageError
from datagen.job import S3Options, SourceOptions
from datagen.sources import open_source
from datagen.sources.uris import inside

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
BOX = [{"box": [1, 2, 30, 20]}]


def listed(place, s3_options=None, **options):
    return list(open_source(SourceOptions(input=str(place), **options), s3_options))


def cell(data, path=None):
    return {"bytes": data, "path": path}


def table(num_rows=10, first=0, **columns):
    columns = {name: values if isinstance(values, (pa.Array, list)) else [values] * num_rows for name, values in columns.items()}
    pictures = pa.array([cell(picture(first + n), f"{first + n}.png") for n in range(num_rows)], IMAGE)
    return pa.table({"image": pictures, "n": list(range(first, first + num_rows)), **columns})


def parquet_bytes(content, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink, **options)
    return sink.getvalue().to_pybytes()


def parquet(path, content=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parquet_bytes(table() if content is None else content, **options))
    return path


def arrow(path, content):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content)
    return path


def hugging_face(num_rows=10):
    """With a second column of heavy bytes, and prompts."""
    features = {
        "image": datasets.Image(),
        "sound": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "box": datasets.Value("string"),
        "prompts": [{"box": datasets.List(datasets.Value("float32"))}],
        "license": datasets.Value("string"),
    }
    rows = [
        {"image": cell(picture(n), f"{n}.png"), "sound": cell(b"x" * 1000, "a.wav"), "label": n % 2, "box": "of tea", "prompts": BOX}
        for n in range(num_rows)
    ]
    return datasets.Dataset.from_list([row | {"license": "CC0"} for row in rows], features=datasets.Features(features))


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_what_the_library_writes_is_read(tmp_path, kind):
    folder, made = tmp_path / "in" / "pets", hugging_face()
    folder.parent.mkdir()
    if kind == "parquet":
        folder.mkdir()
        made.to_parquet(folder / "train-0.parquet", batch_size=4)
        name = "pets/train-0.parquet"
    else:
        made.save_to_disk(folder)
        shutil.copy(folder / "data-00000-of-00001.arrow", folder / "cache-0123.arrow")
        name = "pets/data-00000-of-00001.arrow"
    options = {} if kind == "save_to_disk" else {"image_column": "image"}
    summary, rows = run(folder, tmp_path / "corpus", **options)
    assert codes(rows) == {f"{name}#image[{n}]": None for n in range(10)}
    row = rows[f"{name}#image[7]"]
    assert (row["sha256"], row["num_regions"], row["license"]) == (hashlib.sha256(picture(7)).hexdigest(), 1, "CC0")
    assert row["extra"] == {"image_path": "7.png", "label": 1, "box": "of tea", "sound": {"path": "a.wav"}}
    assert summary.skipped == ({".arrow file": 1, ".json file": 2} if kind == "save_to_disk" else {})


def test_a_dataset_of_several_splits_and_one_of_them(tmp_path):
    small = datasets.Dataset.from_list(
        [{"image": cell(picture(n), None)} for n in range(3)], features=datasets.Features(image=datasets.Image())
    )
    datasets.DatasetDict({"train": small, "test": small}).save_to_disk(tmp_path / "in")
    assert len(listed(tmp_path / "in")) == 6
    assert len(listed(tmp_path / "in" / "test")) == 3
    parquet(tmp_path / "tables" / "train-0.parquet")
    parquet(tmp_path / "tables" / "test-0.parquet")
    assert len(listed(tmp_path / "tables")) == 20
    assert {asset.uri.partition("#")[0] for asset in listed(tmp_path / "tables" / "test-*.parquet")} == {
        f"{tmp_path}/tables/test-0.parquet"
    }


def test_a_parquet_file_is_a_dataset_or_a_manifest_and_never_a_guess(tmp_path):
    name = tmp_path / "a.parquet"
    assert listed(parquet(name))[3].uri == f"{name}#image[3]"
    assert listed(parquet(name, pa.table({"uri": ["a.png"]})))[0].uri == f"{tmp_path}/a.png"
    both = parquet(name, table(uri="a.png"))
    with pytest.raises(SourceError, match=r"column `uri`.* and a column of pictures, `image`.*source.kind"):
        listed(both)
    assert listed(both, kind="dataset")[0].extra["uri"] == "a.png"
    assert listed(both, kind="manifest")[0].uri == f"{tmp_path}/a.png"
    with pytest.raises(SourceError, match=r"no column `uri`; found: url.*source.image_column"):
        listed(parquet(name, pa.table({"url": ["a.png"]})))
    with pytest.raises(SourceError, match=r"no column of pictures .* and is no manifest.*found: url \(string\)"):
        listed(name, kind="dataset")
    with pytest.raises(SourceError, match="several columns of pictures: image, mask"):
        listed(parquet(name, table(mask=pa.array([None] * 10, IMAGE))))
    assert listed(name, image_column="mask")[0].uri == f"{name}#mask[0]"
    with pytest.raises(SourceError, match="no column `n` of pictures"):
        listed(name, image_column="n")
    raw = parquet(name, pa.table({"jpg": [picture(1), picture(2)], "uri": ["x", "y"]}))
    assert [asset.uri for asset in listed(raw, image_column="jpg")] == [f"{name}#jpg[0]", f"{name}#jpg[1]"]


def test_bad_rows_and_files_cost_only_themselves(tmp_path):
    folder = tmp_path / "in"
    pictures = pa.array([cell(picture(1)), cell(None, "a.png"), None, cell(b"no picture"), cell(b""), cell(picture(2))], IMAGE)
    prompts = [None, None, None, None, None, json.dumps([{"box": [1]}])]
    parquet(folder / "a.parquet", pa.table({"image": pictures, "prompts": prompts}))
    parquet(folder / "b.parquet", pa.table({"text": ["no pictures"]}))
    whole = parquet_bytes(table(200), row_group_size=10)
    (folder / "c.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "d.parquet").write_bytes(whole[:100] + bytes(100) + whole[200:])
    parquet(folder / "e.parquet", table(1))
    _, rows = run(folder, tmp_path / "corpus")
    found = codes(rows)
    assert [found.pop(f"a.parquet#image[{n}]") for n in range(6)] == [
        *(None, "no_image", "no_image", "not_an_image", "empty_file", "manifest_bad_prompts")
    ]
    damaged = [code for name, code in found.items() if name.startswith("d.parquet") and code]
    assert damaged
    assert set(damaged) <= {"table_damaged", "not_an_image", "corrupt", "truncated"}
    others = {name: code for name, code in found.items() if not name.startswith("d.parquet")}
    assert others == {"b.parquet": "no_image_column", "c.parquet": "table_damaged", "e.parquet#image[0]": None}


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_value_that_cannot_be_read_costs_its_row_alone(tmp_path, kind):
    buffers = pa.array([b"fine", b"b\xec\x01", b"fine", b"fine"], pa.binary()).buffers()[1:]
    days = pa.array([0, 0, 10**18, 0], pa.timestamp("us"))
    content = table(4, text=pa.StringArray.from_buffers(4, *buffers), day=days)
    write = {"arrow": arrow, "parquet": parquet}[kind]
    assets = listed(write(tmp_path / f"a.{kind}", content))
    assert [asset.failure and asset.failure.code for asset in assets] == [None, "manifest_bad_row", None, None]
    assert assets[2].extra["day"] == f"{10**18} us after 1970-01-01T00:00:00"
    assert "UTF-8" in assets[1].failure.message
    assert assets[3].extra["text"] == "fine"


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_paths_without_bytes_are_read_by_the_rules_of_manifests(tmp_path, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture(7))
    paths = pa.table({"image": pa.array([cell(None, "a.png"), cell(None, "gone.png"), cell(None, "/etc/a.png")], IMAGE)})
    if kind == "parquet":
        parquet(folder / "a.parquet", paths)
    else:
        arrow(folder / "a.arrow", paths)
    _, rows = run(folder / f"a.{kind}", tmp_path / "corpus", media_root=str(folder))
    assert codes(rows) == {"a.png": None, "gone.png": "missing_file", "/etc/a.png": "refused_uri"}
    assert rows["a.png"]["sha256"] == hashlib.sha256(picture(7)).hexdigest()


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(SourceError, match="cannot be read as a table"):
        listed(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="nothing below"):
        listed(tmp_path / "empty", kind="dataset")


@pytest.mark.parametrize("rows_per_group", [3, 1000])
def test_cells_are_read_in_any_order(tmp_path, rows_per_group):
    name = parquet(tmp_path / "a.parquet", table(20), row_group_size=rows_per_group)
    copies = LocalCopies(S3Options(), 10_000, num_threads=4)
    try:
        for number in [0, 1, 5, 4, 4, 19, 2, 3]:
            with copies.copy(f"{name}#image[{number}]") as path, open(path, "rb") as file:
                assert file.read() == picture(number)
        for wrong, code in (("image[20]", "missing_file"), ("n[1]", "no_image_column"), ("image", "unsupported_uri")):
            with pytest.raises(DecodeError) as caught, copies.copy(f"{name}#{wrong}"):
                pass
            assert caught.value.code == code
        parquet(name, pa.table({"image": pa.array([cell(bytes(20_000))], IMAGE)}))
        with pytest.raises(DecodeError) as caught, LocalCopies(S3Options(), 10_000).copy(f"{name}#image[0]"):
            pass
        assert caught.value.code == "too_large"
    finally:
        copies.close()


def test_neither_listing_nor_decoding_holds_a_row_group(tmp_path):
    size, num_rows = 1 << 20, 60
    data = b"".join(hashlib.sha256(str(n).encode()).digest() for n in range(size // 32))
    big = pa.table({"image": pa.array([cell(n.to_bytes(4, "big") + data) for n in range(num_rows)], IMAGE)})
    name = parquet(tmp_path / "a.parquet", big, row_group_size=num_rows, use_content_defined_chunking=True, use_dictionary=False)
    del big
    pool = pa.default_memory_pool()
    pool.release_unused()
    before, most = pool.bytes_allocated(), 0
    copies = LocalCopies(S3Options(), 10 * size)
    try:
        for number, asset in enumerate(open_source(SourceOptions(input=str(name)))):
            with copies.copy(asset.uri) as path, open(path, "rb") as file:
                assert file.read(4) == number.to_bytes(4, "big")
            most = max(most, pool.bytes_allocated() - before)
    finally:
        copies.close()
    assert most < 20 * size, f"{most >> 20} MiB of {num_rows}"


def test_a_changed_file_is_new_when_asked(tmp_path):
    name = parquet(tmp_path / "in" / "a.parquet", table(3))
    assert run(name, tmp_path / "corpus", reprocess_changed=True)[0].diff == {"new": 3}
    parquet(name, table(4, first=50))
    assert run(name, tmp_path / "corpus 2", reprocess_changed=True)[0].diff == {"new": 4}
    assert len({asset.asset_id for asset in listed(name, reprocess_changed=True)} & {asset.asset_id for asset in listed(name)}) == 0


def test_a_dataset_in_a_bucket(options, bucket, tmp_path):
    for number in range(2):
        data = parquet_bytes(table(6, first=6 * number), row_group_size=3)
        s3.client(options).put_object(Bucket=bucket, Key=f"pets/data/train-{number}.parquet", Body=data)
    place = f"s3://{bucket}/pets"
    _, rows = run(place, tmp_path / "corpus", options)
    assert codes(rows) == {f"{place}/data/train-{number}.parquet#image[{n}]": None for number in range(2) for n in range(6)}
    assert rows[f"{place}/data/train-1.parquet#image[2]"]["sha256"] == hashlib.sha256(picture(8)).hexdigest()
    s3.client(options).put_object(Bucket=bucket, Key="disk/data-0.arrow", Body=b"x")
    with pytest.raises(SourceError, match=r"save_to_disk wrote.*Parquet"):
        listed(f"s3://{bucket}/disk", options)


@pytest.fixture
def hub(monkeypatch):
    """A hub with a dataset, with pictures beside it as readme files have, a folder of pictures, and one of tars."""
    pets = {"README.md": b"# Pets", "assets/shown.png": picture(1), "data/train-00000-of-00001.parquet": parquet_bytes(table(4))}
    photos = {"a/x.png": picture(2), "b.jpg": picture(3, kind="JPEG"), ".gitattributes": b""}
    shards = {"00.tar": tar_bytes(("0.png", picture(4)), ("0.json", {"license": "CC0"}))}
    served = FakeHub({"me/pets": pets, "me/photos": photos, "me/shards": shards})
    with serving(served) as address:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # as `make test` sets it
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "")
        yield served


def test_datasets_of_the_hub(hub, tmp_path):
    place = "hf://datasets/me"
    _, rows = run(f"{place}/pets", tmp_path / "pets")
    assert codes(rows) == {f"{place}/pets/data/train-00000-of-00001.parquet#image[{n}]": None for n in range(4)}
    assert rows[f"{place}/pets/data/train-00000-of-00001.parquet#image[3]"]["sha256"] == hashlib.sha256(picture(3)).hexdigest()
    _, rows = run(f"{place}/photos", tmp_path / "photos")
    assert codes(rows) == {f"{place}/photos/{name}": None for name in ("a/x.png", "b.jpg")}
    _, rows = run(f"{place}/shards", tmp_path / "shards")
    assert {name: row["license"] for name, row in rows.items()} == {f"{place}/shards/00.tar#0.png": "CC0"}
    assert len(listed(f"{place}/pets/data/train-*.parquet")) == 4
    assert [inside(asset.uri) for asset in listed(f"{place}/pets", kind="folder")] == [None]


def test_a_hub_that_refuses_and_a_dataset_that_is_not_there(hub):
    for place, code in (("hf://datasets/me/none", "missing_bucket"), ("hf://datasets/me/none/a.tar", "missing_bucket")):
        with pytest.raises(StorageError, match="HF_TOKEN") as caught:
            listed(place)
        assert caught.value.code == code
    with pytest.raises(SourceError, match="nothing below"):
        listed("hf://datasets/me/pets/none")
    hub.token = "another"
    with pytest.raises(StorageError, match="conditions to accept") as caught:
        listed("hf://datasets/me/pets")
    assert caught.value.code == "access_denied"


def test_a_hub_that_must_not_be_asked(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match="unset it") as caught:
        listed("hf://datasets/me/photos")
    assert caught.value.code == "offline"


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
@pytest.mark.parametrize("place", ["gs://bucket/shards/0.tar", "gs://bucket/pets/*.parquet", "gs://bucket/a.parquet"])
def test_a_package_that_is_missing_is_named_for_every_kind(place):
    with pytest.raises(StorageError, match=r"pip install gcsfs") as caught:
        listed(place, options_of("http://127.0.0.1:9"))
    assert caught.value.code == "not_installed"
