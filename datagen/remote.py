"""Files that are not on this machine: objects in S3, and what fsspec reads (Google Cloud Storage, the Hugging Face hub).

A file that is not there is FileNotFoundError; every other refusal is a StorageError, with the codes of datagen.s3 and `not_installed`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from datagen import s3
from datagen.errors import SourceError, StorageError, StorageUnavailableError
from datagen.job import S3Options
from datagen.ranged_file import RangedFile

# Scheme -> what installs the package that fsspec needs for it. No others: fsspec would also follow URIs into archives, other hosts and
# local files.
_FSSPEC = {"gs": "pip install gcsfs", "hf": "pip install huggingface_hub"}
SCHEMES = ("s3", *_FSSPEC)

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_CHUNK_BYTES = 4 << 20
_READ_AHEAD_BYTES = 8 << 20
_FILE_AHEAD_BYTES = 1 << 20
# What fsspec's implementations talk to the network with.
_NETWORK = ("httpx", "httpcore", "aiohttp", "requests", "urllib3")
_VERSION_KEYS = ("etag", "ETag", "md5Hash", "blob_id", "generation", "mtime", "updated", "LastModified", "created")


class RemoteFile(NamedTuple):
    """A listed file. version: what changes when its content does."""

    uri: str
    version: str


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case, empty for a path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def is_remote(uri: str) -> bool:
    """Whether a URI, as checked_uri gives it, is of a file elsewhere."""
    return scheme_of(uri) in SCHEMES


def checked_uri(uri: str) -> str:
    """A remote URI as it is stored. Raises SourceError (`unsupported_uri`) for one with a password or with `.` or `..` in its path."""
    scheme, rest = scheme_of(uri), uri.partition("://")[2]
    if _PASSWORD.search(uri) or (scheme == "s3" and "@" in rest.split("/")[0]):
        raise SourceError(f"a {scheme}:// URI holds credentials; give them in the environment or a profile", code="unsupported_uri")
    if not rest.split("/")[0] or {".", ".."} & set(rest.split("/")):
        raise SourceError(f"{uri!r} is no plain {scheme}:// URI; write {scheme}://bucket/path without `.` and `..`", code="unsupported_uri")
    return f"{scheme}://{rest}"


def redacted(uri: str) -> str:
    """A URI without the password that it may hold."""
    return _PASSWORD.sub("://***@", uri)


def joined(root: str, relative: str) -> str:
    """The URI of a relative path below a remote folder. Raises SourceError (`unsupported_uri`) when it leaves the bucket."""
    scheme, _, folder = root.partition("://")
    parts = folder.split("/")
    for part in relative.split("/"):  # an empty part is one of the key's
        if part == "..":
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    if parts[:1] != folder.split("/")[:1] or len(parts) < 2:
        raise SourceError(f"{relative!r} leads out of {root}", code="unsupported_uri")
    return checked_uri(f"{scheme}://{'/'.join(parts)}")


def list_files(uri: str, options: S3Options) -> Iterator[RemoteFile]:
    """All files below a remote folder, in a fixed order; one page, or one folder, is in memory at a time."""
    if scheme_of(uri) == "s3":
        bucket, prefix = s3.split_uri(uri.removesuffix("/"))
        for item in s3.list_objects(options, bucket, f"{prefix}/" if prefix else ""):
            yield RemoteFile(f"s3://{bucket}/{item['Key']}", f"{item['Size']}-{item['ETag']}")
        return
    fs = FileSystem(uri, options)
    for info in fs.walk(fs.path(uri)):
        yield RemoteFile(f"{scheme_of(uri)}://{info['name']}", fs.version(info))


def version_of(uri: str, options: S3Options) -> str:
    """What changes when the file does; empty when it is not there or may not be looked at, which reading it will tell.

    Raises StorageError for anything else: an id made from a guess would make the file a new asset.
    """
    try:
        if scheme_of(uri) == "s3":
            return s3.object_version(options, uri)
        fs = FileSystem(uri, options)
        return fs.version(fs.info(uri))
    except FileNotFoundError:
        return ""
    except StorageError as error:
        if error.code not in ("access_denied", "missing_bucket"):
            raise
        return ""


def open_file(uri: str, options: S3Options) -> BinaryIO:
    """The file for reading, at any place."""
    if scheme_of(uri) == "s3":
        return io.BufferedReader(s3.ObjectFile(options, *s3.split_uri(uri)), _READ_AHEAD_BYTES)
    return io.BufferedReader(_File(uri, options), _FILE_AHEAD_BYTES)


def download(uri: str, target: BinaryIO, options: S3Options, max_bytes: int) -> None:
    """Write a remote file's content into `target`, an empty file. A transfer that breaks off goes on where it was.

    Raises StorageError with code `too_large` before anything is read when the file has more than `max_bytes`.
    """
    if scheme_of(uri) == "s3":
        _Download(uri, target, options, max_bytes).run()
        return
    fs = FileSystem(uri, options)
    size = int(fs.info(uri).get("size") or 0)
    _refuse_large(uri, size, max_bytes)
    read = fs.reader(uri)
    for position in range(0, size, _CHUNK_BYTES):
        target.write(read(position, min(_CHUNK_BYTES, size - position)))


def stops_the_job(error: StorageError) -> bool:
    """Whether an error about one file is about all of them, so that going on would fail the rest of the input for nothing."""
    return error.code in ("no_credentials", "bad_credentials", "expired_credentials", "wrong_clock", "not_installed", "offline")


def answers(uri: str, options: S3Options) -> bool:
    """Whether the place of a file still answers, if only to refuse: then what could not be read is that file's own trouble."""
    impatient = options.model_copy(update={"patience_s": 0.0})
    try:
        if scheme_of(uri) == "s3":
            next(s3.list_objects(impatient, s3.split_uri(uri)[0], "", limit=1), None)
        else:
            FileSystem(uri, impatient).info(uri)
    except StorageUnavailableError:
        return False
    except (StorageError, FileNotFoundError):
        return True
    return True


def _refuse_large(uri: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise StorageError(f"{uri} has {size} bytes, more than the {max_bytes} that are fetched", code="too_large")


@dataclass
class _Download:
    """One object into one file."""

    uri: str
    target: BinaryIO
    options: S3Options
    max_bytes: int
    etag: str = ""

    def run(self) -> None:
        for _ in range(3):
            try:
                s3.patiently(self.options, self.uri, self._go_on)
                return
            except StorageError as error:  # replaced meanwhile: the beginning is of another file
                if error.code != "precondition":
                    raise
                self._begin_again()
        raise StorageError(f"{self.uri} is replaced all the time; wait until whoever writes it has ended", code="precondition")

    def _begin_again(self) -> None:
        self.target.seek(0)
        self.target.truncate()

    def _go_on(self, client: Any) -> None:
        from botocore.exceptions import FlexibleChecksumError

        bucket, key = s3.split_uri(self.uri)
        position = self.target.tell()
        rest = {"Range": f"bytes={position}-", "IfMatch": self.etag} if position else {}
        answer = client.get_object(Bucket=bucket, Key=key, **rest)
        self.etag = answer["ETag"]
        if "ContentRange" not in answer:
            self._begin_again()
        _refuse_large(self.uri, self.target.tell() + answer["ContentLength"], self.max_bytes)
        try:
            for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                self.target.write(chunk)
        except FlexibleChecksumError:
            self._begin_again()
            raise


class FileSystem:
    """One of fsspec's file systems, with its errors in our words."""

    def __init__(self, uri: str, options: S3Options) -> None:
        self._scheme, self._options = scheme_of(uri), options
        self._fs = self.patiently(uri, self._make)

    def _make(self) -> Any:
        import fsspec

        return fsspec.filesystem(self._scheme, use_listings_cache=False)

    def path(self, uri: str) -> str:
        """The path that the file system knows a URI by."""
        return str(self._fs._strip_protocol(uri))

    def info(self, uri: str) -> dict[str, Any]:
        """Size and more of a file."""
        found: dict[str, Any] = self.patiently(uri, lambda: self._fs.info(self.path(uri)))
        return found

    def reader(self, uri: str) -> Callable[[int, int], bytes]:
        """(start, size) -> the bytes from `start` on, and not more, of an open file; for one thread."""
        file = self.patiently(uri, lambda: self._fs.open(self.path(uri), "rb", cache_type="none"))

        def read(start: int, size: int) -> bytes:
            file.seek(start)
            data: bytes = file.read(size)
            return data

        return lambda start, size: self.patiently(uri, lambda: read(start, size))

    @staticmethod
    def version(info: Mapping[str, Any]) -> str:
        """What changes when a file does, from what `info` or `walk` said of it."""
        known = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
        return f"{info.get('size')}-{known}"

    def walk(self, path: str) -> Iterator[dict[str, Any]]:
        """All files below a folder, by name within each."""
        entries = self.patiently(path, lambda: self._fs.ls(path, detail=True))
        for info in sorted(entries, key=lambda entry: str(entry["name"])):
            if info["type"] == "directory":
                if info["name"].rstrip("/") != path.rstrip("/"):
                    yield from self.walk(info["name"])
            else:
                yield info

    def patiently(self, where: str, action: Callable[[], Any]) -> Any:
        """action(), repeated while the place does not answer."""
        return s3.persist(action, lambda error: self._explain(error, where), (Exception,), lambda: self._options.patience_s)

    def _explain(self, error: Exception, where: str) -> Exception:
        status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
        said = f"{where}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        if self._scheme == "hf" and (refusal := _hub_refusal(error, where)):
            return refusal
        if isinstance(error, FileNotFoundError) or status in (404, "404"):
            return FileNotFoundError(2, "there is no such file", where)
        if isinstance(error, ImportError):
            return StorageError(f"{self._scheme}:// needs a package: {_FSSPEC[self._scheme]} ({error})", code="not_installed")
        if isinstance(error, PermissionError) or status in (401, 403, "401", "403"):
            return StorageError(f"{said}. Check which identity is used, and what it may read.", code="access_denied")
        if isinstance(error, (OSError, TimeoutError)) or status or type(error).__module__.startswith(_NETWORK):
            return StorageUnavailableError(f"{said}. A rerun resumes.")
        return StorageError(said)


class _File(RangedFile):
    """One of their files for random access; every read is as patient as the job says. Raises as FileSystem does."""

    def __init__(self, uri: str, options: S3Options) -> None:
        super().__init__()
        fs = FileSystem(uri, options)
        self.size, self._read = int(fs.info(uri).get("size") or 0), fs.reader(uri)

    def range(self, start: int, size: int) -> bytes:
        """The bytes from `start` on."""
        return self._read(start, size)


def _hub_refusal(error: Exception, where: str) -> StorageError | None:
    """A no that no patience changes: to a whole repository, which the file system calls a missing file, or to any while offline."""
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    login = "`hf auth login`, or HF_TOKEN in the environment, says who asks"
    cause = error if isinstance(error, RepositoryNotFoundError) else error.__cause__
    if isinstance(error, OfflineModeIsEnabled) or isinstance(cause, OfflineModeIsEnabled):
        return StorageError(f"{where}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it to read hf://", code="offline")
    if isinstance(cause, GatedRepoError):
        return StorageError(f"{where}: this repository has conditions to accept on its page first; {login}", code="access_denied")
    if isinstance(cause, RepositoryNotFoundError):
        return StorageError(f"{where}: there is no such repository on the hub, or it is a private one; {login}", code="missing_bucket")
    return None
