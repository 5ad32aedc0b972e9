"""Pictures of a dataset against gold: every object of gold counts, whatever became of its picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datagen.evaluate.gold import Gold, Truth
from datagen.evaluate.items import TEXTS, Item, Medium, with_ids
from datagen.evaluate.matching import sizes_differ, unmatched
from datagen.evaluate.pairing import Pair, Paired, pair_items, unanswered
from datagen.evaluate.text_metrics import Embedder
from datagen.evaluate.texts import Texts, columns_of, text_numbers, text_scores

_RECALLS = (0.5, 0.75, 0.9)
_UNNAMED = "(no label)"


@dataclass(slots=True)
class _Tally:
    """What comes together over the pictures of gold."""

    pairs: list[Pair] = field(default_factory=list)
    extra: int = 0
    ignored: int = 0
    missing: int = 0
    failed: int = 0
    other_size: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, paired: Paired) -> None:
        self.pairs += paired.pairs
        self.extra += paired.extra
        self.ignored += paired.ignored


def picture_numbers(
    gold: Gold,
    pairs: Mapping[str, Medium],
    found: Mapping[str, Medium],
    regions: Mapping[str, Sequence[Item]],
    asked: set[str],
    embedder: Embedder | None,
) -> dict[str, Any]:
    """The report on pictures. pairs: gold's key -> the dataset's. found, regions: of the dataset, by asset id. asked: text columns."""
    tally = _Tally()
    for image in gold.images:
        _measure(gold, image, pairs.get(image.key), regions, tally)
    columns = [column for column in TEXTS if column in asked]
    return {
        "images": len(gold.images),
        "missing_images": tally.missing,
        "failed_images": tally.failed,
        "other_size_images": tally.other_size,
        "images_not_in_gold": unmatched(found, pairs),
        "objects": len(tally.pairs),
        "missing_objects": sum(pair.found is None for pair in tally.pairs),
        "extra_regions": tally.extra,
        "ignored_regions": tally.ignored,
        "unusable_gold": dict(gold.unusable + tally.unusable),
        "problems": [*gold.problems, *tally.problems],
        "masks": _mask_numbers(tally.pairs),
        "texts": text_numbers(_texts(tally.pairs, columns), TEXTS, embedder),
        "categories": _categories(tally.pairs, columns),
    }


def _measure(gold: Gold, image: Medium, there: Medium | None, regions: Mapping[str, Sequence[Item]], tally: _Tally) -> None:
    truth = gold.truth(image, there.size if there else None)
    tally.unusable += truth.unusable
    tally.problems += truth.problems
    if there is None:
        tally.missing += 1
    elif there.failed:
        tally.failed += 1
    elif problem := _size_problem(image, there, truth, items := with_ids(regions.get(there.key, ()), there.extra)):
        tally.other_size += 1
        tally.problems.append(problem)
    else:
        tally.add(pair_items(truth, items))
        return
    tally.add(unanswered(truth))


def _size_problem(image: Medium, there: Medium, truth: Truth, items: Sequence[Item]) -> str | None:
    if problem := sizes_differ(image, there):
        return problem
    masks = [item.mask for item in (*truth.items, *items) if item.mask is not None] + truth.crowds
    sizes = {(mask["size"][1], mask["size"][0]) for mask in masks}
    if len(sizes) < 2:
        return None
    return f"{there.names[0]} has masks of {' and '.join(f'{w} x {h}' for w, h in sorted(sizes))} (width x height), here and in gold"


def _mask_numbers(pairs: Sequence[Pair]) -> dict[str, float]:
    """Means over gold objects; 0 without any."""
    ious = np.asarray([pair.iou for pair in pairs] or [0.0])
    recalls = {f"recall_{int(100 * threshold)}": float((ious >= threshold).mean()) for threshold in _RECALLS}
    return {"mean_iou": float(ious.mean()), **recalls}


def _texts(pairs: Sequence[Pair], columns: Sequence[str]) -> dict[str, Texts]:
    return columns_of(((pair.gold.texts, pair.found.texts if pair.found and pair.counts else None) for pair in pairs), columns)


def _categories(pairs: Sequence[Pair], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Per gold label, the most frequent first."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        labels = pair.gold.texts.get("label_en") or pair.gold.texts.get("label_zh") or [_UNNAMED]
        groups.setdefault(labels[0], []).append(pair)
    rows = []
    for name, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        label = _texts(group, columns).get("label_en")
        named = {"label_exact": text_scores(label, None)["exact_match"] if label else None}
        rows.append({"category": name, "count": len(group), **_mask_numbers(group), **named})
    return rows
