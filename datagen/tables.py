"""Tables with pictures in a column, as Hugging Face datasets are stored: Parquet, and the Arrow files of `save_to_disk`.

A picture is a struct of `bytes` and `path`, or a column of plain bytes. Listing reads everything but bytes, decoding the bytes of one
column in the order of rows; of neither more than a few pages are in memory.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from datagen.errors import SourceError
from datagen.job import S3Options
from datagen.parquet_pages import MAX_ROW_BYTES, batches, check_group, open_parquet, row_bytes, sliced
from datagen.remote import is_remote, open_file

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".parquet", ".arrow")

_BUFFER_BYTES = 4 << 20
_ROWS_AT_ONCE = 256
_CELLS_AT_ONCE = 1  # one value of a dictionary may be a picture of any size, and stand in every row
# What libraries of time zones, dates and numbers have to say of a value that they do not know; a text that is no UTF-8 is a ValueError.
_UNKNOWN = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, ImportError)
_CELL = re.compile(r"(.+)\[([0-9]{1,15})\]", re.DOTALL)


@dataclass(frozen=True)
class BadRow:
    """A row of a table or manifest that cannot be read, and why. code: that of its failure."""

    message: str
    code: str = "manifest_bad_row"


Row = dict[str, Any] | BadRow


class Table(Protocol):
    """One open file. schema: Arrow's. num_rows: in it."""

    schema: pa.Schema
    num_rows: int

    def rows(self) -> Iterator[Row]:
        """All rows without what is bytes, in order."""

    def is_path(self, column: str, row: int) -> bool:
        """Whether a picture is known to have no bytes, so that its path is all there is."""

    def cells(self, column: str, first: int) -> tuple[Iterator[pa.Buffer | None], int]:
        """The pictures of a column from row `first` on, and the row before which they end. None: there are no bytes."""


@contextmanager
def explained(file: str) -> Iterator[None]:
    """Raises SourceError (`table_damaged`) for what Arrow has to say of a file, and for one that cannot be read."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"there is no file {file}", code="missing_file") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for the name of a column
        raise SourceError(f"{file} cannot be read as a table: {error}", code="table_damaged") from error


def open_table(file: str, s3: S3Options) -> Table:
    """A `.parquet` or `.arrow` file, by path or URI. Raises SourceError, StorageError."""
    with explained(file):
        if not file.lower().endswith(".arrow"):
            return _ParquetTable(file, s3)
        if not is_remote(file):
            return _ArrowTable(file)
    how = "copy the folder here, or write the dataset as Parquet (to_parquet, push_to_hub)"
    raise SourceError(
        f"{file} is of a dataset that save_to_disk wrote, which is read from a local folder only: {how}", code="unsupported_uri"
    )


def batch_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    """The rows of a record batch. A text that is not UTF-8 costs its row alone; a time, date or zone that Python does not know is text.

    Neither Parquet nor Arrow promises that there is none.
    """

    for part in sliced(batch):
        if part.num_rows == 1 and row_bytes(part)[0] > MAX_ROW_BYTES:
            yield BadRow(f"it has more than {MAX_ROW_BYTES} bytes", "row_too_large")
        else:
            yield from _small_rows(part)


def _small_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    import pyarrow as pa

    try:
        rows: list[Row] = batch.to_pylist()
    except (*_UNKNOWN, pa.ArrowException):
        rows = [_row(batch, index) for index in range(batch.num_rows)]
    yield from rows


def _row(batch: pa.RecordBatch, index: int) -> Row:
    try:
        return {name: _value(batch.column(place)[index]) for place, name in enumerate(batch.schema.names)}
    except UnicodeDecodeError as error:
        return BadRow(f"a text in it is not UTF-8: {error}")


def _value(scalar: pa.Scalar) -> Any:
    """What a value is in Python, and what has no such type as text. Raises UnicodeDecodeError."""
    import pyarrow as pa

    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (*_UNKNOWN, pa.ArrowException):
        if isinstance(scalar, pa.StructScalar):
            return {name: _value(value) for name, value in scalar.items()}
        if isinstance(scalar, pa.ListScalar):
            return [_value(value) for value in scalar.values]
        return _text_of(scalar)


def _text_of(scalar: pa.Scalar) -> str:
    import pyarrow as pa

    kind = scalar.type
    try:
        if pa.types.is_timestamp(kind):
            text = str(pa.scalar(scalar.value, pa.timestamp(kind.unit)).cast(pa.string()).as_py())
            if "out of range" in text:
                return f"{scalar.value} {kind.unit} after 1970-01-01T00:00:00"
            return text.replace(" ", "T") + ("" if kind.tz is None else "+00:00")
        if pa.types.is_duration(kind):
            return f"{scalar.value} {kind.unit}"
        return str(scalar.cast(pa.string()).as_py())
    except pa.ArrowException:
        return f"{getattr(scalar, 'value', 'a value')} ({kind})"


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns of pictures: structs of bytes and a path that the dataset's own notes do not call something else, such as Audio."""
    kinds = _noted_kinds((schema.metadata or {}).get(b"huggingface", b"{}"))
    return [field.name for field in schema if _is_picture(field.type) and kinds.get(field.name, "Image") == "Image"]


def column_of(schema: pa.Schema, wanted: str | None, file: str) -> str:
    """The column that holds the pictures. Raises SourceError (`no_image_column`) that names what there is."""
    found, columns = image_columns(schema), ", ".join(f"{field.name} ({field.type})" for field in schema)
    if wanted:
        if wanted not in schema.names or not (_is_picture(schema.field(wanted).type) or _is_bytes(schema.field(wanted).type)):
            message = f"{file} has no column `{wanted}` of pictures (bytes, or a struct of bytes and path); found: {columns}"
            raise SourceError(message, code="no_image_column")
        return wanted
    if len(found) == 1:
        return found[0]
    if found:
        message = f"{file} has several columns of pictures: {', '.join(found)}; say which one in source.image_column"
    elif "uri" in schema.names:
        message = (
            f"{file} has a column `uri`, as manifests have, and none of pictures, as datasets have. A manifest is one file: put the tables "
            f"of several into one, and name it as the input (or set source.kind to `webdataset` where the tars beside it are meant)"
        )
    else:
        message = (
            f"{file} has no column of pictures (a struct of bytes and path, as Hugging Face datasets have it), and is no manifest, which "
            f"has a column `uri`; found: {columns}. A column of plain bytes is named in source.image_column"
        )
    raise SourceError(message, code="no_image_column")


def _noted_kinds(notes: bytes) -> dict[str, Any]:
    """Column -> feature type, as `datasets` notes it in a schema; nothing where the notes are of another form."""
    try:
        features = json.loads(notes)["info"]["features"]
        return {name: feature.get("_type", "a struct") for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def cell_name(column: str, row: int) -> str:
    """How a cell is written behind the `#` of a URI."""
    return f"{column}[{row}]"


def parse_cell(name: str) -> tuple[str, int]:
    """Column and row of what cell_name wrote. Raises SourceError (`unsupported_uri`)."""
    match = _CELL.fullmatch(name)
    if not match:
        raise SourceError(f"{name!r} names no cell of a table; write COLUMN[ROW], such as image[17]", code="unsupported_uri")
    return match[1], int(match[2])


class _ParquetTable:
    """Reads page by page; what a page holds is in memory at once."""

    def __init__(self, file: str, s3: S3Options) -> None:
        self._file = open_parquet(open_file(file, s3) if is_remote(file) else file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        self.schema, self.num_rows = self._file.schema.to_arrow_schema(), self._file.metadata.num_rows
        groups = range(self._file.num_row_groups)
        self._ends = list(accumulate(self._file.metadata.row_group(group).num_rows for group in groups))
        self._path_groups: dict[str, set[int]] = {}

    def rows(self) -> Iterator[Row]:
        leaves = (self._file.schema.column(index) for index in range(len(self._file.schema)))
        light = [leaf.path for leaf in leaves if not (leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE")]
        if not light:
            yield from ({} for _ in range(self.num_rows))
            return
        for batch in batches(self._file, _ROWS_AT_ONCE, light):
            yield from batch_rows(batch)

    def is_path(self, column: str, row: int) -> bool:
        if column not in self._path_groups:
            leaf = next((n for n in range(len(self._file.schema)) if self._file.schema.column(n).path == f"{column}.bytes"), None)
            groups = range(self._file.num_row_groups) if leaf is not None else ()
            self._path_groups[column] = {group for group in groups if self._is_null(group, leaf)}
        return bisect_right(self._ends, row) in self._path_groups[column]

    def _is_null(self, group: int, leaf: int | None) -> bool:
        found = self._file.metadata.row_group(group)
        statistics = found.column(leaf).statistics
        return statistics is not None and bool(statistics.has_null_count) and int(statistics.null_count) == int(found.num_rows)

    def cells(self, column: str, first: int) -> tuple[Iterator[pa.Buffer | None], int]:
        group = bisect_right(self._ends, first)
        wanted = [f"{column}.bytes" if _is_picture(self.schema.field(column).type) else column]
        check_group(self._file, group, wanted)
        some = self._file.iter_batches(batch_size=_CELLS_AT_ONCE, row_groups=[group], columns=wanted, use_threads=False)

        def cells() -> Iterator[pa.Buffer | None]:
            row = self._ends[group - 1] if group else 0
            for batch in some:
                for cell in _bytes_of(batch.column(0)):
                    if row >= first:
                        yield cell.as_buffer()
                    row += 1

        return cells(), self._ends[group]


class _ArrowTable:
    """A mapped file: what is not looked at is not read."""

    def __init__(self, file: str) -> None:
        import pyarrow as pa

        source = pa.memory_map(os.fsencode(file))  # a name may be no text
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        else:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            self._batches = list(reader)
        self.schema = reader.schema
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self.num_rows = self._ends[-1] if self._ends else 0

    def rows(self) -> Iterator[Row]:
        import pyarrow as pa

        for batch in self._batches:
            columns = {name: _without_bytes(batch.column(name)) for name in batch.schema.names}
            light = pa.record_batch({name: array for name, array in columns.items() if array is not None})
            if not light.num_columns:
                yield from ({} for _ in range(batch.num_rows))
            for start in range(0, light.num_rows, _ROWS_AT_ONCE):
                yield from batch_rows(light.slice(start, _ROWS_AT_ONCE))

    def is_path(self, column: str, row: int) -> bool:
        array = self._from(column, row)[0]
        return _is_picture(array.type) and not array.field("bytes")[0].is_valid

    def cells(self, column: str, first: int) -> tuple[Iterator[pa.Buffer | None], int]:
        array, end = self._from(column, first)
        return (cell.as_buffer() for cell in _bytes_of(array)), end

    def _from(self, column: str, first: int) -> tuple[pa.Array, int]:
        """What a column has from a row on, in its batch, and the row before which that ends."""
        number = bisect_right(self._ends, first)
        batch = self._batches[number]
        return batch.column(column).slice(first - (self._ends[number] - batch.num_rows)), self._ends[number]


def _bytes_of(array: pa.Array) -> Iterator[Any]:
    """Binary scalars of a column of pictures; those of a null struct are null, too."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(array.type):
        array = pc.struct_field(array, "bytes")
    return iter(array)


def _without_bytes(array: pa.Array) -> pa.Array | None:
    import pyarrow as pa

    if _is_bytes(array.type):
        return None
    if pa.types.is_struct(array.type):
        fields = {array.type.field(index).name: _without_bytes(array.field(index)) for index in range(array.type.num_fields)}
        kept = {name: field for name, field in fields.items() if field is not None}
        return pa.StructArray.from_arrays(list(kept.values()), list(kept)) if kept else None
    return None if _has_bytes(array.type) else array


def _has_bytes(kind: pa.DataType) -> bool:
    return _is_bytes(kind) or any(_has_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_picture(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return False
    types = {kind.field(index).name: kind.field(index).type for index in range(kind.num_fields)}
    return set(types) == {"bytes", "path"} and _is_bytes(types["bytes"])
