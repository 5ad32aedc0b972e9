"""What machines and containers are really like, and what libraries cannot bear: long temporary paths, homes that cannot be written,
variables that Kubernetes makes of services, standard streams that are closed. Mended here once, or said in one line.
"""

from __future__ import annotations

import errno
import getpass
import os
import re
import stat
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from datagen.errors import ClusterError

# A Unix socket's path has at most 107 bytes; Ray puts 70 of its own behind its folder, vLLM 37.
_LONGEST_FOR_RAY = 36
_LONGEST_FOR_VLLM = 64
_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (a folder of one's own is made in it)
# Kubernetes tells every container of every service: NAME_PORT=tcp://10.0.0.1:80. Libraries that take NAME_PORT for a number of theirs fail.
# Of a stream whose reader has left: a pipe that is closed, a terminal that is gone.
_READER_LEFT = (errno.EPIPE, errno.EIO)
_SERVICE = re.compile(r"(?:tcp|udp|sctp)://.*")
_THEIRS = re.compile(r"(?:RAY|VLLM|MASTER|TORCH|NCCL|GLOO|CUDA|HF|OMP|MKL)(?:_.*)?_PORT")


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make this process's environment one that libraries, and processes that it starts, can work with. What a user has set stays."""
    drop_services(environment)
    # Ray would ship the current folder to every worker of a driver that `uv run` started, and let them work in the copy.
    environment.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a container whose user is but a number
        environment["LOGNAME"] = f"uid{os.getuid()}"
    home = environment.get("HOME")
    if is_writable(Path(home or os.path.expanduser("~"))):
        return
    if home is None or not os.path.isdir(home):
        environment["HOME"] = str(private_folder("home"))  # there is nothing in the other one that could be missed
        return
    for name, value in caches(private_folder("cache")).items():
        environment.setdefault(name, value)


def caches(folder: Path) -> dict[str, str]:
    """Variables by which libraries keep what they make below a folder, and not in the home."""
    names = {"XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": "config", "VLLM_CACHE_ROOT": "vllm", "VLLM_CONFIG_ROOT": "vllm-config"}
    names |= {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "NUMBA_CACHE_DIR": "numba", "CUDA_CACHE_PATH": "cuda"}
    names |= {"MPLCONFIGDIR": "matplotlib", "HF_MODULES_CACHE": "hf-modules", "FLASHINFER_WORKSPACE_BASE": "flashinfer"}
    return {name: str(folder / part) for name, part in names.items()}


def drop_services(environment: MutableMapping[str, str]) -> None:
    """Take out what Kubernetes says of services, under names that libraries take for their own options."""
    for name in [name for name, value in environment.items() if _THEIRS.fullmatch(name) and _SERVICE.fullmatch(value)]:
        del environment[name]


def private_folder(name: str) -> Path:
    """A folder of this user alone among the temporary ones. Raises ClusterError when there is none."""
    folder = Path(tempfile.gettempdir(), f"datagen-{name}-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ClusterError(
            f"no place for what is kept on this machine: {error}. Set DATAGEN_CACHE and TMPDIR to folders of yours"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ClusterError(f"{folder} is somebody else's. Set DATAGEN_CACHE, or HOME, to a folder of yours")
    folder.chmod(0o700)
    return folder


def ray_folder() -> str | None:
    """Where Ray keeps its sessions and sockets, where that is another place than it would take; else None.

    Raises ClusterError where every place that it could have is too long or cannot be written.
    """
    wanted = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 (as Ray does)
    if _fits(wanted, _LONGEST_FOR_RAY) and _can_make(Path(wanted, "ray")):
        return None
    for place in _SHORT_PLACES:
        if _can_make(Path(place)):
            return str(Path(place, f"ray-{os.getuid()}"))
    raise ClusterError(
        f"Ray keeps sockets in a folder that can be written and whose path has at most {_LONGEST_FOR_RAY} bytes; {wanted} is none, nor are "
        f"{', '.join(_SHORT_PLACES)}. Set RAY_TMPDIR to a short path"
    )


def socket_folder() -> str:
    """A folder for the sockets of vLLM. Raises ClusterError where every place that it could have is too long or cannot be written."""
    for place in (tempfile.gettempdir(), *_SHORT_PLACES):
        if _fits(place, _LONGEST_FOR_VLLM) and _can_make(Path(place)):
            return place
    raise ClusterError(
        f"vLLM keeps sockets in a folder whose path has at most {_LONGEST_FOR_VLLM} bytes, and TMPDIR has more. "
        "Set VLLM_RPC_BASE_PATH to a short path"
    )


def _fits(place: str, longest: int) -> bool:
    return len(os.fsencode(os.path.abspath(place))) <= longest


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder: tried, as rights say little of mounts, quotas and what root may do."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _can_make(folder: Path) -> bool:
    """Whether a folder is there and can be written, or can be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return is_writable(folder)


def settle_streams() -> None:
    """Standard streams that can be written whatever happens: closed ones go nowhere, a reader that has left is no error, a full disk costs
    what is said and not the work (unwritten() tells), and characters that the terminal cannot show are written as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would be taken for it
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (lives as long as the process)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Unbroken(stream))


def unwritten() -> str | None:
    """What kept standard output from being written, in words; None when all of it is, or its reader has left."""
    stream = sys.stdout
    if not isinstance(stream, Unbroken):
        return None
    stream.flush()
    return stream.problem


class Unbroken:
    """A stream whose reader may leave: what nobody reads any more is dropped, and the exit code is that of the work.

    problem: why text was dropped that somebody may still want, as on a full disk.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.problem: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            return int(self._stream.write(text))
        except OSError as error:
            self._drop(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each, or drop."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in _READER_LEFT:
            self.problem = self.problem or error.strerror or str(error)
        # What is left in the buffer would fail once more when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
