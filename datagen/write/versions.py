"""Versions of the tables' schemas: new datasets are written in the newest, and one that was begun in an older is gone on with in that.

Rows are always made as the newest version has them. For an older one they lose what it does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from datagen.ids import region_id_of, track_id_of
from datagen.write.marker import schema_version
from datagen.write.schema import SCHEMA_VERSION, columns_of, table_from_rows
from datagen.write.store import Store

_LAST_DIGITS = re.compile(r"[0-9]+$")


def table_for(store: Store, table: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows, made as the newest version has them, as a table of the version that the dataset is in. Raises SchemaError, WriteError."""
    version = schema_version(store)
    return table_from_rows(table, rows_in_version(table, rows, version), version)


def rows_in_version(table: str, rows: Iterable[Mapping[str, Any]], version: int) -> list[Mapping[str, Any]]:
    """Rows of the newest version as another has them: its columns alone, and its ids."""
    if version == SCHEMA_VERSION:
        return list(rows)
    return [_with_short_ids(_narrowed(_without_lost(row), columns_of(table, version))) for row in rows]


def region_id(asset_id: str, region_index: int, version: int) -> str:
    """The id of a region in a version of the tables."""
    return f"{asset_id}-{region_index:04d}" if version == 1 else region_id_of(asset_id, region_index)


def track_id(asset_id: str, number: int, version: int) -> str:
    """The id of an object of a video in a version of the tables."""
    return f"{asset_id}-t{number:04d}" if version == 1 else track_id_of(asset_id, number)


def track_number(asset_id: str, track: str) -> int | None:
    """The number in an object's id, of whichever version; None when it is no such id of this asset."""
    digits = track.removeprefix(f"{asset_id}-t")
    if not (digits.isascii() and digits.isdecimal()):
        return None
    number = int(digits)
    return number if track in (track_id(asset_id, number, 1), track_id(asset_id, number, 2)) else None


def _without_lost(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """v1 has no place for what an object out of sight is looked for by: its prompt is not one of the next clip's first frame."""
    if "handovers" not in row:
        return row
    return {**row, "handovers": [handover for handover in row["handovers"] if not handover["unseen_s"]]}


def _narrowed(row: Mapping[str, Any], columns: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {column["name"]: _value(row[column["name"]], column) for column in columns if column["name"] in row}


def _value(value: Any, column: Mapping[str, Any]) -> Any:
    fields = column.get("fields")
    if not fields or value is None:
        return value
    if isinstance(value, Mapping):
        return _narrowed(value, fields)
    return [_narrowed(item, fields) for item in value]


def _with_short_ids(row: dict[str, Any]) -> dict[str, Any]:
    short: dict[str, Any] = {key: _short(row[key]) for key in ("region_id", "track_id") if key in row}
    if "handovers" in row:
        short["handovers"] = [{**handover, "track_id": _short(handover["track_id"])} for handover in row["handovers"]]
    return row | short


def _short(long: str) -> str:
    return _LAST_DIGITS.sub(lambda digits: f"{int(digits[0]):04d}", long)
