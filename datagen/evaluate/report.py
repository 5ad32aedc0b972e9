"""The measurement: which object answers which, and the numbers of it.

An image whose regions were prompted is paired by number: region i answers gold object i, and one that is missing counts as an empty
mask and an empty text. An image that was segmented whole is paired by mask: best IoU first, each once; texts are then those of pairs
above `TEXT_IOU`, and gold without a pair counts as IoU 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datagen.errors import SourceError
from datagen.evaluate.gold import EVENTS, TEXTS, Item, TrackItem, assets_of, items_of, read_gold, tracks_of
from datagen.evaluate.text_metrics import (
    Embedder,
    cider_d,
    exact_match,
    has_meteor,
    load_embedder,
    meteor,
    semantic_iou,
    semantic_similarity,
)
from datagen.masks import mask_iou
from datagen.write import open_dataset
from datagen.write.marker import check_marker

TEXT_IOU = 0.5
_RECALLS = (0.5, 0.75, 0.9)
_UNNAMED = "(no label)"


@dataclass(slots=True)
class Pair:
    """A gold object and what was found of it. iou: 0 where nothing was. found: None where its texts do not count."""

    gold: Item
    found: Item | None
    iou: float


@dataclass(slots=True)
class _Texts:
    """Texts of one column with their references."""

    texts: list[str] = field(default_factory=list)
    references: list[list[str]] = field(default_factory=list)

    def add(self, text: str, references: list[str]) -> None:
        self.texts.append(text)
        self.references.append(references)


def evaluate(dataset: str, gold: str, embedder: str | Embedder | None = None) -> dict[str, Any]:
    """Measure a dataset against gold; plain values, ready for JSON. Means are over gold objects.

    embedder: a sentence embedding model, by name or itself, for the semantic similarity; None leaves that out.
    Raises SourceError when one of the two is missing or they have no image or clip in common.
    """
    store, truth = open_dataset(dataset), read_gold(gold)
    check_marker(store)
    found = items_of(store)
    keys = {row["asset_id"]: truth.key_of(row) for row in assets_of(store) if row["media_type"] == "image" and row["status"] != "failed"}
    common = {asset_id: key for asset_id, key in keys.items() if key in truth.images}
    tracks = tracks_of(store) if truth.tracks else {}
    if not common and not tracks.keys() & truth.tracks.keys():
        raise SourceError(f"{dataset} and {gold} have no image or clip in common (by asset id, or for COCO by image id or file name)")
    pairs, extra = [], 0
    unprompted = any(_is_unprompted(items) for items in found.values())
    for asset_id, key in common.items():
        items = found.get(asset_id, [])
        by_mask = _is_unprompted(items) if items else unprompted  # where nothing was found, as in the rest of the dataset
        of_image, unpaired = pair_items(truth.images[key], items, by_mask)
        pairs += of_image
        extra += unpaired
    model = load_embedder(embedder) if isinstance(embedder, str) else embedder
    report: dict[str, Any] = {"dataset": dataset, "gold": gold}
    if common:
        report |= {"images": len(common), "objects": len(pairs), "extra_regions": extra, "masks": _mask_numbers(pairs)}
        report |= {"texts": _text_numbers(_columns(pairs), model), "categories": _categories(pairs)}
    if truth.tracks and tracks:
        report["clips"] = _clip_numbers(truth.tracks, tracks, model)
    return report


def _is_unprompted(items: Sequence[Item]) -> bool:
    return any(item.source == "everything" for item in items)


def pair_items(gold: Sequence[Item], found: Sequence[Item], by_mask: bool) -> tuple[list[Pair], int]:
    """One pair per gold object of an image, and how many found objects answer none."""
    if by_mask:
        return _by_mask(gold, found)
    numbered = {item.number: item for item in found}
    pairs = []
    for item in gold:
        answer = numbered.pop(item.number, None)
        iou = float(mask_iou([answer.mask], [item.mask])[0, 0]) if answer else 0.0
        pairs.append(Pair(item, answer or Item(item.number, item.mask, {column: [""] for column in item.texts}), iou))
    return pairs, len(numbered)


def _by_mask(gold: Sequence[Item], found: Sequence[Item]) -> tuple[list[Pair], int]:
    iou = mask_iou([item.mask for item in gold], [item.mask for item in found])
    best: dict[int, tuple[int, float]] = {}
    taken: set[int] = set()
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = (int(index) for index in np.unravel_index(flat, iou.shape))
        if iou[row, column] > 0 and row not in best and column not in taken:
            best[row] = column, float(iou[row, column])
            taken.add(column)
    pairs = []
    for row, item in enumerate(gold):
        column, value = best.get(row, (-1, 0.0))
        pairs.append(Pair(item, found[column] if value >= TEXT_IOU else None, value))
    return pairs, len(found) - len(taken)


def _mask_numbers(pairs: Sequence[Pair]) -> dict[str, float]:
    ious = np.asarray([pair.iou for pair in pairs])
    recalls = {f"recall_{int(100 * threshold)}": float((ious >= threshold).mean()) for threshold in _RECALLS}
    return {"mean_iou": float(ious.mean()), **recalls}


def _columns(pairs: Iterable[Pair]) -> dict[str, _Texts]:
    """Every text column that was asked for and that gold has."""
    pairs = [pair for pair in pairs if pair.found is not None]
    asked = {column for pair in pairs if pair.found and pair.found.source for column in pair.found.texts}
    columns: dict[str, _Texts] = {}
    for pair in pairs:
        for column in TEXTS:
            references = pair.gold.texts.get(column)
            if references and column in asked and pair.found is not None:
                columns.setdefault(column, _Texts()).add(pair.found.texts.get(column, [""])[0], references)
    return columns


def _text_numbers(columns: Mapping[str, _Texts], embedder: Embedder | None) -> dict[str, dict[str, float | int | None]]:
    return {column: _scores(columns[column], embedder) for column in (*TEXTS, *EVENTS) if column in columns}


def _scores(column: _Texts, embedder: Embedder | None) -> dict[str, float | int | None]:
    """Means over the texts of a column; null for a metric whose library or model is not there."""
    texts, references = column.texts, column.references
    pairs = list(zip(texts, references, strict=True))
    return {
        "count": len(texts),
        "exact_match": _mean([exact_match(*pair) for pair in pairs]),
        "semantic_iou": _mean([semantic_iou(*pair) for pair in pairs]),
        "meteor": _mean(meteor(texts, references)) if has_meteor() else None,
        "cider": _mean(cider_d(texts, references)),
        "semantic_similarity": _mean(semantic_similarity(texts, references, embedder)) if embedder else None,
    }


def _categories(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Per gold label, the most frequent first."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        labels = pair.gold.texts.get("label_en") or pair.gold.texts.get("label_zh") or [_UNNAMED]
        groups.setdefault(labels[0], []).append(pair)
    rows = []
    for name, group in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        label = _columns(group).get("label_en")
        named = {"label_exact": _scores(label, None)["exact_match"] if label else None}
        rows.append({"category": name, "count": len(group), **_mask_numbers(group), **named})
    return rows


def _clip_numbers(gold: Mapping[Any, TrackItem], found: Mapping[Any, TrackItem], embedder: Embedder | None) -> dict[str, Any]:
    """J: mean IoU over the frames in which gold shows the object, then over objects; missing tracks of common clips count as 0.

    presence: share of all frames in which found and gold agree whether the object is there. Source of J: Perazzi et al., "A Benchmark
    Dataset and Evaluation Methodology for Video Object Segmentation", 2016.
    """
    clips = {key[:2] for key in found}
    columns: dict[str, _Texts] = {}
    regions, presence = [], []
    for key, truth in gold.items():
        if key[:2] not in clips:
            continue
        answer = found.get(key)
        regions.append(_mean([_frame_iou(mask, answer, index) for index, mask in truth.masks.items() if mask]))
        presence += [bool(answer and answer.masks.get(index)) == bool(mask) for index, mask in truth.masks.items()]
        for column in EVENTS:
            if truth.texts.get(column) and any(column in track.texts for track in found.values()):
                text = answer.texts.get(column, [""])[0] if answer else ""
                columns.setdefault(column, _Texts()).add(text, truth.texts[column])
    numbers = {"clips": len(clips), "tracks": len(regions), "mean_j": _mean(regions), "presence": _mean(presence)}
    return numbers | {"texts": _text_numbers(columns, embedder)}


def _frame_iou(mask: Any, answer: TrackItem | None, index: int) -> float:
    there = answer.masks.get(index) if answer else None
    return float(mask_iou([there], [mask])[0, 0]) if there else 0.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
