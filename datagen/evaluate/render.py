"""The measurement as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from datagen.terminal import shown

_SHOWN = 40
_PROBLEMS_SHOWN = 10
# Field of the report -> what it counts, for a person.
_OF_PICTURES = {
    "missing_images": "images missing",
    "failed_images": "images failed",
    "other_size_images": "images of another size",
    "missing_objects": "objects without a region",
    "extra_regions": "regions that answer no gold object",
    "ignored_regions": "regions in crowds",
    "images_not_in_gold": "images not in gold",
}
_OF_CLIPS = {
    "missing_videos": "videos missing",
    "failed_videos": "videos failed",
    "other_size_videos": "videos of another size",
    "missing_clips": "clips without a track",
    "missing_tracks": "objects without a track",
    "extra_tracks": "tracks that answer no gold object",
    "videos_not_in_gold": "videos not in gold",
}


def render_report(report: Mapping[str, Any], limit: int = _SHOWN) -> RenderableType:
    """What was not there, masks, texts, clips, and the first `limit` categories."""
    parts: list[RenderableType] = [f"{shown(report['dataset'])} against {shown(report['gold'])}"]
    if "masks" in report:
        parts.append(_numbers(f"{report['objects']} objects of {report['images']} images", report["masks"]))
        parts += _counts(report, _OF_PICTURES)
        parts += [f"gold that cannot be used: {_listed(report['unusable_gold'])}"] if report["unusable_gold"] else []
        parts.append(_texts(report["texts"]))
    if "clips" in report:
        clips = report["clips"]
        numbers = {name: clips[name] for name in ("mean_j", "presence")}
        parts.append(_numbers(f"{clips['tracks']} objects of {clips['clips']} clips of {clips['videos']} videos", numbers))
        parts += [*_counts(clips, _OF_CLIPS), _texts(clips["texts"])]
    if report["not_measured"]:
        parts.append(f"not measured, as the dataset has none of the kind: {_listed(report['not_measured'])} of gold")
    if report.get("categories"):
        parts.append(_categories(report["categories"], limit))
    problems = [*report.get("problems", []), *report.get("clips", {}).get("problems", [])]
    return Group(*parts, *(shown(problem) for problem in problems[:_PROBLEMS_SHOWN]), *_more(len(problems) - _PROBLEMS_SHOWN))


def _counts(report: Mapping[str, Any], names: Mapping[str, str]) -> list[RenderableType]:
    """One line with what counts as wrong or is left out, and is not zero."""
    said = [f"{report[name]} {text}" for name, text in names.items() if report[name]]
    return [", ".join(said)] if said else []


def _listed(counts: Mapping[str, int]) -> str:
    return shown(", ".join(f"{count} {name}" for name, count in counts.items()))


def _more(count: int) -> list[RenderableType]:
    return [f"{count} more such lines in --json"] if count > 0 else []


def _numbers(title: str, numbers: Mapping[str, float]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in numbers:
        table.add_column(name, justify="right")
    table.add_row(*(_shown(value) for value in numbers.values()))
    return table


def _texts(columns: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    if not columns:
        return "no text column that both have"
    scores = [name for name in next(iter(columns.values())) if name != "missing" or any(one["missing"] for one in columns.values())]
    table = Table(title_justify="left")
    table.add_column("text", no_wrap=True)
    for name in scores:
        table.add_column(name.removeprefix("semantic_").removesuffix("_match"), justify="right", no_wrap=True)
    for column, values in columns.items():
        table.add_row(shown(column), *(_shown(values[name]) for name in scores))
    return table


def _categories(rows: list[dict[str, Any]], limit: int) -> Table:
    left = f"; {len(rows) - limit} more in --json" if len(rows) > limit else ""
    table = Table(title=f"by category{left}", title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "category" else "right", no_wrap=name == "category")
    for row in rows[:limit]:
        table.add_row(*(shown(value) if isinstance(value, str) else _shown(value) for value in row.values()))
    return table


def _shown(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
