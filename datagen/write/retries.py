"""Failed images that are tried again, without an instant in which one is in two parts.

Failed images are committed in parts of their own, rows of `assets` without regions. A run that tries them again first takes those parts
out of the table, whole, to `_datagen/retrying/`. From then on their images are as undone as new ones, and are done the ordinary way.
At the run's end the rows whose image was not done meanwhile (not listed, beyond --limit, out of retries) come back as a part, and
only then the part that was set aside goes. A run that is killed in between leaves this to the start of the next. So an image is at any
instant in one part or in none, and in one after every finished run; whatever is interrupted, no row is lost, for it lies in
`_datagen/retrying/` until it, or a newer one, is in the table.

How often an image was tried again is in its row (`retries`), so nothing else has to agree with the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.errors import WriteError
from datagen.job import WriteOptions
from datagen.write.done import DoneSet, done_assets, read_part
from datagen.write.parts import parquet_bytes, part_id_of, part_path
from datagen.write.schema import table_from_rows
from datagen.write.store import META, Store

ASIDE = f"{META}/retrying"


@dataclass(frozen=True)
class Retries:
    """What is done for this run's purposes, and the images to try again: asset_id -> in how many runs each has been so far."""

    done: DoneSet
    again: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def retrying(store: Store, done: DoneSet, limit: int, options: WriteOptions) -> Iterator[Retries]:
    """Failed images that were tried again less than `limit` times are not done while the context lasts.

    Call it under the lease, after restore_failed. Raises WriteError, StorageError.
    """
    parts = dict(_retryable(store, done, limit)) if limit else {}
    if not parts:
        yield Retries(done)
        return
    try:
        for part in parts:
            store.move(part_path("assets", part), f"{ASIDE}/{part}.parquet")
        again = {asset_id: retries for found in parts.values() for asset_id, retries in found.items()}
        yield Retries(done.without(again), again)
    finally:
        restore_failed(store, options)


def restore_failed(store: Store, options: WriteOptions) -> int:
    """Bring back the rows that a run set aside and did not replace; returns how many. Repeating it is harmless."""
    aside = [path for path, _ in store.list(ASIDE)]
    done, restored = done_assets(store) if aside else None, 0
    for path in aside:
        rows = _read_rows(store, path)
        if done is not None:
            rows = [row for row, is_done in zip(rows, done.contains([row["asset_id"] for row in rows]), strict=True) if not is_done]
        if rows:
            part = part_id_of(row["asset_id"] for row in rows)
            store.write(
                part_path("assets", part), parquet_bytes(table_from_rows("assets", [row | {"part_id": part} for row in rows]), options)
            )
            restored += len(rows)
        store.delete(path)
    return restored


def _retryable(store: Store, done: DoneSet, limit: int) -> Iterator[tuple[str, dict[str, int]]]:
    """The parts of failed images with one to be tried again: part -> asset_id -> retries of those."""
    for part in done.failed_parts:
        table = read_part(store, "assets", part, ["asset_id", "media_type", "retries"])
        rows = table.to_pylist()
        found = {row["asset_id"]: row["retries"] for row in rows if row["retries"] < limit}
        if found and all(row["media_type"] == "image" for row in rows):
            yield part, found


def _read_rows(store: Store, path: str) -> list[dict[str, Any]]:
    try:
        with store.open_input(path) as source:
            rows: list[dict[str, Any]] = pq.ParquetFile(source).read(use_threads=False).to_pylist()
            return rows
    except (OSError, pa.ArrowException) as error:
        message = f"{store.uri}/{path} cannot be read: {error}. It holds failed images only; delete it, and they are done again."
        raise WriteError(message) from error
