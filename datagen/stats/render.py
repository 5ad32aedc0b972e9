"""The stats as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from datagen.terminal import shown

_BAR = 24


def render_stats(stats: dict[str, Any]) -> RenderableType:
    """The stats as tables for a terminal, with bars."""
    summary = [("assets", stats["num_assets"]), *_indented(stats["statuses"])]
    summary += [("regions", stats["num_regions"]), ("parts", stats["num_parts"])]
    summary += _spread("regions per asset", stats["regions_per_asset"])
    parts: list[RenderableType] = [shown(stats["dataset"]), _plain_table(None, summary)]
    titles = {"failures": "Failed assets by code", "dropped": "Dropped regions by reason", "flags": "Flagged regions"}
    parts += [_bars(title, stats[key]) for key, title in titles.items() if stats[key]]
    about = " (approximate)" if stats["labels_approximate"] else ""
    parts += [_bars(f"Most frequent labels, {language}{about}", labels) for language, labels in stats["labels"].items()]
    parts += _lengths(stats["texts"])
    if stats["videos"]:
        parts += _videos(stats["videos"])
    if stats["runs"]:
        parts.append(_runs_table(stats["runs"]))
    return Group(*parts)


def _videos(videos: dict[str, Any]) -> list[RenderableType]:
    summary = [("finished videos", videos["num_videos"]), *_indented(videos["statuses"]), ("unfinished videos", videos["num_unfinished"])]
    summary += [("hours in clips", videos["hours"]), ("clips", videos["num_clips"]), *_indented(videos["clip_statuses"])]
    summary += [("objects of finished videos", videos["num_objects"]), ("tracks", videos["num_tracks"]), ("events", videos["num_events"])]
    if videos["visible_share"] is not None:
        summary.append(("share of a track's frames in which it is seen", videos["visible_share"]))
    spreads = {"clip_seconds": "seconds per clip", "tracks_per_clip": "tracks per clip", "events_per_track": "events per track"}
    for key, name in spreads.items():
        summary += _spread(name, videos[key])
    titles = {"failures": "Failed videos by code", "dropped": "Dropped tracks by reason", "flags": "Flagged tracks"}
    bars = [_bars(title, videos[key]) for key, title in titles.items() if videos[key]]
    return [_plain_table("Videos", summary), *bars, *_lengths(videos["texts"])]


def _indented(counts: dict[str, int]) -> list[tuple[str, float]]:
    return [(f"  {name}", count) for name, count in counts.items()]


def _spread(name: str, numbers: dict[str, float]) -> list[tuple[str, float]]:
    return [(f"{name}, {key}", value) for key, value in numbers.items()]


def _lengths(texts: dict[str, Any]) -> list[RenderableType]:
    units = {name: "words" if name.endswith("_en") else "characters" for name in texts}
    return [_bars(f"Length of {name}, {units[name]}", text["lengths"]) for name, text in texts.items()]


def _plain_table(title: str | None, rows: list[tuple[str, float]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    for name, value in rows:
        table.add_row(shown(name), f"{value:,}")
    return table


def _bars(title: str, counts: dict[str, int]) -> Table:
    table = Table(title=shown(title), title_justify="left", show_header=False, box=None)
    table.add_column(overflow="fold", max_width=40)
    table.add_column(justify="right")
    most = max(counts.values(), default=1)
    for name, count in counts.items():
        table.add_row(shown(name) or "(empty)", f"{count:,}", "█" * max(1, round(_BAR * count / most)))
    return table


def _runs_table(runs: list[dict[str, Any]]) -> Table:
    table = Table(title="Runs", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    counts = ["assets", "regions", *(["clips", "tracks"] if any(run["clips"] for run in runs) else [])]
    rates = {"regions_per_s": "reg/s", **({"tracks_per_s": "trk/s"} if "tracks" in counts else {}), "output_tokens_per_s": "tok/s"}
    for heading in ("run", "status", *counts, "seconds", *rates.values(), "cached"):
        table.add_column(heading, justify="left" if heading in ("run", "status") else "right", overflow="fold")
    for run in runs:
        numbers = (f"{run[name]:,}" for name in (*counts, "seconds"))
        per_second = ("" if run[name] is None else f"{run[name]:,.1f}" for name in rates)
        cached = "" if run["cached_share"] is None else f"{run['cached_share']:.0%}"
        table.add_row(shown(run["run_id"]), shown(run["status"]), *numbers, *per_second, cached)
    return table
