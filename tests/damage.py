"""Damage to a dataset, for tests that it is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.job import WriteOptions
from datagen.write.seals import parquet_bytes

Change = Callable[[pa.Table], pa.Table]


def part_file(root: Path, table: str, part_id: str) -> Path:
    return root / table / f"part-{part_id}.parquet"


def rewrite(path: Path, change: Change) -> None:
    """Put `change(table)` in the place of a part."""
    path.write_bytes(parquet_bytes(change(pq.ParquetFile(path).read()), WriteOptions()))


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def change_row(name: str, make: Callable[[Any], Any], row: int = 0) -> Change:
    """A change of one row's value in a column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = make(values[row])
        return with_column(table, name, values)

    return change
