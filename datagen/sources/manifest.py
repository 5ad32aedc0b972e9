"""A manifest: rows in Parquet, JSON lines or CSV, read as a stream; those of one file become one asset."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from datagen.errors import SourceError
from datagen.job import S3Options, SourceOptions
from datagen.parquet_pages import batches, open_parquet
from datagen.records import Asset
from datagen.sources.columns import ASKING, count, nested, refuse_doubled, refuse_unread, refuse_without_uri
from datagen.sources.csv_rows import csv_rows
from datagen.sources.joining import assets_of, grouped, key_of, repeated
from datagen.sources.rows import RowReader, absolute, open_source_file
from datagen.sources.uris import media_type_of
from datagen.sources.values import ROW_TOO_LARGE, bounded, parse_json
from datagen.tables import BadRow, Row, batch_rows

MAX_ROW_BYTES = 64 << 20
"""A row of JSON lines or CSV that is longer is not read."""

_ROWS_PER_BATCH = 1024
_ROWS_PEEKED = 100
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class ManifestSource:
    """Rows of a manifest, in file order. Rows of one file and one id are joined where the last of them stands, a bad row is a failure.

    Columns: `uri` (required), `asset_id`, `license`, `prompts`, or for a single prompt `box`, `points` with `labels`, `mask`, and of a
    video `frame` or `time_s`, and `object_id`; all others pass through. Columns that look like prompts and are none of these stop the job,
    unless `source.pass_through` names them; those that hold such further in are counted in `skipped`, where a row has no prompts. An
    `asset_id` given here is kept as it is, also with `reprocess_changed`.
    """

    def __init__(self, path: str, options: SourceOptions, s3: S3Options) -> None:
        readers: dict[str, Callable[[str, BinaryIO, bool], Iterator[tuple[int, Row]]]] = {
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
        self._passed = options.pass_through
        self._reader = RowReader.of(self.path, options, s3)
        with closing(self._rows()) as rows:
            self._check_columns(itertools.islice(rows, _ROWS_PEEKED))

    def describe(self) -> str:
        """One line for a person."""
        return f"rows of the manifest {self.path}, relative URIs from {self._reader.roots.root}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when the file itself breaks off, or is not read as it is meant."""
        counts = repeated(key_of(row) for _, row in self._check_each(self._rows(keys_only=True)))
        self.skipped.clear()
        groups = ((0, rows) for rows in grouped(self._note_nested(self._rows()), counts))
        yield from chain.from_iterable(self._reader.assets(groups, lambda rows, _: assets_of(self._reader, rows)))

    def _note_nested(self, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
        """The same rows; in `skipped` what of them holds boxes of other tools, where they ask for nothing else."""
        for number, row in rows:
            if isinstance(row, dict) and all(row.get(name) in (None, "", []) for name in ASKING):
                count(self.skipped, nested(row, self._passed))
            yield number, row

    def _rows(self, keys_only: bool = False) -> Generator[tuple[int, Row]]:
        try:
            file = open_source_file(self.path, self._s3)
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read: {error.strerror}") from error
        with file:
            yield from self._rows_of(self.path, file, keys_only)

    def _check_columns(self, rows: Iterator[tuple[int, Row]]) -> None:
        names = dict.fromkeys(name for _, row in self._check_each(rows) for name in (row if isinstance(row, dict) else ()))
        refuse_without_uri(self.path, names)

    def _check_each(self, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
        """The same rows. Raises SourceError where a column looks like a prompt and is not read."""
        checked: set[tuple[bool, tuple[str, ...]]] = set()
        for number, row in rows:
            if isinstance(row, dict):
                uri = row.get("uri")
                is_video, names = isinstance(uri, str) and media_type_of(uri, self._reader.media) == "video", tuple(row)
                if (is_video, names) not in checked:
                    checked.add((is_video, names))
                    refuse_unread(f"row {number} of {self.path}", names, self._passed, video=is_video)
            yield number, row


def _parquet_rows(path: str, source: BinaryIO, keys_only: bool) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa

    number = 0
    try:
        with open_parquet(source) as file:
            names = file.schema_arrow.names
            refuse_without_uri(path, dict.fromkeys(names) if names else {"nothing": None})
            refuse_doubled(path, names)
            columns = [name for name in names if name in ("uri", "asset_id")] if keys_only else None
            for batch in batches(file, _ROWS_PER_BATCH, columns):
                for row in bounded(batch_rows(batch), batch.schema):
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for the name of a column
        raise SourceError(f"{path} cannot be read as Parquet after row {number}: {error}") from error


def _jsonl_rows(path: str, source: BinaryIO, keys_only: bool) -> Iterator[tuple[int, Row]]:
    try:
        for number, line in enumerate(iter(partial(source.readline, MAX_ROW_BYTES + 1), b""), start=1):
            if number == 1:
                _refuse_utf16(path, line)
            if len(line) > MAX_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = source.readline(MAX_ROW_BYTES)
                yield number, BadRow(f"its line has more than {MAX_ROW_BYTES} bytes", ROW_TOO_LARGE)
            elif line.strip():
                yield number, _json_row(line)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _json_row(line: bytes) -> Row:
    try:
        row = parse_json(line.decode("utf-8-sig"))
    except ValueError as error:
        return BadRow(str(error) if hasattr(error, "code") else f"not JSON: {error}", getattr(error, "code", "manifest_bad_row"))
    return row if isinstance(row, dict) else BadRow(f"a row is a JSON object, found {type(row).__name__}")


def _csv_rows(path: str, source: BinaryIO, keys_only: bool) -> Iterator[tuple[int, Row]]:
    _refuse_utf16(path, source.read(2))
    source.seek(0)
    return csv_rows(path, source, MAX_ROW_BYTES)


def _refuse_utf16(path: str, start: bytes) -> None:
    if start.startswith(_UTF16):
        raise SourceError(f"{path}, line 1: it is UTF-16; save the file as UTF-8")
