"""The tables' contract: schemas/*.json as Arrow schemas, and rows held to them. Nothing here ever infers a type."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.errors import SchemaError
from datagen.share import share_path

TABLES = ("assets", "regions", "tracks", "clips")
SCHEMA_VERSION = 2  # of all tables: what new datasets are written in
READABLE_VERSIONS = (1, 2)
SCHEMA_KEY = b"datagen.schema"
ROW_IDS = {"assets": "asset_id", "regions": "region_id", "tracks": "track_id", "clips": "clip_id"}

_SCALARS = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "timestamp[us, tz=UTC]": pa.timestamp("us", tz="UTC"),
}


_NUMBERS = (pa.int32(), pa.float32())


@cache
def arrow_schema(name: str, *, optional: bool = False, version: int = SCHEMA_VERSION) -> pa.Schema:
    """Arrow schema of a table (`assets`, `regions`, `tracks`, `clips`); its metadata says which version: `datagen.schema` = `assets.v2`.

    optional: with the columns that a table has only when its job asks for them; of all parts of a dataset, or of none.
    """
    columns = [_field(column) for column in columns_of(name, version) if optional or not column.get("optional")]
    return pa.schema(columns, metadata={SCHEMA_KEY: schema_title(name, version).encode()})


def schema_title(name: str, version: int = SCHEMA_VERSION) -> str:
    """What a part of a table says of its schema, such as `assets.v2`."""
    return f"{name}.v{version}"


def optional_columns(name: str) -> list[str]:
    """The columns of a table that are absent unless the job asks for them."""
    return [column["name"] for column in columns_of(name) if column.get("optional")]


@cache
def columns_of(name: str, version: int = SCHEMA_VERSION) -> list[dict[str, Any]]:
    """The columns of a table as schemas/ describes them. Raises SchemaError when there is no such table."""
    if name not in TABLES:
        raise SchemaError(f"there is no table {name!r}; tables are {', '.join(TABLES)}")
    path = share_path(f"schemas/{schema_title(name, version)}.json")
    columns: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["columns"]
    return columns


def table_from_rows(name: str, rows: Iterable[Mapping[str, Any]], version: int = SCHEMA_VERSION) -> pa.Table:
    """Rows as a table of exactly the contract's columns and types, in the order given; its optional ones when the first row has them.

    Raises SchemaError naming the row, the column, what was found and what is expected; nothing is converted except integers to
    float columns, NumPy scalars, and one-dimensional NumPy arrays of a list's own type.
    """
    rows = list(rows)
    optional = any(column in rows[0] for column in optional_columns(name)) if rows else False
    schema, checks = arrow_schema(name, optional=optional, version=version), _row_checks(name, optional, version)
    for row in rows:
        _check_row(name, row, checks)
    return pa.table([pa.array([row[field.name] for row in rows], type=field.type) for field in schema], schema=schema)


def _field(column: Mapping[str, Any]) -> pa.Field:
    return pa.field(column["name"], _type(column["type"], column.get("fields", ())), nullable=column["nullable"])


def _type(text: str, fields: Iterable[Mapping[str, Any]]) -> pa.DataType:
    if text == "struct":
        return pa.struct([_field(column) for column in fields])
    if text.startswith("list<"):
        # `element` is Parquet's own name for it, so that a file read back has exactly this schema.
        return pa.list_(pa.field("element", _type(text.removeprefix("list<").removesuffix(">"), fields), nullable=False))
    return _SCALARS[text]


class _Misfit(Exception):
    """A value that is not what its column holds; `path` is where inside the column."""

    def __init__(self, path: str, found: Any, expected: str) -> None:
        super().__init__(path)
        self.path, self.found, self.expected = path, found, expected


_Check = Callable[[Any, str], None]


def _check_row(name: str, row: Mapping[str, Any], checks: Mapping[str, _Check]) -> None:
    try:
        _check_keys(row, checks, "")
        for column, check in checks.items():
            check(row[column], column)
    except _Misfit as misfit:
        row_id = row.get(ROW_IDS[name])
        found = f"{type(misfit.found).__name__} {misfit.found!r}"[:200]
        asset_id = row.get("asset_id")
        raise SchemaError(
            f"{name} row {row_id!r}, column {misfit.path}: found {found}, expected {misfit.expected}",
            asset_id=asset_id if isinstance(asset_id, str) else None,
        ) from misfit


def _check_keys(value: Mapping[str, Any], known: Mapping[str, Any], path: str) -> None:
    if value.keys() != known.keys():
        for key in known:
            if key not in value:
                raise _Misfit(path + key, None, "a value, but the column is missing")
        extra = next(key for key in value if key not in known)
        raise _Misfit(path + str(extra), value[extra], f"no such column; there are {', '.join(known)}")


@cache
def _row_checks(name: str, optional: bool, version: int) -> dict[str, _Check]:
    return {field.name: _check_of(field) for field in arrow_schema(name, optional=optional, version=version)}


def _check_of(field: pa.Field) -> _Check:
    check, expected = _check_of_type(field.type), str(field.type)

    def nullable(value: Any, path: str) -> None:
        if value is not None:
            check(value, path)

    def required(value: Any, path: str) -> None:
        if value is None:
            raise _Misfit(path, value, f"{expected}, never null")
        check(value, path)

    return nullable if field.nullable else required


def _check_of_type(kind: pa.DataType) -> _Check:
    if pa.types.is_struct(kind):
        return _struct_check(kind)
    if pa.types.is_list(kind):
        return _list_check(kind)
    if pa.types.is_integer(kind):
        return _integer_check(kind)
    return _SCALAR_CHECKS[kind]


def _struct_check(kind: pa.DataType) -> _Check:
    checks = {kind.field(i).name: _check_of(kind.field(i)) for i in range(kind.num_fields)}

    def check(value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            raise _Misfit(path, value, str(kind))
        _check_keys(value, checks, path + ".")
        for key, check_field in checks.items():
            check_field(value[key], f"{path}.{key}")

    return check


def _list_check(kind: pa.DataType) -> _Check:
    check_item = _check_of(kind.value_field)
    numbers = kind.value_type.to_pandas_dtype() if kind.value_type in _NUMBERS else None

    def check(value: Any, path: str) -> None:
        if numbers and isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == numbers:
            return  # thousands of numbers need no look at each
        if not isinstance(value, (list, tuple)):
            raise _Misfit(path, value, str(kind))
        for i, item in enumerate(value):
            check_item(item, f"{path}[{i}]")

    return check


def _integer_check(kind: pa.DataType) -> _Check:
    limit = 2 ** (kind.bit_width - 1)

    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not -limit <= value < limit:
            raise _Misfit(path, value, str(kind))

    return check


def _check_float(value: Any, path: str) -> None:
    if isinstance(value, (float, np.floating)):
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not -(2**53) <= value <= 2**53:
        raise _Misfit(path, value, "double")


def _check_text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise _Misfit(path, value, "string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _Misfit(path, value, "a string that UTF-8 can hold") from error


def _check_bool(value: Any, path: str) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise _Misfit(path, value, "bool")


def _check_time(value: Any, path: str) -> None:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise _Misfit(path, value, "a datetime with a time zone")


_SCALAR_CHECKS: dict[pa.DataType, _Check] = {
    pa.string(): _check_text,
    pa.bool_(): _check_bool,
    pa.float32(): _check_float,
    pa.float64(): _check_float,
    _SCALARS["timestamp[us, tz=UTC]"]: _check_time,
}
