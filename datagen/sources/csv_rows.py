"""Rows of a CSV file. What would lose rows or columns is an error with the line: an open quote, a doubled column, another separator."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

from datagen.errors import SourceError
from datagen.sources.columns import refuse_doubled, refuse_without_uri
from datagen.sources.uris import media_type_of
from datagen.sources.values import ROW_TOO_LARGE
from datagen.tables import BadRow, Row

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_INDEX = "Unnamed: 0"
_TOO_LONG = "\0\n"  # stands for a line that was not read


class _Lines:
    """Lines of text for the csv module, with what is known of the record at hand.

    number: of the line read last, counted from 1; line: this line. first: number of the record's first line; later: its other lines.
    """

    def __init__(self, text: io.TextIOWrapper, path: str, max_chars: int) -> None:
        self._text, self._path, self._max_chars = text, path, max_chars
        self.number, self.first, self.is_too_long = 0, 1, False
        self.line, self.later = "", list[str]()
        self._chars = 0

    def begin(self) -> None:
        """A new record begins."""
        self.first, self.is_too_long, self._chars = self.number + 1, False, 0
        self.later.clear()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._max_chars + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._chars += len(line)
        if self._chars > self._max_chars:
            if self.number > self.first:
                raise SourceError(
                    f"{self._path}, line {self.first}: a quote that opens here is not closed within {self._max_chars} characters"
                )
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(self._max_chars)
            self.is_too_long = True
            return _TOO_LONG
        self.line = line
        if self.number > self.first:
            self.later.append(line)
        return line


def csv_rows(path: str, source: BinaryIO, max_chars: int) -> Iterator[tuple[int, Row]]:
    """(number, row) of every row that is not blank (nor has separators alone), counted from 1 behind the header.

    max_chars: of one record; a longer row is refused.

    Raises SourceError, with the line, for a file that is not read as it is meant.
    """
    csv.field_size_limit(max_chars)  # the module's own limit, 128 Ki, is less than a large mask
    # surrogateescape keeps the bytes of a file name that is not UTF-8.
    lines = _Lines(io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline=""), path, max_chars)
    try:
        reader = csv.reader(lines, strict=True)
        header = _header(path, _first(path, reader, lines))
        number = 0
        while True:
            lines.begin()
            row: Row | None
            try:
                fields = next(reader)
                row = _row(header, fields, lines) if any(fields) else None
            except StopIteration:
                return
            except csv.Error as error:
                row = _broken(path, lines, error)
            if row is not None:
                if isinstance(row, dict):
                    _refuse_swallowed(path, header, lines)
                number += 1
                yield number, row
    except OSError as error:
        raise SourceError(f"{path} cannot be read as CSV: {error}") from error
    except csv.Error as error:
        raise SourceError(f"{path}, line {lines.first}: it cannot be read as CSV: {error}") from error


def _first(path: str, reader: Iterator[list[str]], lines: _Lines) -> list[str]:
    try:
        return next((fields for fields in reader if fields), [])  # blank lines may stand before the header
    except csv.Error:
        _refuse_other_separators(path, lines.line.strip())
        raise


def _refuse_other_separators(path: str, line: str) -> None:
    other = next((mark for mark in _OTHER_SEPARATORS if "uri" in [name.strip().strip('"') for name in line.split(mark)]), None)
    if other:
        raise SourceError(f"{path}, line 1: columns are separated by {_OTHER_SEPARATORS[other]}; write commas")


def _header(path: str, header: list[str]) -> list[str]:
    if any("\udc80" <= character <= "\udcff" for name in header for character in name):
        raise SourceError(f"{path}, line 1: a column's name is not UTF-8; save the file as UTF-8")
    if header and "uri" not in header:
        other = next(
            (mark for mark in _OTHER_SEPARATORS if "uri" in [name.strip().strip('"') for name in ",".join(header).split(mark)]), None
        )
        if other:
            raise SourceError(f"{path}, line 1: columns are separated by {_OTHER_SEPARATORS[other]}; write commas")
        if header[0].strip().lower().startswith("sep="):
            raise SourceError(
                f"{path}, line 1: {header[0]!r} is for a spreadsheet; begin with the names of the columns, separated by commas"
            )
        refuse_without_uri(path, header)
    if len(header) > 1 and not header[0]:  # what pandas writes its index under, and how it calls it when it reads it
        header = [_INDEX, *header[1:]]
    refuse_doubled(f"{path}, line 1,", [name for name in header if name])
    return header


def _row(header: list[str], fields: list[str], lines: _Lines) -> Row:
    if lines.is_too_long:
        return BadRow("its line is too long to be read", ROW_TOO_LARGE)
    if len(fields) != len(header):
        return BadRow(f"{len(fields)} fields under a header of {len(header)} in line {lines.first}; quote a field that holds a comma")
    row = {name: field or None for name, field in zip(header, fields, strict=True) if name}
    for name, field in zip(header, fields, strict=True):
        if not name and field:
            return BadRow(f"the value {field[:40]!r} in line {lines.first} stands under no name of a column")
        if name != "uri" and not field.isascii() and any("\udc80" <= character <= "\udcff" for character in field):
            return BadRow(f"the column `{name}` in line {lines.first} is not UTF-8; save the file as UTF-8")
    return row


def _broken(path: str, lines: _Lines, error: csv.Error) -> BadRow:
    """A record that is not CSV costs itself, unless it took other lines with it. Raises SourceError."""
    if "unexpected end of data" in str(error) or lines.number > lines.first:
        where = "never closed" if "unexpected end" in str(error) else f"closed in line {lines.number} in the middle of a field ({error})"
        raise SourceError(
            f'{path}, line {lines.first}: a quote that opens here is {where}; write a quote inside of a field as ""'
        ) from error
    return BadRow(f"line {lines.first} is not CSV: {error}", ROW_TOO_LARGE if "field larger" in str(error) else "manifest_bad_row")


def _refuse_swallowed(path: str, header: list[str], lines: _Lines) -> None:
    """Raises SourceError where a field of several lines holds what reads as rows: its quote was most likely meant to be a character."""
    at = header.index("uri") if "uri" in header else 0
    for line in lines.later:
        fields = line.strip().split(",")
        if len(fields) == len(header) and media_type_of(fields[at].strip('" ')) != "other":
            raise SourceError(
                f"{path}, line {lines.first}: a quote that opens here is closed in line {lines.number} only, and what lies between "
                f'reads as rows ({line.strip()[:40]!r}); close it, or write a quote inside of a field as ""'
            )
