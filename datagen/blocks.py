"""Samples on their way: packed while they wait in the driver, and as rows of Arrow tables between workers."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Iterator

import pyarrow as pa

from datagen.records import Sample

PACKED_TOGETHER = 64


class Waiting:
    """Samples before their first step, in order. Packed: as objects, a wave of them would cost the driver a kilobyte each."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._last: list[Sample] = []

    def append(self, sample: Sample) -> None:
        """Add one."""
        self._last.append(sample)
        if len(self._last) == PACKED_TOGETHER:
            self._packed.append(zlib.compress(pickle.dumps(self._last), 1))
            self._last = []

    def __len__(self) -> int:
        return PACKED_TOGETHER * len(self._packed) + len(self._last)

    def __iter__(self) -> Iterator[Sample]:
        for packed in self._packed:
            yield from pickle.loads(zlib.decompress(packed))  # noqa: S301 (packed above)
        yield from self._last


def to_table(samples: list[Sample]) -> pa.Table:
    """One row per sample: its arrays as raw bytes in one column, everything else as one small pickle in the other."""
    pickles, arrays = [], []
    for sample in samples:
        buffers: list[pickle.PickleBuffer] = []
        pickles.append(pickle.dumps(sample, protocol=5, buffer_callback=buffers.append))
        arrays.append([buffer.raw() for buffer in buffers])
    return pa.table({"sample": pa.array(pickles, pa.large_binary()), "arrays": pa.array(arrays, pa.list_(pa.large_binary()))})


def from_table(table: pa.Table) -> list[Sample]:
    """The samples of a table. Their arrays are read-only views of the table's memory, without a copy."""
    rows = zip(table["sample"], table["arrays"], strict=True)
    # Blocks go from worker to worker of one run; none is ever read from a file.
    return [pickle.loads(sample.as_buffer(), buffers=[array.as_buffer() for array in arrays]) for sample, arrays in rows]  # noqa: S301


def chunks(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """The samples in lists of `size`, the last one shorter."""
    chunk: list[Sample] = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
