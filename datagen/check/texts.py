"""Texts: each with its log-probability and the reason why it ended, all that the job asked for, and none that it did not."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.check.report import Problem
from datagen.check.runs import RunFacts
from datagen.flags import FINISH_REASONS
from datagen.records import LANGUAGES, TASKS

Row = Mapping[str, Any]


def region_text_problems(batch: pa.RecordBatch, runs: Mapping[str, RunFacts | None]) -> Iterator[Problem]:
    """What is wrong with the texts of rows of `regions`, column by column. runs: what each run was asked for."""
    row_ids, run_ids = batch["region_id"].to_pylist(), np.asarray(batch["run_id"].to_pylist(), dtype=object)
    flags = [frozenset(some) for some in batch["flags"].to_pylist()]
    for run_id in dict.fromkeys(run_ids):
        is_of_run = run_ids == run_id
        for task in TASKS:
            for language in LANGUAGES:
                for code, message, is_wrong in _column_problems(batch, task, language, runs.get(run_id), flags):
                    for index in np.flatnonzero(is_wrong & is_of_run):
                        yield code, message, row_ids[index]


def _column_problems(
    batch: pa.RecordBatch, task: str, language: str, run: RunFacts | None, flags: list[frozenset[str]]
) -> Iterator[tuple[Any, str, np.ndarray]]:
    name = f"{task}_{language}"
    finish, logprob = batch[f"{name}_finish"], batch[f"{name}_logprob"]
    has_text, has_finish, has_logprob = (_has(column) for column in (batch[name], finish, logprob))
    # A label that was not asked for is taken from the answer to the definition, and has no answer of its own.
    is_borrowed = _has(batch[f"definition_{language}"]) & ~has_finish if task == "label" else np.zeros(len(has_text), dtype=bool)
    yield "text", f"{name} has no {name}_finish", has_text & ~has_finish & ~is_borrowed
    yield "text", f"{name}_finish or {name}_logprob is there without {name}", ~has_text & (has_finish | has_logprob)
    yield "text", f"{name}_finish is none of {', '.join(FINISH_REASONS)}", has_finish & ~_is_in(finish, FINISH_REASONS)
    numbers = np.asarray(logprob.fill_null(0.0))
    yield "logprob", f"{name}_logprob is above 0, or no number", has_logprob & ~((numbers <= 0) & np.isfinite(numbers))
    is_truncated, is_flagged = _is_in(finish, ("length",)), np.array([f"truncated:{name}" in some for some in flags], dtype=bool)
    yield "flags", f"{name}_finish and the flag truncated:{name} do not agree", is_truncated != is_flagged
    if run is None:
        return
    if (task, language) in run.asked:
        yield "text", f"the job asked for {name}, and it is missing", ~has_finish | ~has_text
        if run.has_logprobs:
            yield "logprob", f"{name} has no log-probability", has_finish & ~has_logprob
    else:
        yield "text", f"{name} is there, and the job did not ask for it", has_finish


def event_text_problems(event: Row, number: int, run: RunFacts | None) -> Iterator[tuple[Any, str]]:
    """(code, what is wrong) with the texts of an event."""
    for language in LANGUAGES:
        name = f"text_{language}"
        text, logprob, finish = event[name], event[f"{name}_logprob"], event[f"{name}_finish"]
        if (text is None) != (finish is None) or (text is None and logprob is not None):
            yield "text", f"event {number}: of {name}, its finish and its log-probability one is there without the other"
        if finish is not None and finish not in FINISH_REASONS:
            yield "text", f"event {number}: {name}_finish is {finish!r:.80}, none of {', '.join(FINISH_REASONS)}"
        if logprob is not None and not (math.isfinite(logprob) and logprob <= 0):
            yield "logprob", f"event {number}: {name}_logprob is {logprob}"
        if run is None:
            continue
        if language in run.languages:
            if text is None:
                yield "text", f"event {number}: the job asked for {name}, and it is missing"
            elif logprob is None and run.has_logprobs:
                yield "logprob", f"event {number}: {name} has no log-probability"
        elif text is not None:
            yield "text", f"event {number}: {name} is there, and the job did not ask for it"


def track_text_problems(row: Row, run: RunFacts | None) -> Iterator[tuple[Any, str]]:
    """(code, what is wrong) with the captions, histories and flags of a track, against its events."""
    events, flags = row["events"], set(row["flags"])
    is_seen = any(frame["mask"] is not None for frame in row["frames"])
    if is_seen and not events:
        yield "event", "it is seen, and has no event"
    for number, event in enumerate(events):
        yield from event_text_problems(event, number, run)
    for language in LANGUAGES:
        last = events[-1][f"text_{language}"] if events else None
        if row[f"caption_{language}"] != last and not (run is not None and run.is_truth):
            yield "caption", f"caption_{language} is {row[f'caption_{language}']!r:.80}, its last event says {last!r:.80}"
        is_truncated = any(event[f"text_{language}_finish"] == "length" for event in events)
        if is_truncated != (f"truncated:event_{language}" in flags):
            yield "flags", f"text_{language}_finish of its events and the flag truncated:event_{language} do not agree"
        yield from _history_problems(events, language, flags)


def _history_problems(events: Collection[Row], language: str, flags: Collection[str]) -> Iterator[tuple[Any, str]]:
    """The history of an event is the latest caption that is not empty, or, where it was too long, the end of it."""
    said: str | None = None
    for number, event in enumerate(events):
        history = event[f"history_{language}"]
        is_cut = f"history_cut:event_{language}" in flags and (history is None or (said is not None and len(history) <= len(said)))
        if history is not None and event[f"text_{language}"] is None:
            yield "event", f"event {number}: history_{language} is there without text_{language}"
        elif event[f"text_{language}"] is not None and history != said and not is_cut:
            yield "event", f"event {number}: history_{language} is {history!r:.80}, the caption before {said!r:.80}"
        said = event[f"text_{language}"] or said


def _has(column: pa.Array) -> np.ndarray:
    return np.asarray(column.is_valid())


def _is_in(column: pa.Array, words: tuple[str, ...]) -> np.ndarray:
    return np.asarray(pc.is_in(column, pa.array(words)).fill_null(False))
