"""The measurement as one report: pictures, clips, and what could not be measured.

Every object of gold counts: where its picture, clip or track is missing or failed, its IoU or J is 0 and its texts are wrong. So nothing
that a dataset loses makes its numbers better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datagen.errors import SourceError
from datagen.evaluate.clips import clip_numbers
from datagen.evaluate.gold import Gold, read_gold
from datagen.evaluate.items import EVENTS, TEXTS, Medium, asked_texts, items_of, media_of, tracks_of
from datagen.evaluate.matching import match
from datagen.evaluate.pictures import picture_numbers
from datagen.evaluate.text_metrics import Embedder, load_embedder
from datagen.write import open_dataset
from datagen.write.marker import check_marker


def evaluate(dataset: str, gold: str, embedder: str | Embedder | None = None) -> dict[str, Any]:
    """Measure a dataset against gold; plain values, ready for JSON. Means are over all objects of gold.

    Pictures are measured where the dataset has any, and so are videos; `not_measured` says what was left out. embedder: a sentence
    embedding model, by name or itself, for the semantic similarity; None leaves that out.
    Raises SourceError when one of the two is missing, they have nothing in common, or what is the same in both is ambiguous.
    """
    store, truth = open_dataset(dataset), read_gold(gold)
    check_marker(store)
    model = load_embedder(embedder) if isinstance(embedder, str) else embedder
    media = media_of(store)
    wanted = {kind: some for kind, some in (("image", truth.images), ("video", truth.videos)) if some}
    measured = [kind for kind in wanted if media[kind]]
    pairs = {kind: match(wanted[kind], _named(truth, media[kind]), kind) for kind in measured}
    if not any(pairs.values()) and not _only_failed(media):
        raise SourceError(f"{dataset} and {gold} have no image or clip in common (by asset id, or for COCO by image id or file name)")
    report: dict[str, Any] = {"dataset": dataset, "gold": gold}
    left = {kind: len(some) for kind, some in wanted.items() if kind not in measured and not _only_failed(media)}
    for kind in wanted.keys() - left.keys():
        pairs.setdefault(kind, {})
    if "image" in pairs:
        regions = items_of(store)
        asked = asked_texts(store, TEXTS, (item.texts for items in regions.values() for item in items))
        report |= picture_numbers(truth, pairs["image"], media["image"], regions, asked, model)
    if "video" in pairs:
        tracks = tracks_of(store)
        asked = asked_texts(store, EVENTS, (item.texts for items in tracks.values() for item in items))
        report["clips"] = clip_numbers(truth, pairs["video"], media["video"], tracks, asked, model)
    return report | {"not_measured": left}


def _named(gold: Gold, found: Mapping[str, Medium]) -> list[Medium]:
    """The dataset's media with the ids by which gold may know them."""
    for medium in found.values():
        medium.ids = gold.ids_of(medium)
    return list(found.values())


def _only_failed(media: Mapping[str, Mapping[str, Medium]]) -> bool:
    return all(medium.failed for of_kind in media.values() for medium in of_kind.values())
