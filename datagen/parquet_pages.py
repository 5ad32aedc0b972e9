"""Parquet read in pieces of bounded memory, whatever its pages unpack to.

A few kilobytes of Parquet can stand for gigabytes: a dictionary with one long text for all rows, runs of repeated values, pages that
compress a thousandfold. Texts are therefore kept as dictionaries until they are looked at, and what the footer announces out of all
proportion is refused before a page is read. (A footer that lies is caught by nothing here: Arrow believes the pages.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datagen.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_ROW_BYTES = 64 << 20
_SLICE_BYTES = 16 << 20
_VALUES_AT_ONCE = 1 << 20
_CALM_BYTES = 64 << 20  # what a column of a row group may unpack to without a look at proportions
_MAX_RATIO = 1000
_CALM_VALUES = 16 << 20
_MAX_VALUES_PER_BYTE = 4096


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """A Parquet file whose texts are read as dictionaries. source: a path or file. Raises what Arrow does."""
    import pyarrow.parquet as pq

    plain = pq.ParquetFile(source, **options)
    texts = _texts(plain.schema)
    if not texts:
        return plain
    if isinstance(source, str):
        plain.close()
    return pq.ParquetFile(source, read_dictionary=texts, metadata=plain.metadata, **options)


def _texts(schema: Any) -> list[str]:
    leaves = (schema.column(index) for index in range(len(schema)))
    return [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "STRING"]


def batches(file: pq.ParquetFile, rows_at_once: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """All rows as small batches, row group by row group. columns: names or paths of leaves, or what begins them; None: all.

    Raises SourceError (`table_too_large`) for a row group whose columns unpack out of all proportion.
    """
    for group in range(file.num_row_groups):
        most = check_group(file, group, columns)
        rows = max(1, min(rows_at_once, file.metadata.row_group(group).num_rows * _VALUES_AT_ONCE // max(1, most)))
        yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False)


def check_group(file: pq.ParquetFile, group: int, columns: Sequence[str] | None = None) -> int:
    """The most values of a column in a row group. Raises SourceError (`table_too_large`)."""
    found, most = file.metadata.row_group(group), 0
    for index in range(found.num_columns):
        chunk = found.column(index)
        if columns is not None and not any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns):
            continue
        packed, unpacked, values = max(1, chunk.total_compressed_size), chunk.total_uncompressed_size, chunk.num_values
        if unpacked > max(_CALM_BYTES, _MAX_RATIO * packed):
            raise _too_large(chunk, group, f"{packed} bytes of it unpack to {unpacked}")
        if values > max(_CALM_VALUES, _MAX_VALUES_PER_BYTE * packed):
            raise _too_large(chunk, group, f"{packed} bytes of it are {values} values")
        most = max(most, values)
    return most


def _too_large(chunk: Any, group: int, why: str) -> SourceError:
    message = f"column {chunk.path_in_schema} of row group {group} is out of all proportion: {why}; write it anew in smaller row groups"
    return SourceError(message, code="table_too_large")


def sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in slices of a few MiB when its texts are written out; a row that is more stands alone."""
    start, total = 0, 0
    for row, size in enumerate(row_bytes(batch)):
        if total and total + size > _SLICE_BYTES:
            yield batch.slice(start, row - start)
            start, total = row, 0
        total += size
    if start < batch.num_rows:
        yield batch.slice(start)


def row_bytes(batch: pa.RecordBatch) -> list[int]:
    """Bytes of every row's texts and lists when they are written out, roughly."""
    import numpy as np

    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes += _sizes(column)
    return sizes.tolist()  # type: ignore[no-any-return]


def _sizes(array: pa.Array) -> Any:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = _sizes(array.dictionary)
        taken = pc.fill_null(array.indices, 0).to_numpy(zero_copy_only=False)
        present = array.is_valid().to_numpy(zero_copy_only=False)
        return lengths[taken] * present if len(lengths) else np.zeros(len(array), np.int64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_struct(kind):
        return sum((_sizes(array.field(index)) for index in range(kind.num_fields)), np.zeros(len(array), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = array.offsets.to_numpy()
        inner = np.concatenate([[0], np.cumsum(_sizes(array.values))])
        return inner[offsets[1:]] - inner[offsets[:-1]]
    return np.full(len(array), 8, np.int64)
