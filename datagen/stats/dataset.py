"""Counts of a whole dataset; those of its videos come from stats/videos.py."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from datagen.records import LANGUAGES, TASKS
from datagen.stats.counts import TextCount, batches, distribution
from datagen.stats.videos import VideoCount
from datagen.write.layout import open_dataset, run_records
from datagen.write.parts import part_ids, part_path
from datagen.write.store import Store

TOP_LABELS = 20
_LABELS_KEPT = 200_000


@dataclass
class _Totals:
    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    regions_per_asset: Counter[int] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=lambda: {language: Counter() for language in LANGUAGES})
    labels_pruned: bool = False
    texts: dict[str, TextCount] = field(default_factory=dict)
    videos: VideoCount = field(default_factory=VideoCount)
    num_parts: int = 0


def dataset_stats(uri: str) -> dict[str, Any]:
    """Counts of a dataset and its runs, as plain values; `videos` is empty when there are none.

    Only committed parts count. `statuses` and `failures` are of all assets; what is counted of regions is of images alone. Lengths
    are in words for English and in characters for Chinese. Raises SourceError when there is no dataset at `uri`, or a part of it
    cannot be read.
    """
    store = open_dataset(uri)
    totals = _Totals()
    for part in part_ids(store, "assets"):
        totals.num_parts += 1
        _add_assets(totals, store, part_path("assets", part))
        regions = part_path("regions", part)
        if store.exists(regions):
            _add_regions(totals, store, regions)
    totals.videos.add_clips(store)
    return _as_dict(store, totals)


def _add_assets(totals: _Totals, store: Store, path: str) -> None:
    columns = ["asset_id", "media_type", "status", "error_code", "num_regions", "num_tracks", "dropped"]
    for batch in batches(store, path, columns):
        rows = batch.to_pylist()
        totals.statuses.update(row["status"] for row in rows)
        totals.failures.update(row["error_code"] for row in rows if row["error_code"])
        totals.videos.add_videos([row for row in rows if row["media_type"] == "video"])
        images = [row for row in rows if row["media_type"] != "video"]
        totals.regions_per_asset.update(row["num_regions"] for row in images if row["status"] != "failed")
        for row in images:
            totals.dropped.update({drop["reason"]: drop["count"] for drop in row["dropped"]})


def _add_regions(totals: _Totals, store: Store, path: str) -> None:
    names = [(f"{task}_{language}", task, language) for task in TASKS for language in LANGUAGES]
    columns = ["flags", *(name + suffix for name, _, _ in names for suffix in ("", "_finish"))]
    for batch in batches(store, path, columns):
        totals.flags.update(pc.list_flatten(batch["flags"]).to_pylist())
        for name, task, language in names:
            texts = [text for text in batch[name].to_pylist() if text is not None]
            if texts:
                totals.texts.setdefault(name, TextCount()).add(texts, batch[name + "_finish"].to_pylist(), language)
                if task == "label":
                    _count_labels(totals, language, texts)


def _count_labels(totals: _Totals, language: str, texts: Iterable[str]) -> None:
    """Free text has no bound on how many labels there are, memory has: now and then the rare half is forgotten."""
    labels = totals.labels[language]
    labels.update(unicodedata.normalize("NFC", text).strip().casefold() for text in texts)
    if len(labels) > _LABELS_KEPT:
        totals.labels[language] = Counter(dict(labels.most_common(_LABELS_KEPT // 2)))
        totals.labels_pruned = True


def _as_dict(store: Store, totals: _Totals) -> dict[str, Any]:
    return {
        "dataset": store.uri,
        "num_parts": totals.num_parts + totals.videos.num_parts,
        "num_assets": sum(totals.statuses.values()),
        "num_regions": sum(n * count for n, count in totals.regions_per_asset.items()),
        "statuses": dict(totals.statuses),
        "failures": dict(totals.failures.most_common()),
        "dropped": dict(totals.dropped.most_common()),
        "flags": dict(totals.flags.most_common()),
        "regions_per_asset": distribution(totals.regions_per_asset),
        "labels": {language: dict(labels.most_common(TOP_LABELS)) for language, labels in totals.labels.items() if labels},
        "labels_approximate": totals.labels_pruned,
        "texts": {name: count.to_dict() for name, count in totals.texts.items()},
        "videos": totals.videos.to_dict(),
        "runs": [_run(record) for record in run_records(store)],
    }


def _run(record: dict[str, Any]) -> dict[str, Any]:
    """Tokens and throughput of one run; a rate is null where the run did not say how long it took."""
    summary = record.get("summary") or {}
    usage, seconds = summary.get("usage") or {}, summary.get("seconds") or 0.0
    num_assets = sum((summary.get("statuses") or {}).values())

    def rate(count: float) -> float | None:
        return round(count / seconds, 3) if seconds else None

    return {
        "run_id": record.get("run_id"),
        "job": (record.get("job") or {}).get("name"),
        "job_hash": record.get("job_hash"),
        "status": record.get("status"),
        "started_at": record.get("started_at"),
        "seconds": round(seconds, 1),
        "assets": num_assets,
        **{name: summary.get(name, 0) for name in ("regions", "clips", "tracks")},
        "usage": usage,
        "cached_share": round(usage["cached_tokens"] / usage["prompt_tokens"], 3) if usage.get("prompt_tokens") else None,
        "assets_per_s": rate(num_assets),
        "regions_per_s": rate(summary.get("regions", 0)),
        "tracks_per_s": rate(summary.get("tracks", 0)),
        "output_tokens_per_s": rate(usage.get("output_tokens", 0)),
    }
