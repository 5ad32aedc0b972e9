import json
import math
import pickle
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import failed_sample, kill, make_sample, mixed_parts, start_python, wait_for, write_dataset
from damage import rewrite
from hypothesis import given
from hypothesis import strategies as st

from datagen.assemble import region_row
from datagen.check import check_dataset
from datagen.errors import SchemaError, WriteError
from datagen.job import WriteOptions
from datagen.records import Failure
from datagen.write import done_assets, open_store, part_id_of, publish_part, stage_part, sweep, table_from_rows
from datagen.write.rows import asset_row

OPTIONS = WriteOptions()


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "out"))


def stage(store, samples, run_id="run", options=OPTIONS):
    return stage_part(store, run_id, samples, options, region_row)


def paths(store, prefix=""):
    return [path for path, _ in store.list(prefix)]


@given(st.lists(st.text(alphabet="0123456789abcdef", min_size=1), min_size=1, unique=True), st.randoms())
def test_a_parts_name_is_a_function_of_the_set_of_its_assets(ids, random):
    shuffled = random.sample(ids, len(ids))
    assert part_id_of(ids) == part_id_of(shuffled + shuffled[:1])
    assert part_id_of(ids) != part_id_of([*ids, "another"])


def test_no_assets_are_no_part():
    with pytest.raises(SchemaError):
        part_id_of([])


def test_a_staged_part_is_not_in_the_tables_and_its_record_is_small(store):
    staged = stage(store, mixed_parts()[0])
    assert paths(store) == sorted(staged.files.values())
    assert all(path.startswith("_staging/run/") for path in paths(store))
    assert len(done_assets(store)) == 0
    assert pickle.loads(pickle.dumps(staged)) == staged
    assert len(pickle.dumps(staged)) < 1500
    assert (staged.indices, staged.num_regions) == ([0, 1, 2], 2)
    assert staged.statuses == {"ok": 1, "empty": 1, "failed": 1}
    assert staged.failures == {"decode_truncated": 1}
    assert staged.dropped == {"box_nms": 3}
    assert staged.usage == {"prompt_tokens": 400, "cached_tokens": 300, "output_tokens": 40}
    assert staged.num_bytes == sum(size for _, size in store.list())


def test_publishing_moves_both_files_and_may_be_repeated(store):
    staged = stage(store, mixed_parts()[0])
    for _ in range(2):
        publish_part(store, staged)
        assert paths(store) == [f"assets/part-{staged.part_id}.parquet", f"regions/part-{staged.part_id}.parquet"]
    assert pq.read_table(f"{store.uri}/assets")["status"].to_pylist() == ["ok", "empty", "failed"]


def test_publishing_goes_on_where_it_was_interrupted(store):
    staged = stage(store, mixed_parts()[0])
    store.move(staged.files["regions"], f"regions/part-{staged.part_id}.parquet")
    publish_part(store, staged)
    assert len(done_assets(store)) == 3
    assert paths(store, "_staging") == []


def test_publishing_what_is_gone_says_so(store):
    staged = stage(store, mixed_parts()[0])
    store.delete_tree("_staging")
    with pytest.raises(WriteError, match="is gone"):
        publish_part(store, staged)
    assert paths(store) == []


def test_publishing_over_a_mark_of_other_assets_is_an_error_that_names_both(store):
    first, other = stage(store, [make_sample(0), make_sample(1)]), stage(store, [make_sample(2)])
    publish_part(store, first)
    mark = f"assets/part-{first.part_id}.parquet"
    store.move(mark, f"assets/part-{other.part_id}.parquet")
    before = {path: store.read(path) for path in paths(store)}
    with pytest.raises(WriteError) as caught:
        publish_part(store, other)
    for sample in (make_sample(0), make_sample(1), make_sample(2)):
        assert sample.asset.asset_id in caught.value.message
    assert {path: store.read(path) for path in paths(store)} == before


def test_a_mark_without_rows_is_replaced(store):
    staged = stage(store, mixed_parts()[0])
    publish_part(store, staged)
    again = stage(store, mixed_parts()[0])
    rewrite(Path(store.uri) / f"assets/part-{staged.part_id}.parquet", lambda table: table.slice(0, 0))
    publish_part(store, again)
    assert len(done_assets(store)) == 3


def test_a_mark_that_cannot_be_read_is_an_error(store):
    staged = stage(store, mixed_parts()[0])
    store.write(f"assets/part-{staged.part_id}.parquet", b"PAR1")
    with pytest.raises(WriteError, match="cannot be read"):
        publish_part(store, staged)


def test_ids_that_join_to_one_text_make_two_parts(store):
    """Ids with a line feed are refused where they are listed; a source of one's own may still give them."""
    samples = [make_sample(index) for index in range(3)]
    for sample, asset_id in zip(samples, ("a", "b", "a\nb"), strict=True):
        sample.asset.asset_id = asset_id
    for group in (samples[:2], samples[2:]):
        publish_part(store, stage(store, group))
    assert sorted(pq.read_table(f"{store.uri}/assets")["asset_id"].to_pylist()) == ["a", "a\nb", "b"]


def test_a_part_without_regions_has_no_regions_file(store):
    staged = stage(store, [failed_sample(0), make_sample(1, num_regions=0)])
    assert "regions" not in staged.files
    publish_part(store, staged)
    assert paths(store) == [f"assets/part-{staged.part_id}.parquet"]


def test_regions_of_a_failed_sample_are_not_written(store):
    sample = make_sample(0)
    sample.failure = Failure("late", "it failed after its regions were found")
    staged = stage(store, [sample, make_sample(1)])
    publish_part(store, staged)
    assert staged.num_regions == 2
    assert pq.read_table(f"{store.uri}/assets")["num_regions"].to_pylist() == [0, 2]


def test_order_of_arrival_does_not_matter(store):
    samples = [make_sample(i) for i in range(5)]
    one, other = stage(store, samples), stage(store, samples[::-1])
    assert one.part_id == other.part_id
    assert one.indices == other.indices == [0, 1, 2, 3, 4]
    assert store.read(one.files["regions"]) == store.read(other.files["regions"])


def test_an_asset_twice_in_a_part_is_refused(store):
    with pytest.raises(SchemaError, match="twice in one part"):
        stage(store, [make_sample(0), make_sample(1, name="photos/00000.jpg")])


def test_a_row_outside_the_contract_stages_nothing(store):
    def wrong_row(sample, region, run_id):
        return region_row(sample, region, run_id) | {"area_px": "many"}

    with pytest.raises(SchemaError, match="area_px"):
        stage_part(store, "run", [make_sample(0)], OPTIONS, wrong_row)
    assert paths(store) == []


def test_row_groups_compression_statistics_and_checksums(store):
    staged = stage(store, [make_sample(i, num_regions=10) for i in range(5)], options=WriteOptions(row_group_rows=20))
    metadata = pq.ParquetFile(f"{store.uri}/{staged.files['regions']}").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [20, 20, 10]
    column = metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert column.statistics.has_min_max


@given(uri=st.text(), extra=st.dictionaries(st.text(), st.one_of(st.text(), st.floats(), st.integers(), st.binary(), st.dates())))
def test_no_text_from_outside_can_break_a_row(uri, extra):
    sample = make_sample(0)
    sample.asset.uri, sample.asset.extra = uri + "\udcff", extra
    sample.fail("missing", f"cannot read {uri}\udcff")
    (row,) = table_from_rows("assets", [asset_row(sample, "p", "r", _now())]).to_pylist()
    assert row["uri"] == uri.encode("utf-8", "backslashreplace").decode() + "\\udcff"
    if extra:
        assert len(json.loads(row["extra"])) == len(extra)


def test_extra_columns_become_json():
    sample = make_sample(0)
    sample.asset.extra = {
        "day": date(2026, 1, 2),
        "score": np.float32(0.5),
        "n": np.int64(3),
        "nan": math.nan,
        "tags": np.array(["a", "ü"]),
    }
    row = asset_row(sample, "p", "r", _now())
    assert json.loads(row["extra"]) == {"day": "2026-01-02", "score": 0.5, "n": 3, "nan": None, "tags": ["a", "ü"]}


def _now():
    from datetime import UTC, datetime

    return datetime(2026, 1, 2, tzinfo=UTC)


# --- crashes ---------------------------------------------------------------------------------------------------------------------

PUBLISH_HALF = """
import sys, time
from corpora import *
from datagen.write import local
store = open_store(sys.argv[1])
move = local.LocalStore.move
def stop_at_assets(self, src, dst):
    if dst.startswith("assets/"):
        print("half", flush=True)
        time.sleep(600)
    move(self, src, dst)
local.LocalStore.move = stop_at_assets
with store.lease({}):
    publish_part(store, stage_part(store, "killed", mixed_parts()[0], WriteOptions(), region_row))
"""


def test_a_part_killed_between_its_two_files_is_swept_and_done_again(tmp_path):
    root = tmp_path / "out"
    write_dataset(root, mixed_parts()[1:])
    process = start_python(PUBLISH_HALF, root)
    wait_for(process, "half")
    kill(process)
    store, part = open_store(str(root)), part_id_of(sample.asset.asset_id for sample in mixed_parts()[0])
    assert f"regions/part-{part}.parquet" in paths(store)
    assert [v.code for v in check_dataset(str(root)).violations] == ["orphan_part"]
    assert len(done_assets(store)) == 6

    removed = sweep(store)
    assert removed[0] == f"regions/part-{part}.parquet"
    assert [path.split("/")[:2] for path in removed[1:]] == [["_staging", "killed"]]
    assert check_dataset(str(root)).ok
    write_dataset(root, mixed_parts()[:1])
    report = check_dataset(str(root), expected=[s.asset.asset_id for part in mixed_parts() for s in part])
    assert report.ok, report.violations
    assert (report.num_assets, report.num_regions, report.num_parts) == (9, 17, 3)


def test_a_late_first_attempt_cannot_mix_into_the_part_of_the_second(tmp_path):
    """Ray gives a part to a second worker while the first, thought dead, goes on and has another outcome for the same assets."""
    store = write_dataset(tmp_path, [])
    run_id = paths(store, "_datagen/runs")[0].split("/")[-1].removesuffix(".json")
    second = stage(store, [make_sample(0), failed_sample(1)], run_id)
    first = stage(store, [make_sample(0), make_sample(1)], run_id)
    assert first.part_id == second.part_id
    publish_part(store, second)
    publish_part(store, first)
    report = check_dataset(str(tmp_path))
    assert report.ok, report.violations
    assert report.statuses == {"ok": 1, "failed": 1}
    assert report.num_regions == 2


def test_sweep_removes_debris_and_nothing_else(tmp_path):
    store = write_dataset(tmp_path, mixed_parts())
    kept = paths(store)
    stage(store, [make_sample(99)], "old-run")
    staged = paths(store, "_staging")
    for debris in ("_datagen/.tmp-123", ".tmp-456", ".tmp-dir/staged/file"):
        store.write(debris, b"half")
    assert sorted(sweep(store)) == sorted([*staged, "_datagen/.tmp-123", ".tmp-456", ".tmp-dir/staged/file"])
    assert paths(store) == kept
    assert sweep(store) == []


def test_a_zombie_of_another_run_changes_no_table(tmp_path):
    store = write_dataset(tmp_path, mixed_parts())
    before = {path: store.read(path) for path in paths(store)}
    stage(store, mixed_parts()[0], "dead-run")
    assert {path: store.read(path) for path in paths(store) if not path.startswith("_staging/")} == before
    assert check_dataset(str(tmp_path)).ok
