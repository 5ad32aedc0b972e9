"""What all tables are counted with: lengths of texts, distributions, and parts read some columns at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.errors import SourceError
from datagen.write.store import Store

_LENGTH_EDGES = (0, 1, 5, 10, 20, 40, 80, 160, 320)


@dataclass
class TextCount:
    """Texts of one task in one language: how many there are, their lengths, and why they ended. Lengths are in words for English and
    in characters for Chinese.
    """

    num_texts: int = 0
    num_characters: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    finish: Counter[str] = field(default_factory=Counter)

    def add(self, texts: list[str], finish: Iterable[str | None], language: str) -> None:
        """Count texts, and the reasons why they ended."""
        self.num_texts += len(texts)
        self.num_characters += sum(map(len, texts))
        self.lengths.update(_bin(len(text.split()) if language == "en" else len(text)) for text in texts)
        self.finish.update(reason for reason in finish if reason)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "count": self.num_texts,
            "mean_characters": round(self.num_characters / self.num_texts, 1),
            "lengths": {_bin_name(edge): self.lengths[edge] for edge in _LENGTH_EDGES if self.lengths[edge]},
            "finish": dict(self.finish),
        }


def batches(store: Store, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a part. Raises SourceError when it cannot be read."""
    try:
        with store.open_input(path) as source:
            yield from pq.ParquetFile(source).iter_batches(8192, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{store.uri}/{path} cannot be read: {error}. `datagen check {store.uri}` names all damage.") from error


def distribution(counts: Counter[Any]) -> dict[str, float]:
    """Mean, median, 90th percentile and maximum of values given as value -> how often. Empty for none."""
    total = sum(counts.values())
    if not total:
        return {}
    values: list[float] = sorted(counts)

    def percentile(share: float) -> float:
        left = math.ceil(share * total)
        for value in values:
            left -= counts[value]
            if left <= 0:
                return value
        return values[-1]

    mean = sum(value * count for value, count in counts.items()) / total
    return {"mean": round(mean, 2), "p50": percentile(0.5), "p90": percentile(0.9), "max": values[-1]}


def _bin(length: int) -> int:
    return max(edge for edge in _LENGTH_EDGES if edge <= length)


def _bin_name(edge: int) -> str:
    following = [other for other in _LENGTH_EDGES if other > edge]
    if not following:
        return f"{edge}+"
    return str(edge) if following[0] == edge + 1 else f"{edge}-{following[0] - 1}"
