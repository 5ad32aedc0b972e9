"""A dataset in a bucket: whole objects by one request each, staged ones copied into place by the server; the lease is an object."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa

from datagen.errors import StorageError, WriteError
from datagen.job import S3Options
from datagen.s3 import SCHEME, ObjectFile, list_objects, patiently, read_object, split_uri
from datagen.write.s3_lease import S3Lease
from datagen.write.store import META, STAGING, checked_path, owner_facts, refuse_foreign

LEASE = f"{META}/lease.json"
# One request uploads up to this much, and copies up to that much (the protocol's own limit).
_ONE_PUT_BYTES = 64 << 20
_ONE_COPY_BYTES = 5 << 30
_UPLOAD_PART_BYTES = 32 << 20
_COPY_PART_BYTES = 1 << 30
_DELETED_AT_ONCE = 1000
# What each run writes under names of its own.
_UNFENCED = (f"{STAGING}/", f"{META}/runs/", f"{META}/logs/")


class S3Store:
    """Objects below one prefix of a bucket. See Store for the contract.

    `move` is a copy and a deletion. A crash between the two leaves the staged object, which the next start removes.
    """

    def __init__(self, uri: str, options: S3Options) -> None:
        self._bucket, root = split_uri(uri)
        self._root = root.strip("/")
        self._options = options
        self._lease: S3Lease | None = None

    def __repr__(self) -> str:
        return f"S3Store({self.uri!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.uri, self._options)

    @property
    def uri(self) -> str:
        """s3://bucket/prefix."""
        return f"{SCHEME}{self._bucket}/{self._root}".rstrip("/")

    def _key(self, path: str) -> str:
        return f"{self._root}/{checked_path(path, self.uri)}".strip("/")

    def _path(self, key: str) -> str:
        return key.removeprefix(f"{self._root}/") if self._root else key

    def _where(self, path: str) -> str:
        return f"{SCHEME}{self._bucket}/{self._key(path)}"

    def read(self, path: str) -> bytes:
        """Whole content of an object."""
        return read_object(self._options, self._bucket, self._key(path))

    def open_input(self, path: str) -> pa.NativeFile:
        """The object for random access, by ranged requests."""
        return pa.PythonFile(ObjectFile(self._options, self._bucket, self._key(path)), mode="r")

    def exists(self, path: str) -> bool:
        """Whether there is such an object."""
        return self._size(path) is not None

    def _size(self, path: str) -> int | None:
        # Listing instead of HEAD, whose errors come without a reason.
        key = self._key(path)
        found = next(list_objects(self._options, self._bucket, key, limit=1), None)
        return int(found["Size"]) if found is not None and found["Key"] == key else None

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, size in bytes) of every object below the prefix, in the order of keys."""
        key = self._key(prefix)
        for item in list_objects(self._options, self._bucket, f"{key}/" if key else ""):
            yield self._path(item["Key"]), item["Size"]

    def write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Create or replace an object: it appears whole or not at all."""
        if len(data) > _ONE_PUT_BYTES:
            with self._multipart(path) as upload:
                for start in range(0, len(data), _UPLOAD_PART_BYTES):
                    upload("upload_part", Body=bytes(memoryview(data)[start : start + _UPLOAD_PART_BYTES]))
            return
        self._change("put_object", path, Body=data.to_pybytes() if isinstance(data, pa.Buffer) else data)

    def move(self, src: str, dst: str) -> None:
        """Copy on the server, then delete. Raises WriteError when there is nothing at `src`."""
        source, size = {"Bucket": self._bucket, "Key": self._key(src)}, self._size(src)
        try:
            if size is None:
                raise FileNotFoundError
            if size > _ONE_COPY_BYTES:
                self._copy_in_parts(source, size, dst)
            else:
                self._change("copy_object", dst, CopySource=source)
        except FileNotFoundError as error:
            raise WriteError(f"cannot move {self._where(src)} to {self._where(dst)}: there is no such object") from error
        self.delete(src)

    def _copy_in_parts(self, source: Mapping[str, str], size: int, dst: str) -> None:
        with self._multipart(dst) as upload:
            for start in range(0, size, _COPY_PART_BYTES):
                last = min(start + _COPY_PART_BYTES, size) - 1
                upload("upload_part_copy", CopySource=source, CopySourceRange=f"bytes={start}-{last}")

    @contextmanager
    def _multipart(self, path: str) -> Iterator[Callable[..., None]]:
        """An upload in parts: a function that sends the next one. The object appears when all is sent; otherwise nothing is left."""
        upload_id = self._ask("create_multipart_upload", path)["UploadId"]
        parts: list[dict[str, Any]] = []

        def upload(method: str, **request: Any) -> None:
            number = len(parts) + 1
            answer = self._ask(method, path, UploadId=upload_id, PartNumber=number, **request)
            parts.append({"ETag": answer.get("CopyPartResult", answer)["ETag"], "PartNumber": number})

        try:
            yield upload
            self._change("complete_multipart_upload", path, UploadId=upload_id, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(StorageError, FileNotFoundError):  # what is left then goes at the next start
                self._ask("abort_multipart_upload", path, UploadId=upload_id)
            raise

    def delete(self, path: str) -> None:
        """Remove an object, if it is there."""
        self._change("delete_object", path)

    def delete_tree(self, prefix: str) -> None:
        """Remove all objects below a prefix, a thousand at a time."""
        if not prefix.strip("/"):
            raise WriteError(f"refusing to delete the whole dataset {self.uri}")
        paths = (path for path, _ in self.list(prefix))
        while some := list(islice(paths, _DELETED_AT_ONCE)):
            objects = [{"Key": self._key(path)} for path in some]
            request = {"Bucket": self._bucket, "Delete": {"Objects": objects, "Quiet": True}}
            try:
                answer = patiently(self._options, self._where(prefix), partial(_delete_objects, request))
            except StorageError as error:
                if error.code != "not_supported":
                    raise
                # This request has a checksum whatever s3.checksums says, and older stores refuse it.
                answer = {"Errors": objects}
            for left in answer.get("Errors", ()):  # the store took the request, and not this object
                self.delete(self._path(left["Key"]))

    def clean(self) -> Sequence[str]:
        """Abort unfinished uploads below the prefix: they are invisible, and billed."""
        paths = [(self._path(upload["Key"]), upload["UploadId"]) for upload in self._uploads()]
        for path, upload_id in paths:
            with contextlib.suppress(FileNotFoundError):
                self._ask("abort_multipart_upload", path, UploadId=upload_id)
        return [path for path, _ in paths]

    def _uploads(self) -> Iterator[dict[str, Any]]:
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": f"{self._root}/" if self._root else ""}
        while True:
            page = patiently(self._options, self.uri, partial(_list_uploads, request))
            yield from page.get("Uploads", ())
            if not page.get("IsTruncated"):
                return
            request |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """One request about the object at `path`."""
        request |= {"Bucket": self._bucket, "Key": self._key(path)}
        answer: dict[str, Any] = patiently(self._options, self._where(path), lambda s3: getattr(s3, method)(**request))
        return answer

    def _change(self, method: str, path: str, **request: Any) -> None:
        """One request that makes an object appear or go; before each try at one that another run may use, the lease is looked at."""
        request |= {"Bucket": self._bucket, "Key": self._key(path)}
        lease = None if path.startswith(_UNFENCED) else self._lease

        def fenced(s3: Any) -> None:
            if lease is not None:
                lease.check()
            getattr(s3, method)(**request)

        patiently(self._options, self._where(path), fenced)

    # --- the lease ---------------------------------------------------------------------------------------------------------------

    @contextmanager
    def lease(self, owner: Mapping[str, Any]) -> Iterator[None]:
        """Hold the object `_datagen/lease.json`, renewed all the time; see S3Lease."""
        self._refuse_foreign()
        lease = S3Lease(self._options, self._bucket, self._key(LEASE), self.uri)
        with lease.held(owner_facts(owner)):
            self._lease = lease
            try:
                yield
            finally:
                self._lease = None

    def _refuse_foreign(self) -> None:
        if next(self.list(META), None) is None:
            found = [path.split("/")[0] for path, _ in islice(self.list(), 100)]
            refuse_foreign(self.uri, list(dict.fromkeys(found)))


def _delete_objects(request: dict[str, Any], s3: Any) -> dict[str, Any]:
    answer: dict[str, Any] = s3.delete_objects(**request)
    return answer


def _list_uploads(request: dict[str, Any], s3: Any) -> dict[str, Any]:
    answer: dict[str, Any] = s3.list_multipart_uploads(**request)
    return answer
