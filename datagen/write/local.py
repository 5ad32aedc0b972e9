"""A dataset on a local (or mounted) file system: temporary file, fsync, rename; the lease is a file lock that dies with its holder."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from datagen.errors import OutputBusyError, WriteError
from datagen.paths import absolute
from datagen.write.store import META, STAGING, TEMP_PREFIX, checked_path, owner_facts, refuse_foreign, who_is

LOCK = f"{META}/lock"
# What file managers and file systems put into folders that people call empty.
_NOT_CONTENT = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"}

_leases_held: set[int] = set()


def _forget_leases() -> None:
    """In a forked child: a lock lives as long as any copy of its descriptor, so the child must not keep one."""
    for descriptor in _leases_held:
        os.close(descriptor)
    _leases_held.clear()


os.register_at_fork(after_in_child=_forget_leases)


class LocalStore:
    """Files under one folder. See Store for the contract."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(absolute(os.fspath(root)))
        self._lease: bytes | None = None  # what this run's lock says, while it holds one

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    def _resolve(self, path: str) -> Path:
        return self.root / checked_path(path, self.uri)

    def read(self, path: str) -> bytes:
        """Whole content of a file."""
        return self._resolve(path).read_bytes()

    def open_input(self, path: str) -> pa.NativeFile:
        """The file for random access."""
        return pa.OSFile(os.fsencode(self._resolve(path)), "rb")  # a name may be no text

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self._resolve(path).is_file()

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, size in bytes) of every file under the folder, in the order of names. A file that vanishes meanwhile is left out."""
        try:
            entries = sorted(os.scandir(self._resolve(prefix)), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self.list(path)
                continue
            try:
                yield path, entry.stat().st_size
            except FileNotFoundError:
                continue

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Create or replace a file: written aside, flushed to the disk, renamed."""
        target = self._resolve(path)
        self._check_lease()
        with _explained("write", target):
            _make_folder(target.parent)
            temp = target.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
            try:
                with temp.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temp.replace(target)
            except BaseException:
                temp.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)

    def move(self, src: str, dst: str) -> None:
        """Rename a file, replacing what had the name."""
        source, target = self._resolve(src), self._resolve(dst)
        self._check_lease()
        with _explained(f"move {source} to", target):
            _make_folder(target.parent)
            source.replace(target)
            _sync_folder(target.parent)
            _sync_folder(source.parent)

    def delete(self, path: str) -> None:
        """Remove a file, if it is there."""
        target = self._resolve(path)
        with _explained("delete", target):
            target.unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        """Remove a folder with all it holds, if it is there."""
        target = self._resolve(prefix)
        if target == self.root:
            raise WriteError(f"refusing to delete the whole dataset {self.root}")
        # A worker that outlived its run may still write there. Under another name it no longer can, so nothing appears meanwhile.
        doomed = target.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
        with _explained("delete", target):
            try:
                target.replace(doomed)
            except FileNotFoundError:
                return
            shutil.rmtree(doomed)

    def clean(self) -> Sequence[str]:
        """Remove temporary files and folders, except staged ones, which go as a whole."""
        debris = [path for path, _ in self.list() if path.split("/")[0] != STAGING and _temp_of(path)]
        for path in debris:
            temp = _temp_of(path)
            (self.delete if temp == path else self.delete_tree)(temp)
        return debris

    @contextmanager
    def lease(self, owner: Mapping[str, Any]) -> Iterator[None]:
        """Hold a lock on `_datagen/lock`. The system lets go of it when the process dies, however it dies."""
        self._refuse_foreign()
        with _explained("write to", self.root):
            _make_folder(self.root / META)
            descriptor = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _leases_held.add(descriptor)
        holder = os.getpid()
        try:
            self._lock(descriptor)
            facts = json.dumps({**owner_facts(owner), "lease": uuid.uuid4().hex}).encode()
            _overwrite(descriptor, facts)
            self._lease = facts
            try:
                yield
            finally:
                self._lease = None
                if os.getpid() == holder:
                    os.ftruncate(descriptor, 0)
        finally:
            if os.getpid() == holder:
                _leases_held.discard(descriptor)
                os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        with _explained("lock", self.root / LOCK):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputBusyError(
                    f"another run is writing to {self.root}: {_who(os.pread(descriptor, 65536, 0))}. "
                    "Wait until it ends, stop it, or choose another --output."
                ) from error

    def _check_lease(self) -> None:
        """Raises WriteError when the folder is no longer the one whose lease this store holds: it was moved, removed or replaced."""
        if self._lease is None:
            return
        with _explained("read", self.root / LOCK):
            try:
                found = (self.root / LOCK).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                found = None
        if found != self._lease:
            raise WriteError(
                f"{self.root} is not the folder any more that this run began in: it was moved, removed or replaced meanwhile, or its "
                f"{LOCK} was. What was committed is where it went; nothing more is. Move it back, and run the same command to go on."
            )

    def _refuse_foreign(self) -> None:
        """Raises WriteError when the folder is none, or holds something but no dataset."""
        with _explained("use", self.root):
            if self.root.exists() and not self.root.is_dir():
                raise WriteError(f"{self.root} is a file; --output is a folder for the dataset")
            if not self.root.exists() or (self.root / META).is_dir():
                return
            found = sorted(entry.name for entry in os.scandir(self.root) if entry.name not in _NOT_CONTENT)
        refuse_foreign(self.uri, found)


@contextmanager
def _explained(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot {action} {path}: {error.strerror or error}. Check that the place exists, has room, and may be written by this user."
        ) from error


def _temp_of(path: str) -> str:
    """The path up to its first temporary component; empty where there is none."""
    names = path.split("/")
    for depth, name in enumerate(names, start=1):
        if name.startswith(TEMP_PREFIX):
            return "/".join(names[:depth])
    return ""


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _overwrite(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)
    os.fsync(descriptor)


def _who(content: bytes) -> str:
    try:
        return who_is(json.loads(content))
    except ValueError:
        return "it has just started, or just ended"
