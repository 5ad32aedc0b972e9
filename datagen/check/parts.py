"""Reading a part as the contract has it; what cannot be read is reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.check.report import CheckReport, Code
from datagen.write.parts import part_path
from datagen.write.schema import SCHEMA_KEY, arrow_schema, optional_columns
from datagen.write.seals import commits_in, computed_seal, seal_in
from datagen.write.store import Store

_BATCH_ROWS = 2048
_IN_MEMORY_BYTES = 64 << 20
UNREAD: tuple[Code, ...] = ("unreadable_part", "schema")
_BATCH_TRACKS = 32  # a track holds a mask per frame


def batches(store: Store, table: str, part: str, report: CheckReport) -> Iterator[list[dict[str, Any]]]:
    """The rows of a part, some at a time. Damage and a wrong schema are reported, and end it."""
    for batch in record_batches(store, table, part, report):
        yield batch.to_pylist()


def rows_of(batch: pa.RecordBatch, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of a batch as rows. A column that it is without is left out."""
    rows: list[dict[str, Any]] = batch.select([name for name in columns if name in batch.schema.names]).to_pylist()
    return rows


def record_batches(store: Store, table: str, part: str, report: CheckReport) -> Iterator[pa.RecordBatch]:
    """The same, as Arrow has them."""
    try:
        with _opened(store, part_path(table, part)) as source:
            if report.hashes is not None:
                _check_seal(source, table, part, report)
            file = pq.ParquetFile(source, page_checksum_verification=True)
            difference = _difference(file.schema_arrow, _contract(table, file.schema_arrow, report))
            if difference:
                report.add("schema", difference, table=table, part=part)
                return
            yield from file.iter_batches(_BATCH_TRACKS if table == "tracks" else _BATCH_ROWS, use_threads=False)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        report.add("unreadable_part", f"not a whole Parquet file: {error}", table=table, part=part)


@contextmanager
def _opened(store: Store, path: str) -> Iterator[pa.NativeFile]:
    """A file to be read twice, once for its hash: small ones are read once, into memory."""
    with store.open_input(path) as source:
        yield source if source.size() > _IN_MEMORY_BYTES else pa.BufferReader(source.read())


def _check_seal(source: pa.NativeFile, table: str, part: str, report: CheckReport) -> None:
    """Hold a part against the hash that it carries, the one that its commit mark has, and the one that the runs have listed."""
    metadata = pq.ParquetFile(source).metadata.metadata
    seal = seal_in(metadata)
    computed = None if seal is None else computed_seal(source, seal)
    source.seek(0)
    problem = report.hashes and report.hashes.problem(table, part, seal, commits_in(metadata))
    if seal is not None and computed != seal:
        problem = "its content is not that of the hash it carries: it was changed after it was written"
    if problem:
        report.add("changed_part", problem, table=table, part=part)
    report.num_unproven_parts += seal is None


def damage(report: CheckReport) -> int:
    """How much of what was to be read could not be; when it grew, counts of rows say nothing."""
    return sum(report.by_code[code] for code in UNREAD)


def _contract(table: str, found: pa.Schema, report: CheckReport) -> pa.Schema:
    """The columns that the part should have. With or without the optional ones, as the dataset's marker says; as found without a marker."""
    optional = report.token_logprobs
    if optional is None:
        optional = not set(optional_columns(table)).isdisjoint(found.names)
    return arrow_schema(table, optional=optional, version=report.schema_version)


def _difference(schema: pa.Schema, contract: pa.Schema) -> str:
    """In what a part's columns differ from the contract's; empty when they are the same."""
    title = contract.metadata[SCHEMA_KEY].decode()
    if schema.equals(contract):
        version = (schema.metadata or {}).get(SCHEMA_KEY, b"no version").decode("utf-8", "replace")
        return "" if version == title else f"the columns are those of {title}, but the file says {version}"
    found, wanted = ({field.name: field for field in s} for s in (schema, contract))
    missing = [f"{name} is missing" for name in wanted if name not in found]
    extra = [f"{name} is unknown" for name in found if name not in wanted]
    changed = [f"{name} is {found[name]}, not {wanted[name]}" for name in wanted if name in found and not found[name].equals(wanted[name])]
    return f"the columns are not those of {title}: " + ("; ".join(missing + extra + changed) or "they are in another order")
