"""Every kind of damage is planted in a sound dataset, and found under its name."""

import json
import shutil
import threading
import time
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from corpora import make_sample, mixed_parts, write_dataset
from damage import change_row, part_file, rewrite, with_column
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from datagen.check import check_dataset as check_all
from datagen.errors import SourceError
from datagen.masks import rle_runs
from datagen.write import part_id_of
from datagen.write.local import LocalStore

LISTED = [sample.asset.asset_id for part in mixed_parts() for sample in part]
PART_OK = part_id_of(sample.asset.asset_id for sample in mixed_parts()[1])
PART_MIXED = part_id_of(sample.asset.asset_id for sample in mixed_parts()[0])


@pytest.fixture
def root(tmp_path):
    write_dataset(tmp_path, mixed_parts())
    return tmp_path


# What is planted is to be found by what it says, and not only because the file is another one.
check_dataset = partial(check_all, hashes=False)


def codes(root, **options):
    return dict(check_dataset(str(root), **options).by_code)


def part(root, table, part_id=PART_OK):
    return part_file(root, table, part_id)


def test_a_sound_dataset_passes(root):
    report = check_dataset(str(root), expected=LISTED)
    assert report.ok, report.violations
    assert (report.num_parts, report.num_assets, report.num_regions) == (3, 9, 17)
    assert report.statuses == {"ok": 7, "empty": 1, "failed": 1}


def test_the_report_is_json(root):
    part(root, "assets").unlink()
    report = json.loads(json.dumps(check_dataset(str(root)).to_dict()))
    assert report["ok"] is False
    assert report["by_code"] == {"orphan_part": 1, "lost_asset": 1}
    violation, _ = report["violations"]
    assert (violation["code"], violation["table"], violation["part"]) == ("orphan_part", "regions", PART_OK)


def test_violations_read_as_one_line(root):
    part(root, "assets").unlink()
    violation, lost = check_dataset(str(root)).violations
    assert "6 in all" in str(lost)
    assert str(violation).startswith(f"orphan_part: regions {PART_OK}: there is no assets part")


def test_no_dataset_is_an_error_and_not_a_pass(tmp_path):
    with pytest.raises(SourceError, match="no datagen dataset"):
        check_dataset(str(tmp_path))


def test_a_lost_assets_part_is_an_orphan_and_loses_its_assets(root):
    part(root, "assets").unlink()
    assert codes(root) == {"orphan_part": 1, "lost_asset": 1}
    assert codes(root, expected=LISTED) == {"orphan_part": 1, "lost_asset": 1 + 3}


def test_a_lost_regions_part_is_missing_from_the_counts(root):
    part(root, "regions").unlink()
    assert codes(root) == {"region_count": 3}


def test_an_unlisted_asset_is_no_violation_and_a_lost_one_is_named(root):
    report = check_dataset(str(root), expected=[*LISTED[1:], "never-seen"])
    assert [(v.code, v.id) for v in report.violations] == [("lost_asset", "never-seen")]


def test_a_part_copied_under_another_name_is_all_there_twice(root):
    for table in ("assets", "regions"):
        shutil.copy(part(root, table), part(root, table, "0" * 20))
    found = check_dataset(str(root))
    assert found.by_code == {"part_name": 1, "part_id": 3 + 9, "duplicate_asset": 3, "duplicate_region": 9}
    assert all(PART_OK in v.message and "0" * 20 in v.message for v in found.violations if v.code == "duplicate_asset")


def test_an_asset_done_again_in_another_chunk_is_there_twice(root):
    write_dataset(root, [[make_sample(3, num_regions=3), make_sample(50)]])
    report = check_dataset(str(root))
    assert report.by_code == {"duplicate_asset": 1, "duplicate_region": 3}
    assert {v.id for v in report.violations if v.code == "duplicate_asset"} == {make_sample(3).asset.asset_id}


@pytest.mark.parametrize("table", ["assets", "regions"])
@pytest.mark.parametrize("keep", [0, 3, 0.5, -1])
def test_a_truncated_part_is_unreadable(root, table, keep):
    path = part(root, table)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep == 0.5 else keep])
    assert codes(root)["unreadable_part"] == 1


@pytest.mark.parametrize("table", ["assets", "regions"])
def test_a_flipped_bit_in_any_column_is_found(root, table):
    path = part(root, table)
    original = path.read_bytes()
    metadata = pq.ParquetFile(path).metadata.row_group(0)
    for index in (0, metadata.num_columns // 2, metadata.num_columns - 2):
        column = metadata.column(index)
        data = bytearray(original)
        start = column.dictionary_page_offset or column.data_page_offset
        data[start + column.total_compressed_size - 3] ^= 0x10
        path.write_bytes(data)
        assert codes(root), f"column {column.path_in_schema}"
    path.write_bytes(original)
    assert codes(root) == {}


def test_an_unreadable_assets_part_does_not_hide_the_others(root):
    part(root, "assets").write_bytes(b"PAR1")
    part(root, "regions", PART_MIXED).unlink()
    assert codes(root) == {"unreadable_part": 1, "stray_region": 9, "region_count": 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["license"]), "license is missing"),
        (lambda t: t.append_column("colour", pa.array(["red"] * t.num_rows)), "colour is unknown"),
        (lambda t: t.set_column(6, "attempts", t["attempts"].cast("int64")), "attempts is .*int64.*, not .*int32"),
        (lambda t: t.select(t.schema.names[::-1]), "another order"),
        (lambda t: t.replace_schema_metadata({"datagen.schema": "assets.v0"}), "the file says assets.v0"),
        (lambda t: t.replace_schema_metadata(None), "no version"),
    ],
)
def test_another_schema_is_told_apart(root, change, said):
    rewrite(part(root, "assets"), change)
    report = check_dataset(str(root))
    assert report.by_code["schema"] == 1
    (violation,) = [v for v in report.violations if v.code == "schema"]
    assert pc.match_substring_regex([violation.message], said)[0].as_py(), violation.message


@pytest.mark.parametrize(
    ("table", "column", "make", "code"),
    [
        ("regions", "mask", lambda m: {"size": m["size"][::-1], "counts": m["counts"]}, "mask"),
        ("regions", "mask", lambda m: m | {"counts": m["counts"][:-1]}, "mask"),
        ("regions", "mask", lambda m: m | {"counts": ""}, "mask"),
        ("regions", "mask", lambda m: m | {"counts": "o" * 50}, "mask"),
        ("regions", "mask", lambda m: m | {"counts": "not a mask ünïcode"}, "mask"),
        ("regions", "mask", lambda m: m | {"counts": _rle(np.eye(30, 40))}, "area"),
        ("regions", "area_px", lambda n: n + 1, "area"),
        ("regions", "box_xyxy", lambda b: [b[0], b[1], b[2] - 1, b[3]], "box"),
        ("regions", "box_xyxy", lambda b: b[:3], "box"),
        ("regions", "region_id", lambda i: i[:-1] + "9", "region_id"),
        ("regions", "region_index", lambda i: i + 5, "region_id"),
        ("regions", "part_id", lambda _: "elsewhere", "part_id"),
        ("regions", "run_id", lambda _: "another", "mixed_runs"),
        ("regions", "asset_id", lambda _: "another", "stray_region"),
        ("assets", "part_id", lambda _: "elsewhere", "part_id"),
        ("assets", "run_id", lambda _: "another", "unknown_run"),
        ("assets", "asset_id", lambda _: "another", "part_name"),
        ("assets", "num_regions", lambda n: n + 1, "region_count"),
        ("assets", "num_regions", lambda n: n - 1, "region_count"),
        ("assets", "status", lambda _: "empty", "status"),
        ("assets", "status", lambda _: "fine", "status"),
        ("assets", "status", lambda _: "failed", "failed_row"),
        ("assets", "error_code", lambda _: "decode", "failed_row"),
        ("assets", "width", lambda _: None, "asset_size"),
        ("assets", "height", lambda n: n + 1, "mask"),
    ],
)
def test_a_changed_value_is_found(root, table, column, make, code):
    rewrite(part(root, table), change_row(column, make))
    assert code in codes(root)


@pytest.mark.parametrize("column", ["error_code", "error_message"])
def test_a_failed_row_needs_a_code_and_a_message(root, column):
    rewrite(part(root, "assets", PART_MIXED), lambda t: with_column(t, column, [None] * 3))
    assert codes(root) == {"failed_row": 1}


def test_a_failed_row_has_no_regions(root):
    def fail_first(table):
        table = change_row("status", lambda _: "failed")(table)
        table = change_row("error_code", lambda _: "x")(table)
        return change_row("error_message", lambda _: "x")(table)

    rewrite(part(root, "assets"), fail_first)
    assert codes(root) == {"status": 1}


@pytest.mark.parametrize("table", ["assets", "regions"])
def test_a_row_twice_in_a_part_is_found(root, table):
    rewrite(part(root, table), lambda t: pa.concat_tables([t, t.slice(0, 1)]))
    assert codes(root)[f"duplicate_{table[:-1]}"] == 1


def test_masks_are_decoded_only_when_asked_deep(root):
    rewrite(part(root, "regions"), change_row("area_px", lambda n: n + 1))
    assert codes(root, deep=False) == {}
    assert codes(root) == {"area": 1}


def test_files_that_do_not_belong_are_named(root):
    (root / "regions" / "part-copy.parquet").write_bytes(b"x")
    (root / "assets" / ".tmp-1234").write_bytes(b"x")
    (root / "_staging" / "old").mkdir(parents=True)
    (root / "_staging" / "old" / ".tmp-1234").write_bytes(b"x")
    assert codes(root) == {"unexpected_file": 1, "debris": 1}


def test_the_marker_and_the_run_record_are_needed(root):
    (root / "_datagen" / "dataset.json").unlink()
    for record in (root / "_datagen" / "runs").iterdir():
        record.unlink()
    assert codes(root) == {"marker": 1, "unknown_run": 9}


def test_many_violations_are_all_counted_and_the_first_listed(root, monkeypatch):
    monkeypatch.setattr("datagen.check.report.MAX_LISTED", 5)
    rewrite(part(root, "regions"), lambda t: with_column(t, "area_px", [1] * t.num_rows))
    report = check_dataset(str(root))
    assert report.by_code == {"area": 9}
    assert len(report.violations) == 5


# --- masks -----------------------------------------------------------------------------------------------------------------------


def _rle(mask):
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_runs_are_those_of_the_pixels(height, width, share, seed):
    mask = np.random.default_rng(seed).random((height, width)) < share
    runs = rle_runs(_rle(mask))
    pixels = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
    assert np.array_equal(pixels.reshape(width, height).T, mask)


@pytest.mark.parametrize("height", [4000, 40_000])
def test_runs_of_a_large_mask(height):
    mask = np.zeros((height, 100), dtype=np.uint8)
    mask[height // 2 :, 50:] = 1
    assert rle_runs(_rle(mask)).sum() == mask.size


@given(st.text(alphabet=st.characters(min_codepoint=1, max_codepoint=300), max_size=30))
def test_any_text_is_runs_or_an_error(text):
    try:
        runs = rle_runs(text)
    except ValueError:
        return
    assert len(runs) >= 1


def test_parts_are_read_at_once_and_reported_in_order(tmp_path, monkeypatch):
    """However long each takes to come, as from a bucket."""
    write_dataset(tmp_path, [[make_sample(index)] for index in range(40)])
    names = sorted(path.name.removeprefix("part-").removesuffix(".parquet") for path in (tmp_path / "assets").iterdir())
    for name in names[::2]:
        rewrite(part(tmp_path, "regions", name), change_row("area_px", lambda area: area + 1))
    part(tmp_path, "assets", names[21]).write_bytes(b"no Parquet")
    open_input, lock, open_now, most = LocalStore.open_input, threading.Lock(), [0], [0]

    def open_late(store, path):
        with lock:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
        time.sleep(0.05 if names.index(part_id_in(path)) % 7 == 0 else 0.002)
        with lock:
            open_now[0] -= 1
        return open_input(store, path)

    monkeypatch.setattr(LocalStore, "open_input", open_late)
    report = check_dataset(str(tmp_path))

    expected = sorted([(name, "area") for name in names[::2]] + [(names[21], "unreadable_part"), (names[21], "stray_region")])
    assert [violation.part for violation in report.violations] == sorted(violation.part for violation in report.violations)
    assert {(violation.part, violation.code) for violation in report.violations} == set(expected)
    assert (report.num_assets, report.num_regions) == (39, 80)
    assert 1 < most[0] <= 8


def part_id_in(path):
    return path.split("part-")[1].removesuffix(".parquet")
