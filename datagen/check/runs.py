"""The records that runs leave: whole, and what they counted is in the tables. And what each run was asked for."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from datagen.check.hashes import list_problem
from datagen.check.report import CheckReport
from datagen.errors import DatagenError
from datagen.write.crashes import CRASHES, read_crashes
from datagen.write.parts_list import RUNS
from datagen.write.store import META, Store

_FIELDS: Mapping[str, type] = {
    **{"run_id": str, "job": dict, "job_hash": str, "seed": int, "started_at": str, "packages": dict, "hardware": dict},
    **{"model": dict, "prompts": dict, "status": str, "summary": dict},
}
_STATES = ("running", "finished", "interrupted", "stopped", "failed")
_COUNTED = ("ok", "empty", "failed")
# Small files that every run may replace.
_NOTES = (f"{META}/heartbeat.json", f"{META}/estimate.json")


@dataclass(frozen=True)
class RunFacts:
    """What a run was asked for, and what it counted.

    asked: (task, language) of the texts of regions. languages: of the texts of events. has_logprobs: every text has one. is_truth: the
    rows were not made by a model but rendered with their media. backward, segment_frames, every_frame: see perceive.track and decode.fps.
    statuses: assets committed, by status; None when the run left no summary. done_before: assets of its input that were done already.
    may_repeat_uris: a changed file counted as another asset.
    """

    run_id: str
    started_at: str
    asked: frozenset[tuple[str, str]]
    languages: frozenset[str]
    has_logprobs: bool
    is_truth: bool
    backward: bool
    segment_frames: int | None
    every_frame: bool
    statuses: Mapping[str, int] | None
    done_before: int
    may_repeat_uris: bool


def check_runs(store: Store, report: CheckReport) -> dict[str, RunFacts | None]:
    """run_id -> what its record says; None for one that is damaged, which is reported."""
    runs: dict[str, RunFacts | None] = {}
    for path, _ in store.list(RUNS):
        if not path.endswith(".json"):
            continue
        run_id = path.removeprefix(f"{RUNS}/").removesuffix(".json")
        record, problem = _read(store, path)
        problem = problem or _record_problem(record, run_id) or list_problem(store, record.get("parts", []))
        if problem:
            report.add("run_record", f"{path}: {problem}", id=run_id)
        runs[run_id] = None if problem else _facts(record)
    return runs


def check_notes(store: Store, report: CheckReport) -> None:
    """The crash file, the heartbeat and the estimate, where there are some."""
    try:
        read_crashes(store)
    except DatagenError as error:
        report.add("crash_file", error.message, id=CRASHES)
    for path in _NOTES:
        if store.exists(path):
            note, problem = _read(store, path)
            if problem or not isinstance(note, dict):
                report.add("meta_file", f"{path}: {problem or 'it is no JSON object'}; the next run writes it anew", id=path)


def check_counts(runs: Mapping[str, RunFacts | None], rows: Mapping[str, Counter[str]], num_waiting: int, report: CheckReport) -> None:
    """Every asset that a run counted is in the table, under its name. rows: run_id -> rows of `assets` by status. num_waiting: videos
    whose row the next run makes from their clips.

    An asset that was taken out by hand and done again is under the name of a later run, so only what those do not explain is lost. So is
    a failed one that was tried again.
    """
    counted = sorted((run for run in runs.values() if run is not None and run.statuses is not None), key=lambda run: run.started_at)
    found_of = Counter({run_id: sum(statuses.values()) for run_id, statuses in rows.items()})
    total = num_waiting + found_of.total()
    # A run that was killed left no count, and may have done again what was taken out.
    later = total - sum(found_of[run.run_id] for run in counted)
    for run in reversed(counted):
        statuses = run.statuses or {}
        found, expected = found_of[run.run_id], sum(statuses.get(name, 0) for name in _COUNTED)
        if run.done_before + expected > total:
            message = f"after the run {run.done_before + expected} assets of its input were done, the table has {total} in all"
            report.add("lost_asset", message, table="assets", id=run.run_id)
        elif expected - found > later:
            message = (
                f"the run committed {expected} assets, the table has {found} of it; other runs explain {later} of those that are missing"
            )
            report.add("lost_asset", message, table="assets", id=run.run_id)
        later += expected


def _read(store: Store, path: str) -> tuple[Any, str | None]:
    try:
        return json.loads(store.read(path), parse_constant=_refuse), None
    except (ValueError, RecursionError, OSError) as error:
        return None, f"it cannot be read: {error}"


def _record_problem(record: Any, run_id: str) -> str | None:
    if not isinstance(record, dict):
        return "it is no JSON object"
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            return f"`{name}` is {'missing' if name not in record else repr(record[name])[:80]}, expected {kind.__name__}"
    if record["run_id"] != run_id:
        return f"it is of the run {record['run_id']!r:.80}"
    if record["status"] not in _STATES:
        return f"`status` is {record['status']!r:.80}; known are {', '.join(_STATES)}"
    return _time_problem(record) or next(_count_problems(record["summary"], "summary"), None)


def _time_problem(record: Mapping[str, Any]) -> str | None:
    is_over = record["status"] != "running"
    try:
        times = [datetime.fromisoformat(record[name]) for name in ("started_at", *(("finished_at",) if is_over else ()))]
    except (ValueError, TypeError, KeyError) as error:
        return f"a time is none: {error}"
    if any(time.tzinfo is None for time in times):
        return "a time is without its zone"
    return "it ended before it began" if is_over and times[1] < times[0] else None


def _count_problems(value: Any, where: str) -> Iterator[str]:
    """Counts are not negative, and numbers are numbers."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name != "estimate":  # shares, which may be below 0
                yield from _count_problems(item, f"{where}.{name}")
    elif isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0):
        yield f"`{where}` is {value}"


def _facts(record: Mapping[str, Any]) -> RunFacts:
    job, summary = record["job"], record["summary"]
    describe, track = _group(job, "describe"), _group(_group(job, "perceive"), "track")
    tasks, languages = _words(describe, "tasks"), _words(describe, "languages")
    is_truth = record["model"].get("checkpoint") == "scenes"
    statuses, done_before = summary.get("statuses"), summary.get("done_before")
    return RunFacts(
        run_id=record["run_id"],
        started_at=record["started_at"],
        asked=frozenset((task, language) for task in tasks for language in languages),
        languages=frozenset(languages),
        has_logprobs=not is_truth,
        is_truth=is_truth,
        backward=bool(track.get("backward", True)),
        segment_frames=track.get("segment_frames"),
        every_frame=_group(job, "decode").get("fps") is None,
        statuses=statuses if isinstance(statuses, dict) else None,
        done_before=done_before if isinstance(done_before, int) else 0,
        may_repeat_uris=bool(_group(job, "source").get("reprocess_changed")),
    )


def _group(options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = options.get(name)
    return found if isinstance(found, dict) else {}


def _words(options: Mapping[str, Any], name: str) -> Sequence[str]:
    found = options.get(name)
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
