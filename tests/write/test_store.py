import os
import shutil
import subprocess
import time
from contextlib import nullcontext

import pytest
from corpora import kill, start_python, wait_for

from datagen.errors import OutputBusyError, WriteError
from datagen.write import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "out"))


@pytest.mark.parametrize("uri", ["gs://bucket", "ftp://host/x", "file://elsewhere/x"])
def test_unknown_schemes_are_refused_with_what_is_allowed(uri):
    with pytest.raises(WriteError, match=r"found .*Allowed: .*file:///.*s3://"):
        open_store(uri)


def test_a_file_uri_is_the_same_place(tmp_path):
    open_store(f"file://{tmp_path}/with%20space").write("a", b"x")
    assert (tmp_path / "with space" / "a").read_bytes() == b"x"


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
    output, _ = start_python(code, tmp_path / "out").communicate(timeout=300)
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
        assert caught.value.exit_code == 4
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


@pytest.mark.parametrize("how", ["moved", "removed", "replaced", "lock removed", "taken over"])
def test_a_folder_that_is_another_one_meanwhile_is_not_written_to(store, how):
    """Else the run would say that all is done, and two runs could write to one place."""
    with store.lease({"run_id": "one"}):
        store.write("_staging/a", b"1")
        if how == "lock removed":
            (store.root / "_datagen/lock").unlink()
        elif how == "removed":
            shutil.rmtree(store.root)
        else:
            store.root.rename(store.root.with_name("moved"))
        if how == "replaced":
            store.root.write_bytes(b"a file")
        with open_store(store.uri).lease({"run_id": "one"}) if how == "taken over" else nullcontext():
            for act in (lambda: store.write("_datagen/x", b"2"), lambda: store.move("_staging/a", "assets/a")):
                with pytest.raises(WriteError, match="moved, removed or replaced meanwhile"):
                    act()
        assert how not in ("moved", "removed") or not store.root.exists()


def test_a_folder_that_was_moved_and_leads_there_still_is_the_same(store):
    with store.lease({"run_id": "one"}):
        store.root.rename(store.root.with_name("moved"))
        store.root.symlink_to("moved")
        store.write("_datagen/x", b"2")
        with pytest.raises(OutputBusyError), open_store(store.uri).lease({}):
            pass
    store.write("_datagen/x", b"3")


def test_children_of_a_killed_run_do_not_keep_its_lease(tmp_path):
    code = """
import os, subprocess, sys, time
from datagen.write import open_store
with open_store(sys.argv[1]).lease({}):
    awake, told = os.pipe()
    forked = os.fork()
    if not forked:
        os.write(told, b"!")
        time.sleep(600)
    os.read(awake, 1)  # it has let go of what it inherited
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
