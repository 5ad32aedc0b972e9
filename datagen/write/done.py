"""Which assets a dataset already has: the dataset is its own checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat, tee

import numpy as np
import pyarrow as pa

from datagen.ids import id_key
from datagen.write.parts import part_ids, read_part
from datagen.write.seals import seal_in
from datagen.write.store import Store

READERS = 16
_PARTS_AT_ONCE = 64


def id_keys(ids: Iterable[str]) -> np.ndarray:
    """128-bit keys of ids: (n, 2) uint64, high half first."""
    digests = b"".join(map(id_key, ids))
    return np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)


# Instead of 64 bits of a hash: there were no prompts, or the row does not say (tables of schema v1).
NO_PROMPTS, NOT_SAID = 0, 2**64 - 1


class DoneSet:
    """Membership of asset ids (or of other names), at 16 bytes per id, and 8 more for what they were asked.

    prompts: for each key the hash of the prompts that its row was made with (prompts_code); left out: not said.
    statuses counts the rows by status, num_parts the parts with rows; failed_parts names those of failed assets alone, empty_parts those
    without rows, which commit nothing.
    """

    def __init__(
        self,
        keys: np.ndarray,
        statuses: Counter[str] | None = None,
        num_parts: int = 0,
        failed_parts: Sequence[str] = (),
        empty_parts: Sequence[str] = (),
        prompts: np.ndarray | None = None,
    ) -> None:
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._high = np.ascontiguousarray(keys[order, 0])
        self._low = np.ascontiguousarray(keys[order, 1])
        self._prompts = None if prompts is None else np.ascontiguousarray(prompts[order])
        self.statuses: Counter[str] = statuses or Counter()
        self.num_parts = num_parts
        self.failed_parts = failed_parts
        self.empty_parts = empty_parts

    @classmethod
    def of(cls, names: Iterable[str]) -> DoneSet:
        """The set of these ids or names."""
        return cls(id_keys(names))

    def __len__(self) -> int:
        return len(self._high)

    def __contains__(self, asset_id: str) -> bool:
        return bool(self.contains([asset_id])[0])

    def contains(self, asset_ids: Sequence[str]) -> np.ndarray:
        """(n,) bool: which of these are done."""
        return self._contains(id_keys(asset_ids))

    def asked(self, asset_ids: Sequence[str]) -> np.ndarray:
        """(n,) uint64: what each of these, which are done, was asked (prompts_code)."""
        codes = np.full(len(asset_ids), NOT_SAID, dtype=np.uint64)
        if self._prompts is not None:
            places = self._places(id_keys(asset_ids))
            codes[places >= 0] = self._prompts[places[places >= 0]]
        return codes

    def without(self, asset_ids: Iterable[str]) -> DoneSet:
        """The same set but for these ids; the counts stay."""
        keys = np.stack([self._high, self._low], axis=1)
        is_kept = ~DoneSet.of(asset_ids)._contains(keys)
        prompts = None if self._prompts is None else self._prompts[is_kept]
        return DoneSet(keys[is_kept], self.statuses, self.num_parts, self.failed_parts, self.empty_parts, prompts)

    def _contains(self, wanted: np.ndarray) -> np.ndarray:
        return self._places(wanted) >= 0

    def _places(self, wanted: np.ndarray) -> np.ndarray:
        """(n,) where each key stands; -1 where it does not."""
        first = np.searchsorted(self._high, wanted[:, 0], side="left")
        last = np.searchsorted(self._high, wanted[:, 0], side="right")
        places = np.full(len(wanted), -1, dtype=np.int64)
        hits = np.flatnonzero(last > first)
        is_same = self._low[first[hits]] == wanted[hits, 1]
        places[hits[is_same]] = first[hits[is_same]]
        for i in np.flatnonzero(last - first > 1):  # equal high halves: about never
            same = np.flatnonzero(self._low[first[i] : last[i]] == wanted[i, 1])
            places[i] = first[i] + same[0] if len(same) else -1
        return places


def prompts_code(prompts_hash: str | None) -> int:
    """What `prompts_hash`, 16 hex digits, is in memory; NO_PROMPTS where there is none."""
    return NO_PROMPTS if prompts_hash is None else int(prompts_hash, 16)


def done_assets(store: Store, see: Callable[[str, str | None], None] = lambda part, seal: None) -> DoneSet:
    """Read the ids and states of all committed assets, failed ones included. Raises WriteError for a part that cannot be read.

    see: is called with the name and the content hash of each part that has rows, None for one that was written without.
    """
    keys, statuses, num_parts = [np.empty((0, 2), dtype=np.uint64)], Counter[str](), 0
    prompts = [np.empty(0, dtype=np.uint64)]
    failed_parts: list[str] = []
    empty_parts: list[str] = []
    names, again = tee(part_ids(store, "assets"))
    for part, table in zip(names, read_parts(store, "assets", again, ["asset_id", "status", "prompts_hash"]), strict=True):
        is_said = "prompts_hash" in table.column_names
        codes = map(prompts_code, table["prompts_hash"].to_pylist()) if is_said else repeat(NOT_SAID, table.num_rows)
        prompts.append(np.fromiter(codes, dtype=np.uint64, count=table.num_rows))
        keys.append(id_keys(table["asset_id"].to_pylist()))
        found = Counter(table["status"].to_pylist())
        statuses += found
        num_parts += bool(found)
        if found:
            see(part, seal_in(table.schema.metadata))
        if not found:
            empty_parts.append(part)
        elif found.keys() == {"failed"}:
            failed_parts.append(part)
    return DoneSet(np.concatenate(keys), statuses, num_parts, failed_parts, empty_parts, np.concatenate(prompts))


def known_uris(store: Store) -> DoneSet:
    """The URIs of all committed assets. Raises WriteError for a part that cannot be read."""
    tables = read_parts(store, "assets", part_ids(store, "assets"), ["uri"])
    return DoneSet(np.concatenate([np.empty((0, 2), dtype=np.uint64), *(id_keys(table["uri"].to_pylist()) for table in tables)]))


def read_parts(store: Store, table: str, parts: Iterable[str], columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of published parts, in the order of their names as given; a few parts are read at the same time.

    Raises WriteError for a part that cannot be read.
    """
    parts = iter(parts)
    with ThreadPoolExecutor(READERS) as readers:
        while some := list(islice(parts, _PARTS_AT_ONCE)):
            yield from readers.map(lambda part: read_part(store, table, part, columns), some)
