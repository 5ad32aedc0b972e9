"""What lies inside another file, copied out to be decoded: a member of a tar by its bytes, a cell of a table by its row."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from datagen.errors import DecodeError, SourceError, StorageError
from datagen.job import S3Options
from datagen.ranges import open_ranges
from datagen.records import Span
from datagen.remote import checked_uri, is_remote
from datagen.sources.uris import Inside, member_path, path_of_uri
from datagen.tables import TABLE_SUFFIXES, Table, column_of, explained, open_table, parse_cell
from datagen.tar import TarReader

_INDEXES_KEPT = 4


def is_table(file: str) -> bool:
    """Whether what lies in a file are cells."""
    return file.lower().endswith(TABLE_SUFFIXES)


class Members:
    """Copies members and cells. Whatever they are called, nothing is written but into the file that the caller opened.

    Raises DecodeError: `too_large` (more than `max_bytes`), `missing_file`, `unreadable`, `changed` (the archive is another than when it
    was listed), `no_image` (a cell without bytes), `table_damaged`, `no_image_column`, and the codes of TarReader. StorageError,
    FileNotFoundError as Ranges does.
    """

    def __init__(self, s3: S3Options, max_bytes: int) -> None:
        self._s3, self._max_bytes = s3, max_bytes
        self._indexes: OrderedDict[str, dict[str, Span]] = OrderedDict()
        self._indexing = threading.Lock()
        self._cells = _Cells(s3)

    def copy(self, place: Inside, span: Span | None, target: BinaryIO) -> None:
        """Write what lies at a place into an empty file. span: where it is known to lie in a tar."""
        file = checked_uri(place.file) if is_remote(place.file) else path_of_uri(place.file)
        if is_table(file):
            self._copy_cell(file, place.name, target)
            return
        try:
            span = span or self._looked_up(file, place.name)
            self._refuse_large(file, place.name, span.size)
            for chunk in open_ranges(file, self._s3, span.version).chunks(span.offset, span.size):
                _write(target, chunk)
        except StorageError as error:
            if error.code != "precondition":
                raise
            with self._indexing:
                self._indexes.pop(file, None)
            raise DecodeError(f"{error.message}. Run again; run.retry_failed tries it again", code="changed") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DecodeError(f"there is no file {file!r}", code="missing_file") from error
        except _Unwritable as error:
            raise error.reason from error
        except OSError as error:
            raise DecodeError(f"{file!r} cannot be read: {error.strerror or error}", code="unreadable") from error

    def _copy_cell(self, file: str, name: str, target: BinaryIO) -> None:
        column, row = parse_cell(name)
        data = self._cells.read(file, column, row)
        if data is None:
            message = f"row {row} of {file} has no bytes in `{column}`; a dataset must hold its pictures, not paths to them"
            raise DecodeError(message, code="no_image")
        self._refuse_large(file, name, len(data))
        target.write(data)

    def _looked_up(self, file: str, name: str) -> Span:
        """Where a member lies that a manifest or a finished dataset names; the archive's headers are read once."""
        with self._indexing:
            if file not in self._indexes:
                self._indexes[file] = self._index(file)
                if len(self._indexes) > _INDEXES_KEPT:
                    self._indexes.popitem(last=False)
            self._indexes.move_to_end(file)
            span = self._indexes[file].get(member_path(name))
        if span is None:
            raise DecodeError(f"there is no member {name!r} in {file}", code="missing_file")
        return span

    def _index(self, file: str) -> dict[str, Span]:
        found: dict[str, Span] = {}
        reader = TarReader(open_ranges(file, self._s3))
        try:
            for member in reader:
                if member.kind == "file":
                    found.setdefault(_normal(member.name), Span(member.offset, member.size, reader.ranges.version))
        except SourceError as error:
            if not found:
                raise DecodeError(f"{file}: {error.message}", code=error.code) from error
        return found

    def _refuse_large(self, file: str, name: str, size: int) -> None:
        if size > self._max_bytes:
            raise DecodeError(f"{name} in {file} has {size} bytes, more than the {self._max_bytes} that are read", code="too_large")


@dataclass
class _Unwritable(Exception):
    """The disk's trouble and not the archive's."""

    reason: OSError


def _write(target: BinaryIO, chunk: bytes) -> None:
    try:
        target.write(chunk)
    except OSError as error:
        raise _Unwritable(error) from error


def _normal(name: str) -> str:
    try:
        return member_path(name)
    except SourceError:  # no URI leads to it
        return ""


class _Cells:
    """Reads cells one by one; those that follow one another in a file cost one way through its pages."""

    def __init__(self, s3: S3Options) -> None:
        self._s3 = s3
        self._file = ""
        self._table: Table | None = None
        self._column, self._next, self._end = "", 0, 0
        self._ahead: Iterator[Any] = iter(())

    def read(self, file: str, column: str, row: int) -> memoryview | None:
        """A cell's bytes, None where it has none. Raises DecodeError, StorageError."""
        try:
            return self._read(file, column, row)
        except BaseException as error:
            self._file = ""  # whatever was half read is not gone on with
            if isinstance(error, SourceError):
                raise DecodeError(error.message, code=error.code) from error
            raise

    def _read(self, file: str, column: str, row: int) -> memoryview | None:
        table = self._opened(file)
        if column != self._column or not self._next <= row < self._end:
            column_of(table.schema, column, file)
            if row >= table.num_rows:
                raise DecodeError(f"{file} has {table.num_rows} rows, and no row {row}", code="missing_file")
            with explained(file):
                self._ahead, self._end = table.cells(column, row)
            self._column, self._next = column, row
        with explained(f"{file}, row {row},"):
            for _ in range(row - self._next):
                next(self._ahead, None)
            cell = next(self._ahead, None)
        self._next = row + 1
        return None if cell is None else memoryview(cell)

    def _opened(self, file: str) -> Table:
        if self._table is None or file != self._file:
            self._table, self._column = None, ""
            self._table = open_table(file, self._s3)
            self._file = file
        return self._table
