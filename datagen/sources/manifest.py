"""A manifest: one row per asset, in Parquet, JSON lines or CSV, read as a stream."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from datagen.errors import SourceError
from datagen.job import S3Options, SourceOptions
from datagen.records import Asset
from datagen.sources.rows import COLUMNS, RowReader, absolute, open_source_file
from datagen.tables import BadRow, Row, batch_rows

_ROWS_PER_BATCH = 1024
_ROWS_PEEKED = 100
_CSV_FIELD_CHARS = 2**27


class ManifestSource:
    """Rows of a manifest, in file order; every row becomes exactly one asset, a bad one with its failure.

    Columns: `uri` (required), `asset_id`, `license`, `prompts`, or `box` / `points` / `labels` for a single prompt; all others
    pass through. An `asset_id` given here is kept as it is, also with `reprocess_changed`.
    """

    def __init__(self, path: str, options: SourceOptions, s3: S3Options) -> None:
        readers: dict[str, Callable[[str, BinaryIO], Iterator[tuple[int, Row]]]] = {
            ".parquet": _parquet_rows,
            ".jsonl": _jsonl_rows,
            ".csv": _csv_rows,
        }
        suffix = Path(path).suffix.lower()
        if suffix not in readers:
            raise SourceError(f"{path} is no manifest by its name; allowed: {', '.join(readers)}")
        self.path = absolute(path)
        self.skipped: Counter[str] = Counter()
        self._rows_of = readers[suffix]
        self._s3 = s3
        self._reader = RowReader.of(self.path, options, s3)
        with closing(self._rows()) as rows:
            _check_columns(self.path, itertools.islice(rows, _ROWS_PEEKED))

    def describe(self) -> str:
        """One line for a person."""
        return f"rows of the manifest {self.path}, relative URIs from {self._reader.roots.root}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when the file itself breaks off."""
        return self._reader.assets(self._rows(), self._reader.asset)

    def _rows(self) -> Generator[tuple[int, Row]]:
        try:
            file = open_source_file(self.path, self._s3)
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error.strerror}") from error
        with file:
            yield from self._rows_of(self.path, file)


def _check_columns(path: str, rows: Iterable[tuple[int, Row]]) -> None:
    columns: dict[str, None] = {}
    for _, row in rows:
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
    if not columns or "uri" in columns:
        return
    nearest = difflib.get_close_matches("uri", columns, n=1)
    hint = f"rename `{nearest[0]}` to `uri`" if nearest else "name the column with the files' paths `uri`"
    if path.lower().endswith(".parquet"):
        hint += "; or name a column that holds the pictures themselves, as bytes, in source.image_column"
    raise SourceError(
        f"{path} has no column `uri`; found: {', '.join(columns)}; known: {', '.join(COLUMNS)}, any other passes through. {hint}"
    )


def _parquet_rows(path: str, source: BinaryIO) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(source) as file:
            if "uri" not in file.schema_arrow.names:
                _check_columns(path, [(0, dict.fromkeys(file.schema_arrow.names))])
            for batch in file.iter_batches(batch_size=_ROWS_PER_BATCH):
                for row in batch_rows(batch):
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for the name of a column
        raise SourceError(f"{path} cannot be read as Parquet after row {number}: {error}") from error


def _jsonl_rows(path: str, source: BinaryIO) -> Iterator[tuple[int, Row]]:
    try:
        for number, line in enumerate(source, start=1):
            if line.strip():
                yield number, _json_row(line)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return BadRow(f"not JSON: {error}")
    return row if isinstance(row, dict) else BadRow(f"a row is a JSON object, found {type(row).__name__}")


def _csv_rows(path: str, source: BinaryIO) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_CSV_FIELD_CHARS)  # the module's own limit, 128 Ki, is less than a large mask
    try:
        # surrogateescape keeps the bytes of a file name that is not UTF-8.
        lines = csv.reader(io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline=""))
        header = next(lines, [])
        if header and "uri" not in header:
            _check_columns(path, [(0, dict.fromkeys(header))])
        for number, fields in enumerate((fields for fields in lines if fields), start=1):
            yield number, _csv_row(header, fields)
    except (OSError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}") from error


def _csv_row(header: list[str], fields: list[str]) -> Row:
    if len(fields) != len(header):
        return BadRow(f"{len(fields)} fields under a header of {len(header)}; quote a field that holds a comma")
    return {name: field or None for name, field in zip(header, fields, strict=True)}
