"""Media from elsewhere as local files for as long as they are decoded: what lies in a bucket, an archive or a table.

The decoding child gets a path, and never the network or a credential.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from datagen.at_once import in_order as in_order_of
from datagen.decode.members import Members, is_table
from datagen.errors import ClusterError, DecodeError, SourceError, StorageError, StorageUnavailableError
from datagen.frame_names import in_order, is_frame_folder
from datagen.job import S3Options
from datagen.records import Span
from datagen.remote import answers, checked_uri, download, is_remote, list_files, stops_the_job
from datagen.sources.uris import inside, path_of_uri

_PREFIX = "datagen-media-"
_FRAMES_AT_ONCE = 8
_LOCK = "lock"


class LocalCopies:
    """Fetches a few files at a time into a folder of its own, which goes with it. What a killed process left there, the next removes.

    A file that cannot be had raises DecodeError: `missing_file`, `access_denied`, `missing_bucket`, `wrong_region`, `archived`,
    `unavailable` (while its place answers otherwise), `too_large` (more than `max_bytes`), `unsupported_uri`, `storage`; what lies in
    another file also the codes of Members.
    What concerns all files, such as expired credentials or a place that does not answer at all, raises StorageError; a full disk
    raises ClusterError.
    """

    def __init__(self, s3: S3Options, max_bytes: int, num_threads: int = 1) -> None:
        self._s3, self._max_bytes = s3, max_bytes
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        # Cells of a table are read in the order of its rows, so by one thread.
        self._in_order = ThreadPoolExecutor(1, thread_name_prefix="cells")
        self._members = Members(s3, max_bytes)
        self._folder: _TempFolder | None = None

    def begin(self, uri: str, span: Span | None = None) -> Future[str]:
        """Start fetching a file, for `copy`. span: where a member of an archive lies, where that is known."""
        place = inside(uri)
        if not is_remote(uri) and place is None:
            there: Future[str] = Future()
            there.set_result("")
            return there
        self._folder = self._folder or _TempFolder()
        pool = self._in_order if place is not None and is_table(place.file) else self._pool
        return pool.submit(self._fetch, uri, span, self._folder.path / os.urandom(8).hex())

    @contextmanager
    def copy(self, uri: str, fetching: Future[str] | None = None, span: Span | None = None) -> Iterator[str]:
        """The path of a file while the context lasts. fetching: what `begin` gave, where it was called. span: as for `begin`."""
        path = (fetching or self.begin(uri, span)).result()
        if not path:
            yield _local_path(uri)
            return
        try:
            yield path
        finally:
            _remove(Path(path))

    def close(self) -> None:
        """Stop fetching and remove what is left."""
        self._pool.shutdown(cancel_futures=True)
        self._in_order.shutdown(cancel_futures=True)
        if self._folder is not None:
            self._folder.remove()

    def _fetch(self, uri: str, span: Span | None, path: Path) -> str:
        place = inside(uri)
        try:
            if is_frame_folder(uri):
                self._fetch_folder(uri, path)
                return f"{path}/"
            with path.open("xb") as file:
                if place is None:
                    download(checked_uri(uri), file, self._s3, self._max_bytes)
                else:
                    self._members.copy(place, span, file)
        except BaseException as error:
            _remove(path)
            raise self._explained(error, uri, path) from error
        return str(path)

    def _fetch_folder(self, uri: str, path: Path) -> None:
        """All frames of a folder, under names of our own in their order; together no larger than a file may be."""
        if inside(uri):
            raise DecodeError(f"{uri}: a folder of frames inside an archive is not read; unpack it", code="unsupported_uri")
        folder = checked_uri(uri.rstrip("/")) + "/"
        names = in_order(name for file in list_files(folder, self._s3) if "/" not in (name := file.uri.removeprefix(folder)))
        if not names:
            raise DecodeError(f"there are no frames below {uri}", code="missing_file")
        path.mkdir()
        left = self._max_bytes
        with ThreadPoolExecutor(_FRAMES_AT_ONCE) as pool:
            for size in in_order_of(
                pool, lambda numbered: self._fetch_frame(folder, path, *numbered), enumerate(names), 2 * _FRAMES_AT_ONCE
            ):
                left -= size
                if left < 0:
                    raise DecodeError(f"the frames of {uri} have more than the {self._max_bytes} bytes that are read", code="too_large")

    def _fetch_frame(self, folder: str, path: Path, number: int, name: str) -> int:
        with (path / f"{number:08d}{os.path.splitext(name)[1].lower()}").open("xb") as file:
            download(folder + name, file, self._s3, self._max_bytes)
            return file.tell()

    def _explained(self, error: BaseException, uri: str, path: Path) -> BaseException:
        match error:
            case FileNotFoundError():
                return DecodeError(f"there is no file {uri!r}", code="missing_file")
            case SourceError():
                return DecodeError(error.message, code=error.code)
            case StorageUnavailableError() if not answers(place.file if (place := inside(uri)) else uri, self._s3):
                return error
            case StorageError() if not stops_the_job(error):
                return DecodeError(error.message, code=error.code)
            case OSError():
                return ClusterError(f"{uri} cannot be kept in {path.parent}: {error.strerror or error}. Make room, or set TMPDIR.")
        return error


def _local_path(uri: str) -> str:
    try:
        return path_of_uri(uri)
    except SourceError as error:
        raise DecodeError(error.message, code=error.code) from error


def _remove(path: Path) -> None:
    """A fetched file, or a folder of frames."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class _TempFolder:
    """A temporary folder with a lock that dies with its process, so that others can tell it from one that was left."""

    def __init__(self) -> None:
        _remove_abandoned()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            if (self.path / _LOCK).exists():  # else another process took it for abandoned before it was locked
                return
            os.close(self._lock)

    def remove(self) -> None:
        """Remove the folder with all it holds."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # of another user, or just gone
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
