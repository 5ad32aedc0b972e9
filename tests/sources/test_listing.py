"""What listings leave out, and say so: outputs of datagen in the input, masks beside pictures, files of other kinds; also in a bucket."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from s3_server import new_bucket, options_of

from datagen import s3
from datagen.errors import SourceError
from datagen.job import S3Options, SourceOptions, parse_job
from datagen.run import plan_job, run_job
from datagen.sources import listing, open_source


def png(color="red"):
    data = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(data, "png")
    return data.getvalue()


def tar_of(*members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def parquet_of(number):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([{"bytes": png(), "path": None}] * number, kind)}), sink)
    return sink.getvalue()


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path, monkeypatch):
    """(place, options, a function that puts a file there)."""
    if request.param == "local":

        def put(name, data):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(data)

        return f"{tmp_path}/in", S3Options(), put
    address = request.getfixturevalue("s3_address")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    options = options_of(address)
    bucket = new_bucket(options)
    client = s3.client(options)
    return f"s3://{bucket}/in", options, lambda name, data: client.put_object(Bucket=bucket, Key=f"in/{name}", Body=data)


def listed(place, **options):
    uri, s3_options, _ = place
    source = open_source(SourceOptions(input=uri, **options), s3_options)
    return [asset.uri.removeprefix(f"{uri}/") for asset in source], dict(source.skipped)


INPUTS = {
    "folder": lambda put: [put(f"a/{n}.png", png()) for n in range(3)],
    "tars": lambda put: [put("a.tar", tar_of(("0.png", png()), ("1.png", png()))), put("z.tar", tar_of(("2.png", png())))],
    "tables": lambda put: put("train-0.parquet", parquet_of(3)),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("output", ["corpus", "Zcorpus", ""])
def test_an_output_inside_its_input_is_no_input(place, kind, output):
    uri, s3_options, put = place
    INPUTS[kind](put)
    fake = {"engine": "fake"}
    data = {"perceive": fake, "describe": fake, "run": {"executor": "inprocess"}, "s3": s3_options.model_dump()}
    job = parse_job({**data, "source": {"input": uri}, "output": f"{uri}/{output}".rstrip("/") if output else f"{uri}/all/of/it"})
    first = run_job(job)
    assert first.statuses == {"ok": 3}
    for _ in range(2):
        again = run_job(job)
        assert (again.listed, again.statuses, again.todo) == (3, {}, 0)
        assert again.skipped["datagen dataset"] == 1
    planned = plan_job(job)
    assert (planned["listed"], planned["left"], planned["skipped"]["datagen dataset"]) == (3, 0, 1)


def test_pictures_in_the_folder_of_a_dataset_are_listed(place):
    _, _, put = place
    for name in ("_datagen/dataset.json", "_datagen/runs/1.json", "_staging/1/a.png", "assets/part-1.parquet", "regions/part-1.parquet"):
        put(f"mine/{name}", b"{}")
    for name in ("mine/a.png", "mine/assets/b.png", "mine/more/regions/c.png", "_datagen/d.png", "x/_datagenes/e.png"):
        put(name, png())
    names, skipped = listed(place)
    assert sorted(names) == ["_datagen/d.png", "mine/a.png", "mine/assets/b.png", "mine/more/regions/c.png", "x/_datagenes/e.png"]
    assert skipped == {"datagen dataset": 1}


def test_a_folder_of_datasets_only_is_an_error_that_says_so(place):
    _, _, put = place
    for name in "ab":
        put(f"{name}/_datagen/dataset.json", b"{}")
        put(f"{name}/assets/part-1.parquet", b"x")
    with pytest.raises(SourceError, match=r"found: 2 datagen dataset\. datasets that datagen wrote are no input"):
        listed(place)


def test_masks_beside_their_pictures_are_counted_and_not_listed(place):
    _, _, put = place
    files = ["a.jpg", "a.mask.png", "b.png", "b.mask.png", "b.depth.tiff", "c.mask.png", "d.e.jpg", "d.e.seg.png", "d.left.jpg", "mask.png"]
    for name in (*files, "sub/a.mask.png", "a.MASK.PNG", "a.notes.txt"):
        put(name, png())
    names, skipped = listed(place)
    assert sorted(names) == ["a.jpg", "b.png", "c.mask.png", "d.e.jpg", "d.left.jpg", "mask.png", "sub/a.mask.png"]
    beside = {"*.mask.png beside its picture": 3, "*.depth.tiff beside its picture": 1, "*.seg.png beside its picture": 1}
    assert skipped == {**beside, ".txt file": 1}


def test_what_is_skipped_is_counted_by_extension(place, monkeypatch):
    _, _, put = place
    monkeypatch.setattr(listing, "_reads_heif", lambda: False)
    names = [
        "ok.jpg",
        "a.avif",
        "b.jfif",
        "c.jpe",
        "d.jp2",
        "e",
        "f.HEIC",
        "g.heic",
        "h.xyz",
        "i.mp4",
        "j.tar.gz",
        ".hidden",
        "._ok.jpg",
        "sub/._b.mp4",
    ]
    for name in names:
        put(name, b"x")
    found, skipped = listed(place)
    assert sorted(found) == ["a.avif", "b.jfif", "c.jpe", "d.jp2", "ok.jpg"]
    assert skipped == {"file without an extension": 2, ".heic file": 2, ".xyz file": 1, "video": 1, ".gz file": 1, "._* file of macOS": 2}
    monkeypatch.setattr(listing, "_reads_heif", lambda: True)
    found, skipped = listed(place)
    assert ".heic file" not in skipped
    assert len(found) == 7


def test_of_very_many_kinds_the_rest_is_counted_together(place):
    _, _, put = place
    put("a.png", png())
    for number in range(40):
        put(f"x.{number}", b"x")
    put("x." + "y" * 40, b"x")
    _, skipped = listed(place)
    assert len(skipped) <= 32
    assert sum(skipped.values()) == 41


def test_nothing_usable_is_an_error_that_says_what_was_found(place, monkeypatch):
    _, _, put = place
    monkeypatch.setattr(listing, "_reads_heif", lambda: False)
    for number in range(4):
        put(f"IMG_{number}.HEIC", b"x")
    with pytest.raises(SourceError, match=r"no images .*found: 4 \.heic file\. HEIC is read once pillow-heif is installed"):
        listed(place)
    put("a.mp4", b"x")
    with pytest.raises(SourceError, match=r"1 video\. source\.media: video lists these"):
        listed(place)


def test_the_other_kind_is_named(place):
    _, _, put = place
    put("a.jpg", b"x")
    with pytest.raises(SourceError, match=r"there are no videos .*found: 1 image\. source\.media: image lists these"):
        listed(place, media="video", kind="folder")


def test_tars_without_a_picture_are_an_error(place):
    _, _, put = place
    put("a.tar", tar_of(("notes.txt", b"x"), ("a.cls", b"1")))
    with pytest.raises(SourceError, match=r"there are no images in .*1 \.cls file"):
        listed(place)


def test_members_beside_a_picture(place):
    _, _, put = place
    row = json.dumps({"prompts": [{"box": [1, 2, 30, 40]}], "license": "CC0"}).encode()
    members = ("0.jpg", b"x"), ("0.mask.png", b"x"), ("0.json", row), ("1.json", row), ("1.mask.png", b"x"), ("1.png", b"x")
    put(
        "a.tar",
        tar_of(
            *members,
            ("._0.jpg", b"x"),
            ("._0.json", b"x"),
            ("2.left.jpg", b"x"),
            ("2.right.jpg", b"x"),
            ("3.crop.png", b"x"),
            ("3.json", row),
            ("3.png", b"x"),
        ),
    )
    uri, s3_options, _ = place
    source = open_source(SourceOptions(input=f"{uri}/a.tar"), s3_options)
    found = {asset.uri.rpartition("#")[2]: asset for asset in source}
    assert list(found) == ["0.jpg", "1.png", "2.left.jpg", "2.right.jpg", "3.crop.png", "3.png"]
    assert not [asset for asset in found.values() if asset.failure]
    assert [found[name].num_prompts for name in ("0.jpg", "1.png", "3.crop.png", "3.png")] == [1, 1, None, 1]
    assert source.skipped["*.mask.png beside its picture"] == 2
    assert source.skipped["._* file of macOS"] == 2


SA1B = {
    "image": {"image_id": 1, "width": 64, "height": 48, "file_name": "sa_1.jpg"},
    "annotations": [{"id": 5, "bbox": [1, 2, 30, 40], "segmentation": {"size": [48, 64], "counts": "abc"}, "point_coords": [[3, 4]]}],
}
PASSED = {
    "SA-1B": (SA1B, "column `annotations`, passed through and not read as a prompt"),
    "a text": ({"prompts": "a dog on a beach"}, "column `prompts`, passed through and not read as a prompt"),
    "texts": ({"prompts": ["a dog", "a cat"]}, "column `prompts`, passed through and not read as a prompt"),
    "a chat": ({"prompts": [{"role": "user", "content": "hi"}]}, "column `prompts`, passed through and not read as a prompt"),
    "names of classes": ({"labels": ["dog", "cat"]}, None),
    "numbers of classes": ({"labels": [3, 4]}, None),
    "a score": ({"points": 42}, "column `points`, passed through and not read as a prompt"),
    "a path": ({"mask": "masks/0.png"}, "column `mask`, passed through and not read as a prompt"),
    "bbox": ({"bbox": [1, 2, 30, 40]}, "column `bbox`, passed through and not read as a prompt"),
}


@pytest.mark.parametrize("name", PASSED)
def test_metadata_of_other_tools_never_cost_the_picture(place, name):
    row, said = PASSED[name]
    _, _, put = place
    put("a.tar", tar_of(("0.jpg", b"x"), ("0.json", json.dumps(row).encode()), ("1.left.jpg", b"x"), ("1.right.jpg", b"x")))
    uri, s3_options, _ = place
    source = open_source(SourceOptions(input=f"{uri}/a.tar"), s3_options)
    asset, *_ = source
    assert (asset.failure, asset.prompts, asset.extra) == (None, None, row)
    assert dict(source.skipped) == ({said: 1} if said else {})


@pytest.mark.parametrize("name", PASSED)
def test_columns_of_other_tools_never_cost_the_picture(place, name):
    row, said = PASSED[name]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if name == "SA-1B":
        row = {"annotations": row["annotations"]}
    sink = io.BytesIO()
    columns = {column: pa.array([value]) for column, value in row.items()}
    pq.write_table(pa.table({"image": pa.array([{"bytes": png(), "path": None}], kind), **columns}), sink)
    _, _, put = place
    put("train.parquet", sink.getvalue())
    uri, s3_options, _ = place
    source = open_source(SourceOptions(input=f"{uri}/train.parquet"), s3_options)
    (asset,) = source
    assert (asset.failure, asset.prompts) == (None, None)
    assert asset.extra.keys() == row.keys()
    quiet = name in ("a score", "a path")  # of another form than a prompt, in a dataset ordinary columns
    assert dict(source.skipped) == ({said: 1} if said and not quiet else {})


def test_prompts_of_a_dataset_are_prompts(place):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    sink = io.BytesIO()
    prompts = pa.array([[{"box": [1.0, 2.0, 30.0, 40.0]}, {"box": [1.0, 2.0]}], None, []])
    pictures = pa.array([{"bytes": png(), "path": None}] * 3, kind)
    pq.write_table(pa.table({"image": pictures, "prompts": prompts, "more": ["x"] * 3}), sink)
    _, _, put = place
    put("train.parquet", sink.getvalue())
    uri, s3_options, _ = place
    first, *others = open_source(SourceOptions(input=f"{uri}/train.parquet"), s3_options)
    assert (len(first.prompts), first.dropped, first.num_prompts) == (1, {"prompt_malformed": 1}, 2)
    assert [asset.prompts for asset in others] == [None, None]


def test_two_members_that_say_something_else_of_one_column(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(("0.jpg", b"x"), ("0.json", b'{"txt": "a"}'), ("0.txt", b"b"), ("1.jpg", b"x")))
    first, second = open_source(SourceOptions(input=f"{tmp_path}/a.tar"))
    assert (first.failure.code, second.failure) == ("manifest_bad_row", None)
    assert "`txt`" in first.failure.message
