import os
import pickle
import subprocess
import time

import pytest
from corpora import kill, start_python, wait_for

from datagen.errors import OutputBusyError, WriteError
from datagen.write import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "out"))


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


@pytest.mark.parametrize("uri", ["s3://bucket/x", "gs://bucket", "file://elsewhere/x"])
def test_unknown_schemes_are_refused_with_what_is_allowed(uri):
    with pytest.raises(WriteError, match=r"found .*Allowed: .*file:///"):
        open_store(uri)


def test_a_file_uri_is_the_same_place(tmp_path):
    open_store(f"file://{tmp_path}/with%20space").write("a", b"x")
    assert (tmp_path / "with space" / "a").read_bytes() == b"x"


def test_a_store_travels_to_workers(store):
    store.write("a", b"x")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"x"


def test_a_full_disk_is_a_write_error_and_leaves_the_old_file(tmp_path):
    code = """
import resource, signal, sys
from datagen.errors import WriteError
from datagen.write import open_store
store = open_store(sys.argv[1])
store.write("a", b"old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.write("a", bytes(100_000))
except WriteError as error:
    print(error.message)
print([path for path, _ in store.list()], store.read("a"))
"""
    output, _ = start_python(code, tmp_path / "out").communicate(timeout=60)
    assert "cannot write" in output
    assert "['a'] b'old'" in output


@pytest.mark.parametrize("place", ["/proc/datagen-test/out", "{file}/out"])
def test_a_place_that_cannot_be_written_is_a_write_error(tmp_path, place):
    (tmp_path / "file").write_text("x")
    place = place.format(file=tmp_path / "file")
    with pytest.raises(WriteError, match=f"cannot .*{place}"), open_store(place).lease({}):
        pass
    with pytest.raises(WriteError, match=f"cannot .*{place}"):
        open_store(place).write("a", b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_write_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="Permission denied"), open_store(str(tmp_path / "out")).lease({}):
        pass


def test_a_killed_write_leaves_the_old_file_or_the_new_one(tmp_path):
    code = """
import sys
from datagen.write import open_store
store = open_store(sys.argv[1])
contents = [bytes([n]) * 4_000_000 for n in (1, 2)]
store.write("a", contents[0])
print("go", flush=True)
while True:
    for content in contents:
        store.write("a", content)
"""
    for n in range(3):
        process = start_python(code, tmp_path)
        wait_for(process, "go")
        time.sleep(0.02 + 0.017 * n)
        kill(process)
        content = (tmp_path / "a").read_bytes()
        assert len(content) == 4_000_000
        assert len(set(content)) == 1


# --- the lease -------------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from datagen.write import open_store
with open_store(sys.argv[1]).lease({"run_id": "first-run"}):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_told_who_is_first(tmp_path):
    process = start_python(HOLD, tmp_path / "out")
    try:
        wait_for(process, "held")
        with pytest.raises(OutputBusyError, match=f"pid {process.pid}, host .*started .*run_id first-run") as caught:
            open_store(str(tmp_path / "out")).lease({"run_id": "second"}).__enter__()
        assert caught.value.exit_code == 2
    finally:
        kill(process)
    with open_store(str(tmp_path / "out")).lease({"run_id": "second"}):
        assert b"second" in (tmp_path / "out/_datagen/lock").read_bytes()


def test_two_leases_in_one_process_exclude_each_other_too(store):
    with store.lease({"run_id": "one"}), pytest.raises(OutputBusyError, match="run_id one"), open_store(store.uri).lease({}):
        pass
    with store.lease({}):
        pass


def test_a_lease_is_let_go_after_an_error(store):
    with pytest.raises(RuntimeError), store.lease({}):
        raise RuntimeError
    with store.lease({}):
        pass


def test_children_of_a_killed_run_do_not_keep_its_lease(tmp_path):
    code = """
import os, subprocess, sys, time
from datagen.write import open_store
with open_store(sys.argv[1]).lease({}):
    forked = os.fork()
    if not forked:
        time.sleep(600)
    spawned = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False, stdout=subprocess.DEVNULL)
    print(forked, spawned.pid, flush=True)
    time.sleep(600)
"""
    process = start_python(code, tmp_path / "out")
    children = [int(pid) for pid in process.stdout.readline().split()]
    kill(process)
    try:
        assert all(subprocess.run(["kill", "-0", str(pid)], check=False).returncode == 0 for pid in children)
        with open_store(str(tmp_path / "out")).lease({}):
            pass
    finally:
        for pid in children:
            os.kill(pid, 9)


def test_a_folder_with_something_else_is_refused(tmp_path):
    for name in ("thesis.docx", "b", "c", "d", "e"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(WriteError, match=r"no datagen dataset \(b, c, d and 2 more.*new or empty folder"):
        open_store(str(tmp_path)).lease({}).__enter__()
    assert not (tmp_path / "_datagen").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(WriteError, match="is a file"):
        open_store(str(tmp_path / "out")).lease({}).__enter__()


def test_what_systems_leave_in_empty_folders_is_no_content(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".DS_Store").write_text("x")
    with open_store(str(tmp_path)).lease({}):
        pass
