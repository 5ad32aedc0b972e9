"""A Hugging Face dataset, from its files: every row of its Parquet or Arrow files is an asset, whose picture stays in the file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from datagen.errors import SourceError
from datagen.ids import asset_id_of
from datagen.job import S3Options, SourceOptions
from datagen.records import Asset, Failure
from datagen.remote import is_remote
from datagen.sources.columns import count, not_read
from datagen.sources.files import Files
from datagen.sources.listing import count_file
from datagen.sources.rows import RowReader, fill, plain, version_of_file
from datagen.sources.uris import inside, inside_uri, uri_of
from datagen.sources.values import bounded
from datagen.tables import TABLE_SUFFIXES, BadRow, cell_name, column_of, explained, open_table

# Columns with a meaning. Not a manifest's shorthands: in a dataset `box` or `labels` may be anything.
_COLUMNS = ("asset_id", "license", "prompts")
_STATE = "state.json"


class ImageTableSource:
    """Rows of the tables below a folder or prefix, file by file; a row without a picture fails when it is decoded (`no_image`).

    Where a file holds paths and no bytes, a path is what a manifest's `uri` is, with the same rules.
    `prompts`, `license` and `asset_id` are those of a manifest; all other columns pass through, without their bytes, also `prompts` that
    are none by their form. Those that look like prompts and are not read are counted in `skipped`. A row with a value
    that cannot be read is a failed asset, `manifest_bad_row`. A file that breaks off or lacks the column is one itself: `table_damaged`,
    `no_image_column`. A changed file's rows are new with `reprocess_changed`.
    """

    def __init__(self, place: str, options: SourceOptions, s3: S3Options) -> None:
        self.skipped: Counter[str] = Counter()
        self._files = Files(place, s3, TABLE_SUFFIXES)
        self._options, self._s3 = options, s3
        self._columns = tuple(name for name in _COLUMNS if name not in options.pass_through)
        self.column = self._first_column()

    def describe(self) -> str:
        """One line for a person."""
        return f"column {self.column} of the dataset {self._files.place}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when a folder cannot be listed, StorageError when a bucket refuses."""
        self.skipped.clear()
        for file in self._files:
            if not _is_table(file):
                count_file(self.skipped, file)
                continue
            uri = uri_of(file)
            try:
                yield from self._rows(file, uri)
            except SourceError as error:
                yield Asset(asset_id_of(uri), uri, failure=Failure(error.code, plain(error.message)))
        self.skipped.update(self._files.skipped)

    def _first_column(self) -> str:
        """Of the first file that can be read. Raises SourceError when there is none."""
        problem = SourceError(f"there is no {' or '.join(TABLE_SUFFIXES)} file below {self._files.place}")
        for file in filter(_is_table, self._files):
            try:
                return column_of(open_table(file, self._s3).schema, self._options.image_column, file)
            except SourceError as error:
                problem = error
                if error.code == "no_image_column":
                    break
        raise problem

    def _rows(self, file: str, uri: str) -> Iterator[Asset]:
        if inside(uri):
            raise SourceError(f"{uri}: its name reads as that of a cell of a table; rename it", code="unsupported_uri")
        table, version = open_table(file, self._s3), ""
        column_of(table.schema, self.column, file)
        if self._options.reprocess_changed:
            version = version_of_file(file, self._s3)
        rows, paths = bounded(table.rows(), table.schema), RowReader.of(file, self._options, self._s3)
        for number in range(table.num_rows):
            with explained(f"{file}, row {number},"):
                row = next(rows, None)
            if row is None:
                raise SourceError(f"{file} announces {table.num_rows} rows and has {number}", code="table_damaged")
            cell = inside_uri(uri, cell_name(self.column, number))
            if isinstance(row, BadRow):
                yield Asset(asset_id_of(cell, version), cell, failure=Failure(row.code, f"{cell}: {plain(row.message)}"))
                continue
            picture = row.pop(self.column, None)
            path = picture.get("path") if isinstance(picture, dict) else None
            is_path = path and table.is_path(self.column, number)
            asset = paths.located(str(path), cell) if is_path else Asset(asset_id_of(cell, version), cell)
            given = fill(asset, row, cell, self._columns, passed=self._options.pass_through, lenient=True)
            count(self.skipped, not_read(row, given, self._options.pass_through, self._columns))
            if path:
                asset.extra.setdefault(f"{self.column}_path", plain(path))
            yield asset


def _is_table(file: str) -> bool:
    """Whether a file holds rows of the dataset: its tables, without what `datasets` keeps beside those of save_to_disk."""
    if not file.lower().endswith(TABLE_SUFFIXES):
        return False
    listed = None if is_remote(file) or not file.lower().endswith(".arrow") else _listed_files(os.path.dirname(file))
    return listed is None or os.path.basename(file) in listed


def _listed_files(folder: str) -> frozenset[str] | None:
    """The files that the state of a folder written by save_to_disk names; None where there is no such state."""
    try:
        state = json.loads((Path(folder) / _STATE).read_text(encoding="utf-8"))
        return frozenset(str(entry["filename"]) for entry in state["_data_files"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{folder}/{_STATE} cannot be read: {error!r}. Copy the dataset again", code="table_damaged") from error
