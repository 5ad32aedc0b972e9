"""What every store must do, on a local folder and in a bucket."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import mixed_parts, write_dataset
from s3_server import new_bucket, options_of

from datagen.assemble import region_row
from datagen.errors import OutputBusyError, WriteError
from datagen.job import WriteOptions
from datagen.write import done_assets, open_store, publish_part, stage_part, sweep


@pytest.fixture(params=["local", "s3", "s3 root"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    options = options_of(request.getfixturevalue("s3_address"))
    bucket = new_bucket(options)
    return open_store(f"s3://{bucket}" if request.param == "s3 root" else f"s3://{bucket}/a b/corpus+ü/", options)


def test_files_come_back_and_are_listed_in_order(store):
    for path in ("b/2", "a", "b/1", "b/c/3"):
        store.write(path, path.encode())
    assert list(store.list()) == [("a", 1), ("b/1", 3), ("b/2", 3), ("b/c/3", 5)]
    assert [path for path, _ in store.list("b")] == ["b/1", "b/2", "b/c/3"]
    assert list(store.list("nowhere")) == []
    assert store.read("b/c/3") == b"b/c/3"


def test_write_replaces_and_move_replaces(store):
    store.write("a", b"old")
    store.write("a", b"new")
    store.write("staged", b"newer")
    store.move("staged", "a")
    assert store.read("a") == b"newer"
    assert [path for path, _ in store.list()] == ["a"]


def test_reading_what_is_absent_is_file_not_found(store):
    with pytest.raises(FileNotFoundError):
        store.read("nothing")
    with pytest.raises(FileNotFoundError):
        store.open_input("nothing")
    assert not store.exists("nothing")


def test_deleting_what_is_absent_is_no_error(store):
    store.delete("nothing")
    store.delete_tree("nothing")
    store.write("tree/of/files", b"x")
    store.delete_tree("tree")
    assert list(store.list()) == []


def test_moving_what_is_absent_says_so(store):
    store.write("a", b"x")
    with pytest.raises(WriteError, match=r"cannot move .*nothing"):
        store.move("nothing", "a")
    assert store.read("a") == b"x"


@pytest.mark.parametrize("path", ["/etc/passwd", "../beside", "a/../../beside"])
def test_paths_stay_inside_the_dataset(store, path):
    for act in (store.read, store.exists, store.delete, store.delete_tree, lambda p: store.write(p, b"")):
        with pytest.raises(WriteError, match="not a path inside"):
            act(path)


def test_the_dataset_itself_is_not_deleted(store):
    store.write("a", b"x")
    with pytest.raises(WriteError, match="whole dataset"):
        store.delete_tree("")
    assert store.read("a") == b"x"


def test_parquet_is_read_from_any_place_in_the_file(store):
    table = pa.table({"n": pa.array(range(200_000)), "text": pa.array([f"row {i}" for i in range(200_000)])})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=20_000, compression="none", use_dictionary=False)
    store.write("big.parquet", sink.getvalue())
    with store.open_input("big.parquet") as source:
        file = pq.ParquetFile(source)
        assert file.read_row_group(3).equals(table.slice(60_000, 20_000))
        assert file.read(["n"])["n"].to_pylist() == list(range(200_000))


def test_an_empty_file_is_a_file(store):
    store.write("empty", b"")
    assert store.exists("empty")
    assert store.read("empty") == b""
    with store.open_input("empty") as source:
        assert source.read() == b""


def test_a_name_that_begins_another_is_not_it(store):
    store.write("parts/part-10", b"x")
    assert not store.exists("parts/part-1")
    assert not store.exists("parts")
    assert list(store.list("par")) == []
    store.delete_tree("parts/part-1")
    assert store.exists("parts/part-10")


def test_the_store_travels_to_workers(store):
    store.write("a", b"x")
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert pickle.loads(data).read("a") == b"x"


def test_leases_exclude_each_other_and_are_given_back(store):
    with store.lease({"run_id": "one"}):
        with pytest.raises(OutputBusyError, match=r"pid \d+, host .*started .*run_id one"):
            pickle.loads(pickle.dumps(store)).lease({}).__enter__()
        store.write("assets/x", b"1")
    with pytest.raises(RuntimeError), store.lease({}):
        raise RuntimeError
    with store.lease({"run_id": "two"}):
        pass


def test_a_place_with_something_else_is_refused(store):
    for name in ("thesis.docx", "b", "c", "d", "e"):
        store.write(name, b"mine")
    with pytest.raises(WriteError, match=r"no datagen dataset \(b, c, d and 2 more.*new or empty folder"):
        store.lease({}).__enter__()
    assert list(store.list("_datagen")) == []


def test_parts_are_staged_published_swept_and_checked(store, monkeypatch):
    write_dataset(store, mixed_parts()[1:])
    first = mixed_parts()[0]
    with store.lease({}):
        staged = stage_part(store, "killed", first, WriteOptions(), region_row)
        store.move(staged.files["regions"], f"regions/part-{staged.part_id}.parquet")  # and killed before the assets
        assert len(done_assets(store)) == 6
        swept = sweep(store)
        assert sorted(swept) == sorted([f"regions/part-{staged.part_id}.parquet", staged.files["assets"]])
        assert list(store.list("_staging")) == []
        for _ in range(2):
            publish_part(store, stage_part(store, staged.run_id, first, WriteOptions(), region_row))
    assert len(done_assets(store)) == 9
