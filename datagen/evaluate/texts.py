"""Texts against their references, over all gold objects that have one: a text that is missing is a wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from datagen.evaluate.text_metrics import Embedder, cider_d, exact_match, has_meteor, meteor, semantic_iou, semantic_similarity


@dataclass(slots=True)
class Texts:
    """Texts of one column with their references; empty where there is none. missing: how many of them."""

    texts: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)

    def add(self, text: str, references: list[str]) -> None:
        """One object's."""
        self.texts.append(text)
        self.references.append(references)

    @property
    def missing(self) -> int:
        """How many say nothing."""
        return sum(not text.strip() for text in self.texts)


def columns_of(answers: Iterable[tuple[Mapping[str, list[str]], Mapping[str, list[str]] | None]], asked: Iterable[str]) -> dict[str, Texts]:
    """(gold's texts, the answer's or None) of each object, as one list per column that was asked for and that gold has."""
    columns: dict[str, Texts] = {}
    wanted = list(asked)
    for gold, found in answers:
        for column in wanted:
            if references := gold.get(column):
                columns.setdefault(column, Texts()).add((found or {}).get(column, [""])[0], list(references))
    return columns


def text_numbers(columns: Mapping[str, Texts], order: Sequence[str], embedder: Embedder | None) -> dict[str, dict[str, float | int | None]]:
    """Column -> its scores, in this order of columns."""
    return {column: text_scores(columns[column], embedder) for column in order if column in columns}


def text_scores(column: Texts, embedder: Embedder | None) -> dict[str, float | int | None]:
    """Means over the objects of a column; null for a metric whose library or model is not there."""
    texts, references = column.texts, column.references
    pairs = list(zip(texts, references, strict=True))
    return {
        "count": len(texts),
        "missing": column.missing,
        "exact_match": mean([exact_match(*pair) for pair in pairs]),
        "semantic_iou": mean([semantic_iou(*pair) for pair in pairs]),
        "meteor": mean(meteor(texts, references)) if has_meteor() else None,
        "cider": mean(cider_d(texts, references)),
        "semantic_similarity": _similarity(pairs, embedder) if embedder else None,
    }


def mean(values: Sequence[float]) -> float:
    """0 of nothing."""
    return float(np.mean(values)) if len(values) else 0.0


def _similarity(pairs: Sequence[tuple[str, list[str]]], embedder: Embedder) -> float:
    """What is missing is like nothing: an empty sentence has an embedding, too."""
    told = [pair for pair in pairs if pair[0].strip()]
    values = semantic_similarity([text for text, _ in told], [references for _, references in told], embedder) if told else []
    return float(sum(values)) / len(pairs) if pairs else 0.0
