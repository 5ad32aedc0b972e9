"""Which parts a run committed and took out, each with its content hash: lists beside the run's record, `<run_id>.parts-00000.parquet`.

What runs say, in their order, gives the commit marks that there should be. A mark proves the parts it commits, so only marks are listed.
A list is written every few thousand parts and at the run's end, where the record names the lists with their hashes. A run that is killed
leaves what it had written; the next one finds the parts that no list has, and lists them as `adopted`, and those that are gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.errors import WriteError
from datagen.write.parts import PART_NAME, part_ids, part_path
from datagen.write.seals import seal_in
from datagen.write.store import META, Store

RUNS = f"{META}/runs"
_TABLES = {b"a": "assets", b"c": "clips"}
_THERE = ("committed", "adopted")
_UNSEALED = b"unsealed"
_LISTED_AT_ONCE = 4096
_SEQUENCE = b"datagen.sequence"
_SCHEMA = pa.schema(
    [
        pa.field("event", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("part_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string()),
    ]
)

Event = Literal["committed", "adopted", "removed", "gone"]


class Marks:
    """Commit marks and their content hashes, at 54 bytes each: what all lists of a dataset say that there should be."""

    def __init__(self, keys: np.ndarray, seals: np.ndarray) -> None:
        order = np.argsort(keys, kind="stable")
        keys, seals = keys[order], seals[order]
        is_last = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.zeros(0, dtype=bool)
        is_there = is_last & (seals != b"")
        self._keys, self._seals = keys[is_there], seals[is_there]
        self._seen = np.zeros(len(self._keys), dtype=bool)

    def __len__(self) -> int:
        return len(self._keys)

    def agrees(self, table: str, part_id: str, seal: str | None) -> bool | None:
        """Whether a mark has the hash that was listed; None for one that is not listed, or was taken out. From now on it counts as seen."""
        key = _key(table, part_id)
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return None
        self._seen[place] = True
        return bool(self._seals[place] == _short(seal))

    def unseen(self) -> Iterator[tuple[str, str]]:
        """(table, part) of the marks that are listed, and were not asked for."""
        for key in self._keys[~self._seen].tolist():
            yield _TABLES[key[:1]], key[1:].decode()


@dataclass(frozen=True)
class ListFile:
    """One list as it lies in the dataset."""

    path: str
    sequence: int
    table: pa.Table


def read_lists(store: Store) -> list[ListFile]:
    """All lists of a dataset, in the order in which they were written. Raises WriteError for one that cannot be read."""
    found = []
    for path, _ in store.list(RUNS):
        if path.endswith(".parquet"):
            found.append(_read(store, path))
    return sorted(found, key=lambda file: (file.sequence, file.path))


def listed_marks(lists: Iterable[ListFile]) -> Marks:
    """What the lists say, the latest last."""
    keys, seals = [np.empty(0, dtype="S21")], [np.empty(0, dtype="S32")]
    for file in lists:
        rows = [file.table[name].to_pylist() for name in _SCHEMA.names]
        keys.append(np.array([_key(table, part) for table, part in zip(rows[1], rows[2], strict=True)], dtype="S21"))
        events = zip(rows[0], rows[3], strict=True)
        seals.append(np.array([_short(seal) if event in _THERE else b"" for event, seal in events], dtype="S32"))
    return Marks(np.concatenate(keys), np.concatenate(seals))


class MarksLog(Protocol):
    """Who is told of the marks that come and go."""

    def committed(self, table: str, part_id: str, seal: str | None) -> None:
        """A mark is in its place."""

    def removed(self, marks: Iterable[tuple[str, str]]) -> None:
        """These marks, (table, part), are about to be taken out; it is written at once."""


class _NoLog:
    """Nobody is told: what comes and goes before the run has a list, it finds when it takes stock."""

    def committed(self, table: str, part_id: str, seal: str | None) -> None:
        """Nothing."""

    def removed(self, marks: Iterable[tuple[str, str]]) -> None:
        """Nothing."""


NO_LOG: MarksLog = _NoLog()


class PartsList:
    """The list of the run that is on. Only the holder of the lease has one.

    adopted, gone: marks that no earlier list had, or that one had and that are no longer there, as found at the run's start.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        lists = read_lists(store)
        self._known = listed_marks(lists)
        self._sequence = max((file.sequence for file in lists), default=0) + 1
        self._rows: list[tuple[str, str, str, str | None]] = []
        self.files: list[dict[str, Any]] = []
        self.adopted = self.gone = 0

    def see_assets(self, part_id: str, seal: str | None) -> None:
        """A part of `assets` is there, with this hash; what no list has is adopted. One that was listed with another hash was damaged."""
        if self._known.agrees("assets", part_id, seal) is None:
            self._note("adopted", "assets", part_id, seal)
            self.adopted += 1

    def take_stock(self) -> None:
        """Look at the clips, too, and note what is gone. Call it once see_assets was told of all parts of `assets`."""
        for part in part_ids(self._store, "clips"):
            if self._known.agrees("clips", part, None) is None:
                self._note("adopted", "clips", part, seal_at(self._store, "clips", part))
                self.adopted += 1
        for table, part in self._known.unseen():
            self._note("gone", table, part, None)
            self.gone += 1
        self.flush()

    def committed(self, table: str, part_id: str, seal: str | None) -> None:
        """A mark is in its place."""
        self._note("committed", table, part_id, seal)

    def removed(self, marks: Iterable[tuple[str, str]]) -> None:
        """These marks are about to be taken out; it is written at once."""
        for table, part_id in marks:
            self._note("removed", table, part_id, None)
        self.flush()

    def flush(self) -> None:
        """Write what is not written yet. Raises WriteError."""
        if not self._rows:
            return
        path = f"{RUNS}/{self._run_id}.parts-{len(self.files):05d}.parquet"
        columns = [pa.array(values, field.type) for values, field in zip(zip(*self._rows, strict=True), _SCHEMA, strict=True)]
        table = pa.table(columns, schema=_SCHEMA.with_metadata({_SEQUENCE: str(self._sequence)}))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        data = sink.getvalue()
        self._store.write(path, data)
        self.files.append({"path": path, "sha256": hashlib.sha256(data).hexdigest(), "parts": len(self._rows)})
        self._rows.clear()

    def _note(self, event: Event, table: str, part_id: str, seal: str | None) -> None:
        self._rows.append((event, table, part_id, seal))
        if len(self._rows) == _LISTED_AT_ONCE:
            self.flush()


def _read(store: Store, path: str) -> ListFile:
    try:
        with store.open_input(path) as source:
            table = pq.ParquetFile(source, page_checksum_verification=True).read(use_threads=False)
        sequence = int(table.schema.metadata[_SEQUENCE])
        rows = table.select(_SCHEMA.names).cast(_SCHEMA)
        if not all(PART_NAME.match(f"part-{part}.parquet") for part in rows["part_id"].to_pylist()):
            raise ValueError("a name is none of a part")
        if not set(rows["table"].to_pylist()) <= set(_TABLES.values()):
            raise ValueError("a table is none of assets and clips")
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        message = f"{store.uri}/{path}, a list of parts, is damaged: {error}. Delete it, and the next run lists its parts anew."
        raise WriteError(message) from error
    return ListFile(path, sequence, rows)


def seal_at(store: Store, table: str, part: str) -> str | None:
    """The hash that a part carries; None for one without. Raises WriteError when it cannot be read."""
    try:
        with store.open_input(part_path(table, part)) as source:
            return seal_in(pq.read_metadata(source).metadata)
    except (OSError, pa.ArrowException) as error:
        message = f"{store.uri}/{part_path(table, part)} cannot be read: {error}. `datagen check {store.uri}` names all damage."
        raise WriteError(message) from error


def _key(table: str, part_id: str) -> bytes:
    return table[:1].encode() + part_id.encode()


def _short(seal: str | None) -> bytes:
    return _UNSEALED if seal is None else seal[:32].encode()
