"""Machines and containers as they are: each of these works, or says in one line what to set, and never ends with a traceback."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from datagen import machine
from datagen.describe.overhear import Overheard
from datagen.errors import ClusterError, WriteError
from datagen.machine import drop_services, ray_folder, settle, socket_folder
from datagen.run.reporting import logged, no_screen
from datagen.share import cache_folder
from datagen.write.local import LocalStore
from datagen.write.store import TEMP_PREFIX

JOB = "version: 1\nperceive: {engine: fake}\ndescribe: {engine: fake}\nrun: {executor: inprocess}\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "p").mkdir()
    for index in range(2):
        Image.new("RGB", (32, 24), (index, 9, 9)).save(tmp_path / "p" / f"{index}.png")
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


# --- variables -------------------------------------------------------------------------------------------------------------------


def test_what_kubernetes_says_of_services_is_no_option_of_a_library() -> None:
    services = {"VLLM_PORT": "tcp://10.0.0.1:8000", "RAY_PORT": "tcp://10.0.0.2:6379", "RAY_HEAD_SVC_PORT": "tcp://10.0.0.2:10001"}
    services |= {"MASTER_PORT": "udp://10.0.0.3:1", "CUDA_PORT": "sctp://10.0.0.4:5"}
    kept = {"VLLM_PORT": "8000", "POSTGRES_PORT": "tcp://10.0.0.5:5432", "VLLM_SERVICE_HOST": "10.0.0.1", "RAY_ADDRESS": "10.0.0.1:6379"}
    for environment in (dict(services), kept | services, dict(kept)):
        left = {name: value for name, value in environment.items() if name not in services or environment[name] != services[name]}
        drop_services(environment)
        assert environment == left


@pytest.mark.parametrize("home", ["/nonexistent/home", "/proc/nohome"])
def test_a_home_that_is_not_there_is_replaced(place: Path, home: str) -> None:
    environment = {"HOME": home}
    settle(environment)
    found = Path(environment["HOME"])
    assert found.parent == place / "tmp"
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_a_home_that_can_only_be_read_stays_for_what_lies_in_it(place: Path) -> None:
    environment = {"HOME": "/proc", "VLLM_CACHE_ROOT": "/data/vllm"}
    settle(environment)
    assert environment["HOME"] == "/proc"
    assert environment["VLLM_CACHE_ROOT"] == "/data/vllm"
    assert environment["XDG_CACHE_HOME"].startswith(str(place / "tmp"))


def test_an_ordinary_home_changes_nothing(place: Path) -> None:
    environment = {"HOME": str(place / "home")}
    settle(environment)
    assert environment == {"HOME": str(place / "home"), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def test_ray_does_not_ship_the_current_folder_of_what_uv_run_started() -> None:
    code = (
        "import os; os.environ.pop('RAY_ENABLE_UV_RUN_RUNTIME_ENV', None)\n"
        "from datagen.machine import settle; settle()\n"
        "from ray._private import ray_constants; print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_user_without_a_name_gets_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1000660000")

    monkeypatch.setattr("getpass.getuser", nobody)
    environment = {"HOME": str(place / "home")}
    settle(environment)
    assert environment["LOGNAME"] == f"uid{os.getuid()}"


def test_the_cache_is_where_it_can_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATAGEN_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(place / "home"))
    assert cache_folder() == place / "home" / ".cache" / "datagen"
    monkeypatch.setenv("HOME", "/proc/nohome")
    assert cache_folder().parent == place / "tmp"
    monkeypatch.setenv("DATAGEN_CACHE", "/proc/cache")
    with pytest.raises(ClusterError, match="DATAGEN_CACHE is /proc/cache, which cannot be made"):
        cache_folder()


def test_a_folder_that_another_user_laid_there_is_not_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "elsewhere").mkdir()
    (place / "tmp" / f"datagen-cache-{os.getuid()}").symlink_to(place / "elsewhere")
    with pytest.raises(ClusterError, match="somebody else's"):
        machine.private_folder("cache")


# --- sockets ---------------------------------------------------------------------------------------------------------------------


def test_long_temporary_paths_are_left_out_for_sockets(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = place / ("slurm_jobdir_" * 6)
    long.mkdir()
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv(name, str(long))
        assert str(ray_folder()).startswith(f"/tmp/ray-{os.getuid()}")
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert socket_folder() == "/tmp"
    monkeypatch.setattr(machine, "_SHORT_PLACES", ("/proc/nowhere",))
    with pytest.raises(ClusterError, match="Set RAY_TMPDIR to a short path"):
        ray_folder()
    with pytest.raises(ClusterError, match="Set VLLM_RPC_BASE_PATH to a short path"):
        socket_folder()


def test_a_temporary_folder_that_is_short_and_can_be_written_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("TMPDIR", short)
        assert ray_folder() is None
    monkeypatch.setenv("TMPDIR", "/proc/no")
    assert ray_folder() == f"/tmp/ray-{os.getuid()}"


# --- standard streams and the current folder -------------------------------------------------------------------------------------


def shell(place: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = line.replace("datagen", f"{sys.executable} -m datagen")
    return subprocess.run(
        ["bash", "-c", command],
        cwd=place,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("datagen run job.yaml -i p -o out >&-", {}),
        ("datagen run job.yaml -i p -o out >&- 2>&-", {}),
        ("datagen run job.yaml -i p -o out <&- >&- 2>&-", {}),
        ("datagen run job.yaml -i p -o out 2>&1 | true; (exit ${PIPESTATUS[0]})", {}),
        ("datagen run job.yaml -i p -o out | head -c 1; (exit ${PIPESTATUS[0]})", {}),
        ("datagen run job.yaml -i p -o out", {"PYTHONIOENCODING": "ascii", "LANG": "C", "TERM": ""}),
        ("datagen run job.yaml -i p -o out && datagen stats out", {"PYTHONIOENCODING": "ascii"}),
        ("datagen run job.yaml -i p -o out", {"HOME": "/proc/nohome", "TERM": "dumb"}),
        ("unset HOME; datagen run job.yaml -i p -o out", {}),
        ("datagen run job.yaml -i p -o out 2>/dev/full", {}),
        ("datagen run job.yaml -i p -o out 2>/dev/full; datagen check out 2>/dev/full", {}),
        ("J=$PWD; cd /proc && datagen run $J/job.yaml -i $J/p -o $J/out", {}),
    ],
)
def test_a_run_does_its_work_and_its_exit_code_is_that_of_the_work(place: Path, line: str, environment: dict[str, str]) -> None:
    done = shell(place, line, **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr
    assert len(list((place / "out" / "assets").glob("*.parquet"))) == 1
    assert not any(b"samples" in path.read_bytes() for path in (place / "out").rglob("*.parquet")), "nothing was printed into a table"


@pytest.mark.parametrize("command", ["check", "stats --json", "status"])
def test_what_could_not_be_printed_to_a_full_disk_is_no_success(place: Path, command: str) -> None:
    said = shell(place, f"datagen run job.yaml -i p -o out && datagen {command} out >/dev/full")
    assert said.returncode == 2
    assert "No space left on device" in " ".join(said.stderr.split())
    assert "Traceback" not in said.stderr
    assert len(list((place / "out" / "assets").glob("*.parquet"))) == 1


def test_a_log_that_cannot_be_redacted_is_removed_and_does_not_hide_what_ended_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-secret-of-the-tests")
    store = LocalStore(place / "out")
    log = place / "out" / "_datagen" / "logs" / "r.log"
    (log.parent / f"{TEMP_PREFIX}r.log").mkdir(parents=True)  # the redacted text cannot be written

    def fail() -> None:
        with logged(store, "r", no_screen):
            log.write_text("a-secret-of-the-tests")
            raise WriteError("the disk is full")

    with pytest.raises(WriteError, match="the disk is full"):
        fail()
    assert not log.exists()
    assert "could not be redacted" in caplog.text


@pytest.mark.parametrize("command", ["run job.yaml -i p -o", "check", "stats", "status", "plan job.yaml -i p -o"])
def test_a_folder_whose_name_is_no_text_is_a_folder(place: Path, command: str) -> None:
    done = shell(place, f'O=$(printf \'gr\\xfc\\xdfe/out\'); datagen run job.yaml -i p -o "$O" && datagen {command} "$O"')
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert len(list((place / os.fsdecode(b"gr\xfc\xdfe") / "out" / "assets").iterdir())) == 1


def test_a_terminal_that_cannot_show_a_character_sees_an_escape(place: Path) -> None:
    (place / "фото.jpg").write_bytes(b"")
    said = shell(place, "datagen run job.yaml -i фото.jpg -o out", PYTHONIOENCODING="ascii")
    assert said.returncode == 2
    assert "\\u0444" in said.stderr + said.stdout
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("command", ["run $J/job.yaml -i p -o out", "check out", "stats .", "status out"])
def test_a_current_folder_that_is_gone_is_said_in_one_line(place: Path, command: str) -> None:
    line = f"J=$PWD; mkdir gone; cd gone; rmdir ../gone; datagen {command}"
    said = shell(place, line, PYTHONPATH=str(Path(__file__).parents[1]))
    assert said.returncode == 2
    assert "the current folder is not there any more" in " ".join(said.stderr.split())
    assert "Traceback" not in said.stderr


# --- what an engine says ---------------------------------------------------------------------------------------------------------


def test_what_is_said_meanwhile_goes_on_and_its_last_error_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    overheard = Overheard()
    code = (
        "import sys\n"
        "print('loading', flush=True)\n"
        "for line in ('Traceback (most recent call last):', '  File x', 'KeyError: 1', 'ValueError: No room for 4000 GiB', 'bye'):\n"
        "    print(f'\\x1b[31m(EngineCore pid=7)\\x1b[0;0m ERROR 11-28 11:19:30 [core.py:1] {line}', file=sys.stderr)\n"
        "print('(EngineCore pid=7) RuntimeError: Engine core initialization failed. See root cause above.', file=sys.stderr)\n"
    )
    with overheard.listening():
        subprocess.run([sys.executable, "-c", code], check=True)
    assert overheard.last_error() == "ValueError: No room for 4000 GiB"
    seen = capfd.readouterr()
    assert "loading" in seen.err + seen.out
    assert "bye" in seen.err
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_of_an_engine_that_named_no_error_the_last_line_is_quoted() -> None:
    overheard = Overheard()
    with overheard.listening():
        subprocess.run([sys.executable, "-c", "print('Killed')"], check=True)
    assert overheard.last_error() == "Killed"
