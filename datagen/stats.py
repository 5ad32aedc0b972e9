"""`datagen stats`: what is in a dataset, and what the runs that made it took."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from datagen.errors import SourceError
from datagen.records import LANGUAGES, TASKS
from datagen.write.layout import open_dataset, run_records
from datagen.write.parts import PART_NAME, part_path
from datagen.write.store import Store

TOP_LABELS = 20
_LABELS_KEPT = 200_000
_LENGTH_EDGES = (0, 1, 5, 10, 20, 40, 80, 160, 320)
_BAR = 24


@dataclass
class _Column:
    """One text column: how many rows have it, their lengths, and why they ended."""

    num_texts: int = 0
    num_characters: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    finish: Counter[str] = field(default_factory=Counter)


@dataclass
class _Totals:
    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    regions_per_asset: Counter[int] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=lambda: {language: Counter() for language in LANGUAGES})
    labels_pruned: bool = False
    texts: dict[str, _Column] = field(default_factory=dict)
    num_parts: int = 0


def dataset_stats(uri: str) -> dict[str, Any]:
    """Counts of a dataset and its runs, as plain values.

    Only committed parts count. Lengths are in words for English and in characters for Chinese. Raises SourceError when there is no
    dataset at `uri`, or a part of it cannot be read.
    """
    store = open_dataset(uri)
    totals = _Totals()
    for path, _ in store.list("assets"):
        match = PART_NAME.match(path.split("/")[-1])
        if match:
            totals.num_parts += 1
            _add_assets(totals, store, path)
            regions = part_path("regions", match["id"])
            if store.exists(regions):
                _add_regions(totals, store, regions)
    return _as_dict(store, totals)


def _add_assets(totals: _Totals, store: Store, path: str) -> None:
    for batch in _batches(store, path, ["status", "error_code", "num_regions", "dropped"]):
        totals.statuses.update(batch["status"].to_pylist())
        totals.failures.update(code for code in batch["error_code"].to_pylist() if code)
        totals.regions_per_asset.update(
            n for n, status in zip(batch["num_regions"].to_pylist(), batch["status"].to_pylist(), strict=True) if status != "failed"
        )
        for drops in batch["dropped"].to_pylist():
            totals.dropped.update({drop["reason"]: drop["count"] for drop in drops})


def _add_regions(totals: _Totals, store: Store, path: str) -> None:
    names = [(f"{task}_{language}", task, language) for task in TASKS for language in LANGUAGES]
    columns = ["flags", *(name + suffix for name, _, _ in names for suffix in ("", "_finish"))]
    for batch in _batches(store, path, columns):
        totals.flags.update(pc.list_flatten(batch["flags"]).to_pylist())
        for name, task, language in names:
            texts = [text for text in batch[name].to_pylist() if text is not None]
            if not texts:
                continue
            column = totals.texts.setdefault(name, _Column())
            column.num_texts += len(texts)
            column.num_characters += sum(map(len, texts))
            column.lengths.update(_bin(len(text.split()) if language == "en" else len(text)) for text in texts)
            column.finish.update(reason for reason in batch[name + "_finish"].to_pylist() if reason)
            if task == "label":
                _count_labels(totals, language, texts)


def _count_labels(totals: _Totals, language: str, texts: Iterable[str]) -> None:
    """Free text has no bound on how many labels there are, memory has: now and then the rare half is forgotten."""
    labels = totals.labels[language]
    labels.update(unicodedata.normalize("NFC", text).strip().casefold() for text in texts)
    if len(labels) > _LABELS_KEPT:
        totals.labels[language] = Counter(dict(labels.most_common(_LABELS_KEPT // 2)))
        totals.labels_pruned = True


def _batches(store: Store, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with store.open_input(path) as source:
            yield from pq.ParquetFile(source).iter_batches(8192, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{store.uri}/{path} cannot be read: {error}. `datagen check {store.uri}` names all damage.") from error


def _bin(length: int) -> int:
    return max(edge for edge in _LENGTH_EDGES if edge <= length)


def _as_dict(store: Store, totals: _Totals) -> dict[str, Any]:
    return {
        "dataset": store.uri,
        "num_parts": totals.num_parts,
        "num_assets": sum(totals.statuses.values()),
        "num_regions": sum(n * count for n, count in totals.regions_per_asset.items()),
        "statuses": dict(totals.statuses),
        "failures": dict(totals.failures.most_common()),
        "dropped": dict(totals.dropped.most_common()),
        "flags": dict(totals.flags.most_common()),
        "regions_per_asset": _distribution(totals.regions_per_asset),
        "labels": {language: dict(labels.most_common(TOP_LABELS)) for language, labels in totals.labels.items() if labels},
        "labels_approximate": totals.labels_pruned,
        "texts": {
            name: {
                "count": column.num_texts,
                "mean_characters": round(column.num_characters / column.num_texts, 1),
                "lengths": {_bin_name(edge): column.lengths[edge] for edge in _LENGTH_EDGES if column.lengths[edge]},
                "finish": dict(column.finish),
            }
            for name, column in totals.texts.items()
        },
        "runs": [_run(record) for record in run_records(store)],
    }


def _bin_name(edge: int) -> str:
    following = [other for other in _LENGTH_EDGES if other > edge]
    if not following:
        return f"{edge}+"
    return str(edge) if following[0] == edge + 1 else f"{edge}-{following[0] - 1}"


def _distribution(counts: Counter[int]) -> dict[str, float]:
    """Mean, median, 90th percentile and maximum of values given as value -> how often. Empty for none."""
    total = sum(counts.values())
    if not total:
        return {}
    values = sorted(counts)

    def percentile(share: float) -> int:
        left = math.ceil(share * total)
        for value in values:
            left -= counts[value]
            if left <= 0:
                return value
        return values[-1]

    mean = sum(value * count for value, count in counts.items()) / total
    return {"mean": round(mean, 2), "p50": percentile(0.5), "p90": percentile(0.9), "max": values[-1]}


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
        "regions": summary.get("regions", 0),
        "usage": usage,
        "cached_share": round(usage["cached_tokens"] / usage["prompt_tokens"], 3) if usage.get("prompt_tokens") else None,
        "assets_per_s": rate(num_assets),
        "regions_per_s": rate(summary.get("regions", 0)),
        "output_tokens_per_s": rate(usage.get("output_tokens", 0)),
    }


# --- for people ------------------------------------------------------------------------------------------------------------------


def render_stats(stats: dict[str, Any]) -> RenderableType:
    """The stats as tables for a terminal, with bars."""
    summary = {"assets": stats["num_assets"], **{f"  {key}": n for key, n in stats["statuses"].items()}}
    summary |= {"regions": stats["num_regions"], "parts": stats["num_parts"]}
    summary |= {f"regions per asset, {key}": value for key, value in stats["regions_per_asset"].items()}
    parts: list[RenderableType] = [_plain_table(escape(stats["dataset"]), summary)]
    titles = {"failures": "Failed assets by code", "dropped": "Dropped regions by reason", "flags": "Flagged regions"}
    parts += [_bars(title, stats[key]) for key, title in titles.items() if stats[key]]
    about = " (approximate)" if stats["labels_approximate"] else ""
    parts += [_bars(f"Most frequent labels, {language}{about}", labels) for language, labels in stats["labels"].items()]
    for name, text in stats["texts"].items():
        unit = "words" if name.endswith("_en") else "characters"
        parts.append(_bars(f"Length of {name}, {unit}", text["lengths"]))
    if stats["runs"]:
        parts.append(_runs_table(stats["runs"]))
    return Group(*parts)


def _plain_table(title: str, rows: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, f"{value:,}")
    return table


def _bars(title: str, counts: dict[str, int]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(overflow="fold", max_width=40)
    table.add_column(justify="right")
    most = max(counts.values(), default=1)
    for name, count in counts.items():
        table.add_row(escape(name) or "(empty)", f"{count:,}", "█" * max(1, round(_BAR * count / most)))
    return table


def _runs_table(runs: list[dict[str, Any]]) -> Table:
    table = Table(title="Runs", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("run", "status", "assets", "regions", "seconds", "reg/s", "tok/s", "cached"):
        table.add_column(heading, justify="left" if heading in ("run", "status") else "right", overflow="fold")
    for run in runs:
        numbers = (f"{run['assets']:,}", f"{run['regions']:,}", f"{run['seconds']:,}")
        rates = ("" if value is None else f"{value:,.1f}" for value in (run["regions_per_s"], run["output_tokens_per_s"]))
        cached = "" if run["cached_share"] is None else f"{run['cached_share']:.0%}"
        table.add_row(str(run["run_id"]), str(run["status"]), *numbers, *rates, cached)
    return table
