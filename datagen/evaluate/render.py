"""The measurement as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

_SHOWN = 40


def render_report(report: Mapping[str, Any], limit: int = _SHOWN) -> RenderableType:
    """Masks, texts, clips, and the first `limit` categories."""
    parts: list[RenderableType] = [f"{escape(report['dataset'])} against {escape(report['gold'])}"]
    if "masks" in report:
        parts.append(_numbers(f"{report['objects']} objects of {report['images']} images", report["masks"]))
        parts.append(f"regions that answer no gold object: {report['extra_regions']}")
        parts.append(_texts(report["texts"]))
    if "clips" in report:
        clips = report["clips"]
        numbers = {name: clips[name] for name in ("mean_j", "presence")}
        parts += [_numbers(f"{clips['tracks']} objects of {clips['clips']} clips", numbers), _texts(clips["texts"])]
    if report.get("categories"):
        parts.append(_categories(report["categories"], limit))
    return Group(*parts)


def _numbers(title: str, numbers: Mapping[str, float]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in numbers:
        table.add_column(name, justify="right")
    table.add_row(*(_shown(value) for value in numbers.values()))
    return table


def _texts(columns: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    if not columns:
        return "no text column that both have"
    table = Table(title_justify="left")
    table.add_column("text", no_wrap=True)
    for name in next(iter(columns.values())):
        table.add_column(name.removeprefix("semantic_").removesuffix("_match"), justify="right", no_wrap=True)
    for column, scores in columns.items():
        table.add_row(column, *(_shown(value) for value in scores.values()))
    return table


def _categories(rows: list[dict[str, Any]], limit: int) -> Table:
    left = f"; {len(rows) - limit} more in --json" if len(rows) > limit else ""
    table = Table(title=f"by category{left}", title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "category" else "right", no_wrap=name == "category")
    for row in rows[:limit]:
        table.add_row(*(escape(value) if isinstance(value, str) else _shown(value) for value in row.values()))
    return table


def _shown(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
