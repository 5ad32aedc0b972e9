"""What a person sees while a job runs: a progress bar on the screen, everything noisy in a log file."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from datagen.machine import Unbroken
from datagen.printable import printable
from datagen.terminal import Screen, shown

if TYPE_CHECKING:
    from datagen.check import CheckReport
    from datagen.pam.inspection import CheckpointReport
    from datagen.run.heartbeat import RunStatus
    from datagen.run.summary import RunSummary

PLAIN_EVERY_S = 10.0
RATES_AFTER_S = 2.0
SHOWN = 50
_CHANGES = ("changed_prompts", "redone", "other_ids", "same_names")


class _PrintableLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


@contextmanager
def noise_to(log: Path) -> Iterator[Any]:
    """Send this process's stdout and stderr, at the level of file descriptors, to `log`; yield the screen.

    Ray, vLLM and C++ libraries write to the descriptors directly, so redirecting `sys.stderr` would not catch them.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with os.fdopen(os.dup(saved_err), "w", encoding=sys.stderr.encoding or "utf-8", errors="backslashreplace", buffering=1) as terminal:
            yield Unbroken(terminal)
    finally:
        root.removeHandler(handler)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved_out, 1)
        os.dup2(saved_err, 2)
        os.close(saved_out)
        os.close(saved_err)


def _rates(counters: dict[str, int], seconds: float) -> str:
    words = {"describe": "samples/s", "regions": "regions/s", "clips": "clips/s", "tracks": "tracks/s", "output_tokens": "tokens/s"}
    shown = {name: word for name, word in words.items() if counters.get(name) or name == "output_tokens"}
    rates = " ".join(f"{counters.get(name, 0) / max(seconds, 1e-3):.1f} {word}" for name, word in shown.items())
    failed = counters.get("failed", 0)
    return rates + (f" · {failed} failed" if failed else "")


class RunProgress:
    """A progress bar on a terminal; elsewhere a line now and then, where there is news. Call it with the summary of the run so far."""

    def __init__(self, screen: Any) -> None:
        self._console = Screen(file=screen, highlight=False)
        self._first: float | None = None
        self._last, self._shown = 0.0, ""
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[news]}", style="cyan"),
        )
        self._bar = Progress(*columns, console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._task = self._bar.add_task("datagen", total=None, news="") if self._bar else None

    def __call__(self, summary: RunSummary) -> None:
        """Show how far the run is."""
        done, news, now = (
            summary.counters.get("describe", 0) + summary.videos,
            summary.waiting or self._news(summary.counters),
            time.monotonic(),
        )
        if self._bar and self._task is not None:
            self._bar.update(self._task, total=summary.todo, completed=done, news=news)
        elif now - self._last >= PLAIN_EVERY_S and news != self._shown:
            self._last, self._shown = now, news
            self._console.print(f"{done}/{summary.todo} samples · {news}", soft_wrap=True)

    def _news(self, counters: dict[str, int]) -> str:
        """Rates since there was a sample and a language model; until then, how far it is."""
        steps = {"decode": "decoded", "perceive": "perceived", "clips_tracked": "clips tracked"}
        before = [f"{counters[step]} {word}" for step, word in steps.items() if counters.get(step)]
        if not counters.get("describe_workers"):
            return ", ".join([*before, "loading models"])
        if not before:
            return "waiting for the first sample"
        if self._first is None:
            self._first = time.monotonic()
        seconds = time.monotonic() - self._first
        return _rates(counters, seconds) if seconds >= RATES_AFTER_S else ", ".join(before)

    def __enter__(self) -> RunProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


@contextmanager
def run_screen(log: Path) -> Iterator[RunProgress]:
    """The screen of `datagen run`: progress here, noise in `log`."""
    with noise_to(log) as screen, RunProgress(screen) as progress:
        Screen(file=screen, highlight=False).print(f"[dim]log: {shown(log)}[/dim]")
        yield progress


def print_run(console: Console, summary: RunSummary) -> None:
    """The summary at the end of `datagen run`."""
    if not summary.todo:
        left = f", {summary.failed_before} of its assets failed and are left alone" if summary.failed_before else ""
        found = (
            f"all {summary.listed} assets of the input are in {summary.output}{left}"
            if summary.listed
            else "the input has no assets for this job"
        )
        skipped = f"; skipped: {_counts(summary.skipped)}" if summary.skipped else ""
        console.print(shown(f"nothing to do: {found}{skipped}"), soft_wrap=True)
        _print_warnings(console, summary.warnings)
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    counts = ", ".join(f"{summary.statuses[s]} {s}" for s in ("ok", "empty", "failed") if summary.statuses[s])
    table.add_row("assets", counts or "none finished")
    for name in _CHANGES:
        if count := getattr(summary, name):
            table.add_row(name.replace("_", " "), str(count))
    if summary.done_before:
        left = f"; {summary.failed_before} failed and are left alone" if summary.failed_before else ""
        table.add_row("before", f"{summary.done_before} done by earlier runs{left}")
        table.add_row("changes", ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in summary.diff.items()) or "none")
    if summary.regions or not summary.clips:
        table.add_row("regions", f"{summary.regions} in {summary.parts - summary.clips} parts")
    if summary.clips:
        table.add_row("tracks", f"{summary.tracks} in {summary.clips} clips")
    usage = summary.usage
    if usage["prompt_tokens"]:
        cached = usage["cached_tokens"] / usage["prompt_tokens"]
        table.add_row(
            "tokens", f"{usage['prompt_tokens']:,} prompt ({cached:.0%} from the prefix cache), {usage['output_tokens']:,} output"
        )
    made = {"regions": summary.regions, "tracks": summary.tracks}
    rates = ", ".join(f"{count / summary.seconds:.2f} {name}/s" for name, count in made.items() if count and summary.seconds)
    table.add_row("time", f"{summary.seconds:.1f} s with start-up" + (f", {rates}" if rates else ""))
    if summary.gpu_hours:
        cost = f", at a cost of {summary.cost:.2f}" if summary.cost is not None else ""
        table.add_row("GPU-hours", f"{summary.gpu_hours:.3f} of the machine or cluster{cost}")
    if summary.estimate:
        table.add_row("estimate", _off(summary.estimate))
    for title, reasons in (("failed", summary.failures), ("dropped", summary.dropped), ("skipped", summary.skipped)):
        if reasons:
            table.add_row(title, shown(_counts(reasons)))
    table.add_row("dataset", shown(summary.output))
    console.print(table)
    _print_warnings(console, summary.warnings)


def _off(estimate: Mapping[str, Any]) -> str:
    found = ((name.replace("_", "-"), value) for name, value in estimate["figures"].items() if value["off"] is not None)
    return ", ".join(f"{value['estimated']:.4g} {name} ({value['off']:+.0%})" for name, value in found)


def print_estimate(console: Console, estimate: Mapping[str, Any]) -> None:
    """What `datagen plan --sample` foretells."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    sample, whole = estimate["sample"], estimate["whole"]
    table.add_row("sample", f"{sample['assets']} assets in {sample['seconds']:.1f} s, {sample['startup_s']:.1f} s of it start-up")
    for name in ("regions", "tracks", "output_tokens"):
        if whole[name]["mean"]:
            table.add_row(
                name.replace("_", " "), f"{whole[name]['mean']:,.0f} (95 %: {whole[name]['low']:,.0f} to {whole[name]['high']:,.0f})"
            )
    table.add_row("time", f"{_ago(whole['seconds'])}, with the workers above")
    table.add_row("GPU-hours", f"{whole['gpu_hours']:.4g} on {estimate['gpus']:g} GPUs")
    if whole["cost"] is not None:
        table.add_row("cost", f"{whole['cost']:.2f}")
    console.print(table)


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))


def _print_warnings(console: Console, warnings: list[str]) -> None:
    for warning in warnings:
        console.print(f"[yellow]warning:[/yellow] {shown(warning)}")


def print_check(console: Console, report: CheckReport) -> None:
    """What `datagen check` found."""
    for violation in report.violations[:SHOWN]:
        where = " ".join(part for part in (violation.table, violation.part, violation.id) if part)
        console.print(f"[red]{shown(violation.code)}[/red] {shown(where)}: {shown(violation.message)}")
    total = sum(report.by_code.values())
    if total > SHOWN:
        console.print(f"... {total - SHOWN} more; --json lists them")
    verdict = f"[red]{total} violations[/red]" if total else "[green]every invariant holds[/green]"
    counts = f"{report.num_assets} assets and {report.num_regions} regions"
    if report.num_clips:
        counts = f"{report.num_assets} assets, {report.num_regions} regions, {report.num_clips} clips and {report.num_tracks} tracks"
    console.print(f"{verdict}: {counts} in {report.num_parts} parts", soft_wrap=True)
    if report.num_unproven_parts:
        console.print(f"not proven: {report.num_unproven_parts} files have no content hash, as earlier versions wrote them", soft_wrap=True)
    if report.num_unlisted_parts:
        who = "a run is on, or was killed; the next one lists them"
        console.print(f"{report.num_unlisted_parts} parts are whole, and listed by no run ({who})", soft_wrap=True)
    if report.num_unfinished_videos:
        left = f"unfinished videos: {report.num_unfinished_videos}, with {report.num_unfinished_clips} clips so far"
        console.print(f"{left}; run the job again to go on with them", soft_wrap=True)


def print_plan(console: Console, plan: dict[str, Any]) -> None:
    """What `datagen plan` found."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for key in ("input", "output", "listed", "done", "left", "parts"):
        table.add_row(key, shown(plan[key]))
    for key in _CHANGES:
        if plan[key]:
            table.add_row(key.replace("_", " "), str(plan[key]))
    if plan["skipped"]:
        table.add_row("skipped", shown(_counts(plan["skipped"])))
    for step, pool in plan["workers"].items():
        size = f"{pool['min_workers']}" if pool["min_workers"] == pool["max_workers"] else f"{pool['min_workers']}-{pool['max_workers']}"
        gpus = f", {pool['num_gpus']:g} GPU" if pool["num_gpus"] else ""
        table.add_row(step, f"{size} workers, each {pool['num_cpus']:g} CPU{gpus}")
    if plan["cluster"]:
        table.add_row("cluster", _cluster(plan["cluster"]))
    console.print(table)
    _print_warnings(console, plan["warnings"])


def _cluster(cluster: dict[str, Any]) -> str:
    nodes = ", ".join(
        f"{least}-{most} {group}" if least != most else f"{most} {group}" for group, (least, most) in cluster["nodes"].items()
    )
    least, most = cluster["cost_per_hour"]
    cost = f"; {least:g} to {most:g} an hour" if most else ""
    return f"{cluster['name']} ({cluster['provider']}): {nodes}{cost}"


_VERDICTS = {
    "alive": "[green]running[/green], {age} after its last heartbeat",
    "died": "[red]died[/red]: its process is gone, its last heartbeat was {age} ago; run the same command to resume",
    "silent": "[red]silent[/red]: no heartbeat for {age}. It died, was stopped, or is cut off; the same command finds out, and resumes",
}


def print_status(console: Console, status: RunStatus) -> None:
    """What `datagen status` found."""
    beat = status.beat
    verdict = _VERDICTS.get(status.verdict, beat["state"] + " {age} ago").format(age=_ago(status.age_s))
    console.print(f"{shown(beat['run_id'])} {verdict}", soft_wrap=True)
    if beat["error"]:
        console.print(f"[red]{shown(beat['error']['code'])}[/red]: {shown(beat['error']['message'])}", soft_wrap=True)
    if beat.get("waiting"):
        console.print(f"[yellow]{shown(beat['waiting'])}[/yellow]", soft_wrap=True)
    assets = beat["assets"]
    total = assets["todo"] if assets["all_listed"] else f"{assets['todo']} or more (still listing)"
    steps = ", ".join(f"{step} {found['samples']}" for step, found in beat["steps"].items() if found["workers"])
    pace = f"{beat['tokens_per_s']:.1f} tokens/s" if beat["tokens_per_s"] is not None else "loading models" if not steps else "starting"
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row("job", shown(f"{beat['job']} on {beat['host']}, input {beat['input']}"))
    table.add_row("started", shown(beat["started_at"]))
    table.add_row("assets", f"{assets['done']} of {total} done, {assets['failed']} failed, {assets['left']} left")
    table.add_row("before", f"{assets['done_before']} done by earlier runs")
    table.add_row("found", ", ".join(f"{beat[name]} {name}" for name in ("regions", "clips", "tracks") if beat[name]) or "no regions yet")
    if steps:
        table.add_row("steps", shown(steps))
    incidents = [f"{count} {name.replace('_', ' ')}" for name, count in beat.get("incidents", {}).items() if count]
    if incidents:
        table.add_row("incidents", ", ".join(incidents))
    if status.verdict == "alive":
        table.add_row("pace", pace + (f", ready in {_ago(beat['eta_s'])}" if beat["eta_s"] is not None else ""))
    console.print(table)


def _ago(seconds: float) -> str:
    """A time span for people: its two largest units."""
    left, words = max(0, round(seconds)), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= size or (unit == "s" and not words):
            words.append(f"{left // size} {unit}")
        left %= size
    return " ".join(words[:2])


def print_checkpoint(console: Console, report: CheckpointReport) -> None:
    """What `datagen model show` found."""
    table = Table("part", "tensors", "parameters", "dtype", box=None)
    for name, group in report.groups.items():
        table.add_row(name, str(group.num_tensors), f"{group.num_parameters:,}", shown(", ".join(sorted(group.dtypes))))
    console.print(table)
    console.print(f"SAM 2.1: {shown(report.sam2_weights)}, config {shown(report.sam2_config)}")
    for title, keys in (("missing", report.missing), ("unexpected", report.unexpected), ("wrong shape", report.wrong_shape)):
        for key in keys:
            console.print(f"[red]{title}[/red] {shown(key)}")
