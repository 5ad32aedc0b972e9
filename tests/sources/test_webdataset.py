"""Tar archives as a source: what is good in them is done, what is bad is a row, and nothing is unpacked."""

import gzip
import hashlib
import itertools
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import codes, job_of, member, picture, run, tar_bytes, tar_file
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import FaultyProxy, options_of
from video_files import numbered, write_video

from datagen import s3
from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.run import plan_job, run_job
from datagen.sources import open_source
from datagen.sources.uris import Roots, inside, inside_uri

BOX = [{"box": [1, 2, 30, 20]}]


def listed(place, s3_options=None, **options):
    return list(open_source(SourceOptions(input=str(place), **options), s3_options))


def test_members_of_a_key_are_one_row_and_read_where_they_lie(tmp_path):
    data = picture(1)
    shard = tar_file(
        tmp_path / "in" / "00000.tar",
        (member("cats", type=tarfile.DIRTYPE), None),
        ("./cats/0.png", data),
        ("./cats/0.json", {"prompts": BOX, "license": "CC0", "year": 1999, "uri": "https://example.org/0"}),
        ("./cats/0.txt", b"Eine Katze."),
        ("1.json", {"asset_id": "mine", "box": [1, 2, 3, 4]}),
        ("1.jpg", picture(2, kind="JPEG")),
        ("2.left.png", picture(3)),
        ("2.right.png", picture(4)),
        ("2.meta.json", [1, 2]),
        ("100% é.webp", picture(5, kind="WEBP")),
        ("3.cls", b"7"),
        ("film.mp4", b"x"),
    )
    summary, rows = run(shard, tmp_path / "corpus")
    assert codes(rows) == dict.fromkeys(
        [f"00000.tar#{name}" for name in ("cats/0.png", "1.jpg", "2.left.png", "2.right.png", "100%25 é.webp")], None
    )
    cat = rows["00000.tar#cats/0.png"]
    assert (cat["license"], cat["extra"]) == ("CC0", {"year": 1999, "uri": "https://example.org/0", "txt": "Eine Katze."})
    assert (cat["num_regions"], cat["size_bytes"], cat["sha256"]) == (1, len(data), hashlib.sha256(data).hexdigest())
    assert rows["00000.tar#1.jpg"]["asset_id"] == "mine"
    assert rows["00000.tar#2.left.png"]["extra"] == rows["00000.tar#2.right.png"]["extra"] == {"meta.json": [1, 2]}
    assert summary.skipped == {".cls file": 1, "video": 1}
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["00000.tar"]


def test_names_of_many_dots_have_their_own_metadata(tmp_path):
    shard = tar_file(
        tmp_path / "a.tar",
        *(entry for i in range(3) for entry in ((f"img.0{i}.png", picture()), (f"img.0{i}.json", {"box": [1, 2, 30, 20 + i], "n": i}))),
        ("img.02.txt", b"two"),
        ("img.02.meta.json", {"m": 1}),
        ("img.03.png", picture()),
        ("img.03.json", b"{"),
        ("img.04.png", picture()),
        ("img.05.png", picture()),
        ("img.05.json", [1]),
        ("img.all.json", {"shared": True}),
    )
    assets = listed(shard)
    all_json = {"all.json": {"shared": True}}
    assert [[prompt.box for prompt in asset.prompts or ()] for asset in assets] == [*([(1, 2, 30, 20 + i)] for i in range(3)), [], [], []]
    assert [asset.failure and asset.failure.code for asset in assets] == [None, None, None, "manifest_bad_row", None, None]
    assert "img.03.json" in assets[3].failure.message
    assert [asset.extra for asset in assets] == [
        *({"n": 0} | all_json, {"n": 1} | all_json, {"n": 2, "txt": "two", "meta.json": {"m": 1}} | all_json),
        *(all_json, all_json, {"json": [1]} | all_json),
    ]


def test_of_names_of_many_dots_only_the_last_is_lost_with_the_end(tmp_path):
    entries = [entry for i in range(3) for entry in ((f"img.0{i}.png", picture(i)), (f"img.0{i}.json", {"n": i}))]
    shard = tar_file(tmp_path / "a.tar", *entries)
    data = shard.read_bytes()
    shard.write_bytes(data[: data.index(b"img.02.json") + 100])
    *assets, archive = listed(shard)
    assert [asset.failure and asset.failure.code for asset in assets] == [None, None, "archive_truncated"]
    assert [asset.extra for asset in assets] == [{"n": 0}, {"n": 1}, {}]
    assert archive.failure.code == "archive_truncated"


def test_thousands_of_names_with_one_first_part(tmp_path):
    data = picture()
    shard = tar_file(tmp_path / "a.tar", *(e for i in range(2000) for e in ((f"img.{i:05d}.png", data), (f"img.{i:05d}.json", {"n": i}))))
    assert [asset.extra for asset in listed(shard)] == [{"n": i} for i in range(2000)]


def test_a_table_beside_each_tar_as_img2dataset_writes_it_is_no_dataset(tmp_path):
    tar_file(tmp_path / "in" / "00000.tar", ("0.png", picture()))
    pq.write_table(pa.table({"url": ["x"], "caption": ["y"]}), tmp_path / "in" / "00000.parquet")
    source = open_source(SourceOptions(input=str(tmp_path / "in")))
    assert [asset.uri for asset in source] == [f"{tmp_path}/in/00000.tar#0.png"]
    assert source.skipped == {".parquet file": 1}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_says_the_same(tmp_path, format):
    long = "long/" * 18 + "name.png" if format == tarfile.USTAR_FORMAT else "é" * 60 + "/" + "long/" * 50 + "name.png"
    (asset, short) = listed(tar_file(tmp_path / "a.tar", (long, picture()), ("b.png", picture(2)), format=format))
    assert asset.uri == f"{tmp_path}/a.tar#{long}"
    assert (asset.span.size, short.uri) == (len(picture()), f"{tmp_path}/a.tar#b.png")


def test_folders_and_patterns_of_shards_in_order(tmp_path):
    folder = tmp_path / "in"
    for shard, name in (("b/1.tar", "x.png"), ("0.tar", "y.png"), ("b/0.tar", "x.png")):
        tar_file(folder / shard, (name, picture()))
    (folder / "README.md").write_text("shards")
    (folder / "odd[1].tar").write_bytes((folder / "0.tar").read_bytes())
    names = ["0.tar#y.png", "b/0.tar#x.png", "b/1.tar#x.png", "odd[1].tar#y.png"]
    assert [asset.uri.removeprefix(f"{folder}/") for asset in listed(folder)] == names, "auto: there is no picture beside them"
    assert [asset.uri.removeprefix(f"{folder}/") for asset in listed(folder / "b" / "?.tar")] == names[1:3]
    assert [asset.uri.removeprefix(f"{folder}/") for asset in listed(folder / "odd[1].tar")] == names[3:], "a file of that very name"
    (folder / "a.png").write_bytes(picture())
    source = open_source(SourceOptions(input=str(folder)))
    assert [asset.uri for asset in source] == [f"{folder}/a.png"]
    assert source.skipped == {".tar file": 4, ".md file": 1}
    assert len(listed(folder, kind="webdataset")) == 4
    with pytest.raises(SourceError, match="nothing that matches"):
        listed(folder / "train-*.tar")
    with pytest.raises(SourceError, match="pattern"):
        listed(folder / "*.png")


def test_bad_members_are_rows_and_cost_only_themselves(tmp_path):
    shard = tar_file(
        tmp_path / "in" / "a.tar",
        ("good.png", picture(1)),
        ("../up.png", picture(2)),
        ("/etc/absolute.png", picture(3)),
        ("x/../../sly.png", picture(4)),
        (member("soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), None),
        (member("hard.png", type=tarfile.LNKTYPE, linkname="good.png"), None),
        (member("device.png", type=tarfile.CHRTYPE), None),
        ("good.png", picture(5)),
        ("./good.png", picture(6)),
        ("text.png", b"no picture"),
        ("empty.png", b""),
        ("last.png", picture(7)),
    )
    _, rows = run(shard, tmp_path / "corpus")
    found = {name.removeprefix("a.tar#").partition("%40")[0]: [] for name in rows}
    for name, code in codes(rows).items():
        found[name.removeprefix("a.tar#").partition("%40")[0]].append(code)
    found["good.png"].sort(key=str)  # rows have no order of their own
    bad = ["archive_bad_member"]
    assert found == {
        "good.png": [None, *bad, *bad],
        **dict.fromkeys(("../up.png", "/etc/absolute.png", "x/../../sly.png", "soft.png", "hard.png", "device.png"), bad),
        "text.png": ["not_an_image"],
        "empty.png": ["empty_file"],
        "last.png": [None],
    }
    assert rows["a.tar#good.png"]["sha256"] == hashlib.sha256(picture(1)).hexdigest(), "the first one counts"
    assert "symbolic link" in rows["a.tar#soft.png"]["error_message"]
    assert list(tmp_path.glob("**/*.png")) == []


def test_metadata_that_cannot_be_used_or_stand_elsewhere_fail_their_picture(tmp_path):
    shard = tar_file(
        tmp_path / "in" / "a.tar",
        ("broken.json", b"{"),
        ("broken.png", picture()),
        ("list.png", picture()),
        ("list.json", [1]),
        ("prompts.png", picture()),
        ("prompts.json", {"prompts": [{"box": [1, 2, 3]}]}),
        ("two.a.png", picture()),
        ("two.b.png", picture()),
        ("two.json", {"prompts": BOX, "license": "CC0"}),
        ("linked.png", picture()),
        (member("linked.json", type=tarfile.SYMTYPE, linkname="two.json"), None),
        ("apart.png", picture()),
        ("late.json", {"prompts": BOX}),
        ("apart.json", {"prompts": BOX}),
        ("late.png", picture()),
        ("alone.txt", b"no picture has this key"),
        ("same.1.png", picture()),
        ("other.png", picture()),
        ("same.2.png", picture()),
    )
    summary, rows = run(shard, tmp_path / "corpus")
    assert {name.removeprefix("a.tar#"): code for name, code in codes(rows).items()} == {
        "broken.png": "manifest_bad_row",
        "list.png": "manifest_bad_row",
        "prompts.png": "manifest_bad_prompts",
        "two.a.png": "manifest_bad_prompts",
        "two.b.png": "manifest_bad_prompts",
        "linked.png": "archive_bad_member",
        "apart.png": None,
        "apart.json": "archive_not_grouped",
        "late.png": "archive_not_grouped",
        **dict.fromkeys(["same.1.png", "other.png", "same.2.png"], None),
    }
    assert rows["a.tar#two.a.png"]["license"] == "CC0"
    assert summary.skipped == {"metadata without a picture": 2}


ENTRIES = [("0.png", picture(1)), ("1.png", picture(2)), ("2.png", picture(3))]


def broken(kind):
    """(an archive of three pictures that is not whole, how many can be read, the code)."""
    whole = tar_bytes(*ENTRIES, format=tarfile.GNU_FORMAT)
    third_at = 2 * (512 + 512)
    assert whole[third_at:].startswith(b"2.png")
    huge = member("huge.png", size=1 << 40).tobuf()
    match kind:
        case "in the data":
            return whole[: third_at + 512 + 10], 2, "archive_truncated"
        case "in a header":
            return whole[: third_at + 100], 2, "archive_truncated"
        case "padding":
            return whole[: third_at + 512 + len(picture(3))], 3, "archive_truncated"
        case "damaged":
            return whole[:third_at] + bytes(range(256)) * 2 + whole[third_at + 512 :], 2, "archive_damaged"
        case "joined":
            return whole + tar_bytes(("3.png", picture(4))), 3, "archive_damaged"
        case "huge":
            return whole[:third_at] + huge + whole[third_at:], 2, "archive_truncated"
        case "huge name":
            return (
                whole[:third_at] + member("x", type=tarfile.GNUTYPE_LONGNAME, size=1 << 40).tobuf(tarfile.GNU_FORMAT) + bytes(1024),
                2,
                "archive_damaged",
            )
        case "huge pax header":
            return (
                whole[:third_at] + member("x", type=tarfile.XHDTYPE, size=1 << 30).tobuf(tarfile.GNU_FORMAT) + bytes(1024),
                2,
                "archive_damaged",
            )
        case "negative pax size":
            record = b"13 size=-512\n"
            header = member("x", type=tarfile.XHDTYPE, size=len(record)).tobuf(tarfile.GNU_FORMAT)
            return whole[:third_at] + header + record.ljust(512, b"\0") + whole[third_at:], 2, "archive_damaged"
        case "header of nothing":
            return (
                whole[:third_at] + member("x", type=tarfile.GNUTYPE_LONGNAME, size=512).tobuf() + b"x" * 512 + bytes(1024),
                2,
                "archive_damaged",
            )
        case "nothing":
            return b"", 0, "archive_truncated"
        case "no tar":
            return b"PK\3\4" + bytes(2000), 0, "archive_damaged"
    return gzip.compress(whole), 0, "archive_compressed"


@pytest.mark.parametrize(
    "kind",
    [
        "in the data",
        "in a header",
        "padding",
        "damaged",
        "joined",
        "huge",
        "huge name",
        "huge pax header",
        "negative pax size",
        "header of nothing",
        "nothing",
        "no tar",
        "gzip",
    ],
)
def test_of_a_broken_archive_the_whole_members_are_done_and_the_rest_is_a_row(tmp_path, kind):
    data, num_good, code = broken(kind)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(data)
    tar_file(tmp_path / "in" / "b.tar", ("x.png", picture(9)))
    _, rows = run(tmp_path / "in", tmp_path / "corpus")
    good = {f"a.tar#{name}": None for name, _ in ENTRIES[:num_good]}
    assert codes(rows) == {**good, "a.tar": code, "b.tar#x.png": None}
    assert f"{tmp_path}/in/a.tar: " in rows["a.tar"]["error_message"]


def test_a_picture_whose_metadata_are_cut_off_is_not_done_without_them(tmp_path):
    pairs = [[(f"{n}.png", picture(n)), (f"{n}.json", {"prompts": BOX})] for n in range(2)]
    whole = tar_bytes(*itertools.chain(*pairs), format=tarfile.GNU_FORMAT)
    for name, data, good in (
        ("first", tar_bytes(*pairs[0], format=tarfile.GNU_FORMAT)[: 3 * 512 + 5], 0),
        ("second", whole[: 6 * 512 + 5], 1),
        ("between", whole[: 6 * 512 + 1], 1),
    ):
        (tmp_path / f"{name}.tar").write_bytes(data)
        found = [asset.failure and asset.failure.code for asset in listed(tmp_path / f"{name}.tar")]
        assert found == [*[None] * good, "archive_truncated", "archive_truncated"], name
    (tmp_path / "no end.tar").write_bytes(whole[: 8 * 512])
    source = open_source(SourceOptions(input=str(tmp_path / "no end.tar")))
    assert [asset.failure for asset in source] == [None, None]
    assert source.skipped == {"end mark of an archive that may be cut": 1}


def test_a_compressed_archive_says_what_to_do(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar.gz").write_bytes(gzip.compress(tar_bytes(*ENTRIES)))
    with pytest.raises(SourceError, match="Unpack it to a plain"):
        listed(tmp_path / "in" / "a.tar.gz")
    tar_file(tmp_path / "in" / "b.tar", ("x.png", picture()))
    assert [asset.failure and asset.failure.code for asset in listed(tmp_path / "in")] == ["archive_compressed", None]


def test_videos_in_archives(tmp_path):
    film = write_video(tmp_path / "film.mp4", map(numbered, range(8)), fps=4).read_bytes()
    shard = tar_file(tmp_path / "in" / "a.tar", ("a.png", picture()), ("a.mp4", film), ("b.mp4", film[: len(film) // 2]), ("c.mov", b"no"))
    summary, rows = run(shard, tmp_path / "corpus", media="video")
    assert rows["a.tar#a.mp4"]["status"] in ("ok", "empty")
    assert (rows["a.tar#a.mp4"]["num_frames"], rows["a.tar#a.mp4"]["size_bytes"]) == (8, len(film))
    assert rows["a.tar#c.mov"]["error_code"] == "not_a_video"
    assert summary.skipped == {"image": 1}


def test_an_archive_that_grows_or_is_replaced(tmp_path):
    shard = tar_file(tmp_path / "in" / "a.tar", *ENTRIES)
    options = {"reprocess_changed": True}
    assert run(shard, tmp_path / "corpus", **options)[0].diff == {"new": 3}
    tar_file(shard, *ENTRIES, ("3.png", picture(50)))
    assert run(shard, tmp_path / "corpus", **options)[0].diff == {"new": 1}
    tar_file(shard, ("0.png", picture(60, size=(50, 50))), *ENTRIES[1:])
    summary = run_job(job_of(shard, tmp_path / "corpus", **options))
    assert summary.diff == {"changed": 1}


def test_an_archive_replaced_between_listing_and_decoding_gives_no_wrong_picture(tmp_path, monkeypatch):
    shard = tar_file(tmp_path / "in" / "a.tar", *ENTRIES)
    before = listed(shard)
    tar_file(shard, ("0.png", picture(60, size=(90, 90))), *ENTRIES[1:])
    os.utime(shard, (1, 1))
    run_job(job_of(shard, tmp_path / "corpus"), assets=before)
    summary, rows = run(shard, tmp_path / "corpus", run={"retry_failed": 1})
    assert summary.diff == {"recovered": 3}
    assert rows["a.tar#0.png"]["width"] == 90


def test_a_manifest_names_members_and_a_finished_dataset_finds_its_own(tmp_path):
    tar_file(tmp_path / "in" / "a.tar", *ENTRIES, ("100% é.png", picture(8)))
    manifest = tmp_path / "in" / "list.jsonl"
    uris = ["a.tar#1.png", "./a.tar#100%25 é.png", "a.tar#none.png", "no.tar#1.png", "a.tar#../1.png", "../in/a.tar#2.png"]
    manifest.write_text("".join(f'{{"uri": "{uri}", "box": [1, 2, 3, 4]}}\n' for uri in uris), encoding="utf-8")
    _, rows = run(manifest, tmp_path / "corpus", media_root=str(tmp_path / "in"))
    assert codes(rows) == {
        **dict.fromkeys(["a.tar#1.png", "a.tar#100%25 é.png", "a.tar#2.png"], None),
        **dict.fromkeys(["a.tar#none.png", "no.tar#1.png"], "missing_file"),
        "a.tar#../1.png": "unsupported_uri",
    }
    assert rows["a.tar#1.png"]["sha256"] == hashlib.sha256(picture(2)).hexdigest()
    assert [asset.asset_id for asset in listed(tmp_path / "in" / "a.tar")][1] == rows["a.tar#1.png"]["asset_id"]
    uri = rows["a.tar#1.png"]["uri"]
    assert Roots(str(tmp_path / "corpus")).resolve(uri) == uri, "as `datagen distill` finds it"
    before = [asset.asset_id for asset in listed(manifest, reprocess_changed=True)]
    os.utime(tmp_path / "in" / "a.tar", (1, 1))
    after = [asset.asset_id for asset in listed(manifest, reprocess_changed=True)]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, True, True, False, False, True]


def test_a_local_name_that_looks_like_a_member_is_still_a_file(tmp_path):
    folder = tmp_path / "in"
    tar_file(folder / "x.tar#y" / "a.tar", ("m.png", picture(3)))
    (folder / "x.tar#y.png").write_bytes(picture(2))
    _, rows = run(folder, tmp_path / "corpus", kind="folder")
    assert codes(rows) == {"x.tar%23y.png": None}
    (only,) = listed(folder / "x.tar#y" / "a.tar")
    assert only.uri == f"file://{folder}/x.tar%23y/a.tar#m.png"
    _, rows = run(folder / "x.tar#y", tmp_path / "corpus 2")
    assert codes(rows) == {"x.tar%23y/a.tar#m.png": None}


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
BYTES = st.binary(min_size=1, max_size=6).map(lambda raw: raw.replace(b"\0", b"x").decode("utf-8", "surrogateescape"))


@settings(max_examples=200)
@given(NAMES, BYTES)
def test_uris_of_members_lead_back_to_them(name, odd):
    uri = inside_uri("/data/a#b/shard.tar", name + odd)
    uri.encode()
    assert inside(uri) == ("/data/a#b/shard.tar", name + odd)


def put(options, bucket, key, data):
    s3.client(options).put_object(Bucket=bucket, Key=key, Body=data)
    return f"s3://{bucket}/{key}"


def test_archives_in_a_bucket(options, bucket, tmp_path):
    entries = [entry for n in range(40) for entry in ((f"{n:03d}.png", picture(n)), (f"{n:03d}.json", {"prompts": BOX, "n": n}))]
    put(options, bucket, "shards/0.tar", tar_bytes(*entries))
    put(options, bucket, "shards/1.tar", tar_bytes(*ENTRIES, format=tarfile.GNU_FORMAT)[: 2 * 1024 + 100])
    put(options, bucket, "shards/2.tar.gz", gzip.compress(b""))
    place = f"s3://{bucket}/shards"
    _, rows = run(f"{place}/", tmp_path / "corpus", options)
    found = {name.removeprefix(f"{place}/"): code for name, code in codes(rows).items()}
    assert found == {
        **{f"0.tar#{n:03d}.png": None for n in range(40)},
        **{"1.tar#0.png": None, "1.tar#1.png": None, "1.tar": "archive_truncated", "2.tar.gz": "archive_compressed"},
    }
    assert rows[f"{place}/0.tar#007.png"]["extra"] == {"n": 7}
    assert {a.uri for a in listed(f"{place}/?.tar", options)} == {uri for uri in rows if not uri.endswith(".gz")}
    assert plan_job(job_of(f"{place}/0.tar", tmp_path / "corpus", options))["left"] == 0


def test_headers_in_a_bucket_cost_few_requests_and_survive_a_bad_network(options, bucket):
    options = options_of(options.endpoint_url, timeout_s=60.0)  # a repeated request would be counted, however slow the machine is
    small = put(options, bucket, "small.tar", tar_bytes(*((f"{n}.png", os.urandom(20_000)) for n in range(200))))
    large = put(options, bucket, "large.tar", tar_bytes(*((f"{n}.png", bytes(2 << 20)) for n in range(3))))
    with FaultyProxy(options.endpoint_url, lambda method, path: None) as proxy:
        through = options_of(proxy.address, timeout_s=60.0)
        for uri, num_members, most in ((small, 200, 8), (large, 3, 5)):
            proxy.requests.clear()
            assert len(listed(uri, through)) == num_members
            assert sum(proxy.requests.values()) <= most, proxy.requests
        faults = iter(["cut", "slow_down", "reset_before"])
        proxy.choose = lambda method, path: next(faults, None)
        assert len(listed(small, through)) == 200


def test_listing_holds_no_archive_in_memory(tmp_path):
    """Headers alone: a file with a hole of 4 GiB is listed at once."""
    path = Path(tmp_path / "a.tar")
    with path.open("wb") as file:
        file.write(member("big.mp4", size=4 << 30).tobuf(tarfile.GNU_FORMAT))
        file.seek(4 << 30, os.SEEK_CUR)
        file.write(tar_bytes(("b.mp4", b"x")))
    assert [asset.span.size for asset in listed(path, media="video")] == [4 << 30, 1]
