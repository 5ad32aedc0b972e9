"""Failed assets that are tried again, without an instant in which one is in two parts.

Failed images, and the rows of failed videos, are committed in parts of their own. A run that tries them again first takes those parts
out of the table, whole, to `_datagen/retrying/`, and so the failed last clip of a video. From then on the assets are as undone as new
ones, a video from that clip on, and are done the ordinary way. At the run's end what was not replaced meanwhile (not listed, beyond
--limit) comes back, and only then the part that was set aside goes. A run that is killed in between leaves this to the start of the
next. So an asset is at any instant in one part or in none, and in one after every finished run; whatever is interrupted, no row is
lost, for it lies in `_datagen/retrying/`, or follows from committed clips, until it, or a newer one, is in the table.

How often an asset was tried again is in its row (`retries`), so nothing else has to agree with the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.errors import WriteError
from datagen.job import WriteOptions
from datagen.write.clips import resume_videos, write_assets
from datagen.write.done import DoneSet, done_assets
from datagen.write.parts import clip_part_id, part_path, read_part
from datagen.write.parts_list import NO_LOG, MarksLog, seal_at
from datagen.write.store import META, Store

ASIDE = f"{META}/retrying"


@dataclass(frozen=True)
class Retries:
    """What is done for this run's purposes, and the assets to try again: asset_id -> how often each was so far."""

    done: DoneSet
    again: Mapping[str, int] = field(default_factory=dict)


@contextmanager
def retrying(store: Store, done: DoneSet, limit: int, options: WriteOptions, log: MarksLog = NO_LOG) -> Iterator[Retries]:
    """Failed assets that were tried again less than `limit` times are not done while the context lasts.

    Call it under the lease, after restore_failed and resume_videos. log: is told of the parts that go and come.
    Raises WriteError, StorageError.
    """
    again: dict[str, int] = {}
    try:
        parts = done.failed_parts if limit else ()
        log.removed(mark for part in parts for mark in _marks_of(store, part, limit))
        for part in parts:
            again |= _take_out(store, part, limit, options, log)
        yield Retries(done.without(again), again) if again else Retries(done)
    finally:
        if restore_failed(store, options, log):
            resume_videos(store, options, log)


def restore_failed(store: Store, options: WriteOptions, log: MarksLog = NO_LOG) -> bool:
    """Bring back what a run set aside and did not replace; repeating it is harmless.

    Returns whether rows of videos were among it. They are not kept but made from the clips, which are back: resume_videos does it.
    """
    for path, target in _aside(store, "clips"):
        if store.exists(target):
            store.delete(path)
        else:
            store.move(path, target)
            part = target.removeprefix("clips/part-").removesuffix(".parquet")
            log.committed("clips", part, seal_at(store, "clips", part))
    parts, has_videos = list(_aside(store, "assets")), False
    done = done_assets(store) if parts else DoneSet.of(())
    for path, _ in parts:
        rows = _read_rows(store, path)
        has_videos |= any(row["media_type"] == "video" for row in rows)
        is_done = done.contains([row["asset_id"] for row in rows])
        left = (row for row, known in zip(rows, is_done, strict=True) if not known and row["media_type"] == "image")
        _put_rows(store, left, options, log)
        store.delete(path)
    return has_videos


def to_retry(store: Store, done: DoneSet, limit: int) -> dict[str, int]:
    """asset_id -> retries so far, of the failed assets that a run with this limit would try again."""
    return {name: count for part in done.failed_parts if limit for name, count in _read_failed(store, part, limit)[1].items()}


def _marks_of(store: Store, part: str, limit: int) -> Iterator[tuple[str, str]]:
    """The marks that _take_out will set aside: (table, part)."""
    rows, again = _read_failed(store, part, limit)
    if again:
        yield "assets", part
        yield from (("clips", _last_clip(row)) for row in rows if row["media_type"] == "video" and row["asset_id"] in again)


def _take_out(store: Store, part: str, limit: int, options: WriteOptions, log: MarksLog) -> dict[str, int]:
    """Set aside a part of failed assets for those that are to be tried again; the others come back at once."""
    rows, again = _read_failed(store, part, limit)
    if not again:
        return {}
    path = part_path("assets", part)
    store.move(path, f"{ASIDE}/{path}")
    for row in rows:
        if row["media_type"] == "video" and row["asset_id"] in again:
            clip = part_path("clips", _last_clip(row))
            store.move(clip, f"{ASIDE}/{clip}")
    _put_rows(store, (row for row in rows if row["asset_id"] not in again), options, log)
    return again


def _read_failed(store: Store, part: str, limit: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows = _read_rows(store, part_path("assets", part))
    return rows, {row["asset_id"]: row["retries"] for row in rows if row["retries"] < limit and _can_be_tried(store, row)}


def _can_be_tried(store: Store, row: Mapping[str, Any]) -> bool:
    """An image; or a video that its last clip ended. One with a failed clip in the middle would have to lose the clips behind it."""
    if row["media_type"] == "image":
        return True
    (status,) = read_part(store, "clips", _last_clip(row), ["status"])["status"].to_pylist()
    return bool(status == "failed")


def _last_clip(row: Mapping[str, Any]) -> str:
    return clip_part_id(row["asset_id"], row["num_clips"] - 1)


def _put_rows(store: Store, rows: Iterable[Mapping[str, Any]], options: WriteOptions, log: MarksLog) -> None:
    rows = list(rows)
    if rows:
        write_assets(store, rows, options, log)


def _aside(store: Store, table: str) -> Iterator[tuple[str, str]]:
    """(path, where it was) of what is set aside of a table."""
    for path, _ in list(store.list(f"{ASIDE}/{table}")):
        yield path, path.removeprefix(f"{ASIDE}/")


def _read_rows(store: Store, path: str) -> list[dict[str, Any]]:
    try:
        with store.open_input(path) as source:
            rows: list[dict[str, Any]] = pq.ParquetFile(source).read(use_threads=False).to_pylist()
            return rows
    except (OSError, pa.ArrowException) as error:
        message = f"{store.uri}/{path} cannot be read: {error}. It holds failed assets only; delete it, and they are done again."
        raise WriteError(message) from error
