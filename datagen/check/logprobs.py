"""The optional column `token_logprobs`: answers token by token, held against one another and against the mean beside their text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from datagen.records import LANGUAGES, TASKS

_TOLERANCE = 1e-3  # nats; the numbers are float32

Row = Mapping[str, Any]


def region_logprob_problems(row: Row) -> Iterator[str]:
    """What is wrong with the column in a row of `regions`; nothing when the table is without it."""
    means = {(task, language): row[f"{task}_{language}_logprob"] for task in TASKS for language in LANGUAGES}
    yield from _problems(row.get("token_logprobs"), "task", means)


def track_logprob_problems(row: Row) -> Iterator[str]:
    """The same in a row of `tracks`."""
    events = enumerate(row["events"])
    means = {(number, language): event[f"text_{language}_logprob"] for number, event in events for language in LANGUAGES}
    yield from _problems(row.get("token_logprobs"), "event", means)


def _problems(entries: Sequence[Row] | None, kind: str, means: Mapping[tuple[Any, str], float | None]) -> Iterator[str]:
    """means: mean log-probability by (task or event, language); None where there is no text, or none is known."""
    if entries is None:
        return
    found = [(entry[kind], entry["language"]) for entry in entries]
    expected = [key for key, mean in means.items() if mean is not None]
    if sorted(found) != sorted(expected):
        yield f"it has entries for {_names(found)}, the row has log-probabilities of {_names(expected)}"
        return
    for key, entry in zip(found, entries, strict=True):
        problem = _problem(entry, means[key])
        if problem:
            yield f"{kind} {key[0]} ({key[1]}): {problem}"


def _problem(entry: Row, mean: float | None) -> str | None:
    count, width = len(entry["token_ids"]), len(entry["top_ids"])
    sizes = f"{count} token_ids, {len(entry['logprobs'])} logprobs, {width} top_ids, {len(entry['top_logprobs'])} top_logprobs"
    if not count or count != len(entry["logprobs"]) or not width or width % count or width != len(entry["top_logprobs"]):
        return f"its lengths do not agree: {sizes}; as many logprobs as token_ids, and k times as many of the others"
    ids, logprobs = np.asarray(entry["token_ids"])[:, None], np.asarray(entry["logprobs"])[:, None]
    top_ids, top = (np.asarray(entry[name]).reshape(count, -1) for name in ("top_ids", "top_logprobs"))
    if not (np.isfinite(logprobs).all() and np.isfinite(top).all()):
        return "a log-probability is not finite"
    if min(ids.min(), top_ids.min()) < 0 or (np.diff(np.sort(top_ids, axis=1)) == 0).any():
        return "a token id is below 0, or twice among the most likely ones of a place"
    if (np.diff(top) > _TOLERANCE).any() or (np.exp(top).sum(axis=1) > 1 + _TOLERANCE).any():
        return "top_logprobs do not fall, or add up to a probability above 1"
    listed = top_ids == ids
    if (np.abs(top - logprobs)[listed] > _TOLERANCE).any() or (logprobs > top[:, -1:] + _TOLERANCE)[~listed.any(axis=1)].any():
        return "the log-probability of a token that was said is not the one listed, or it is likelier than those listed"
    if mean is None or not math.isclose(float(logprobs.mean()), mean, abs_tol=_TOLERANCE, rel_tol=_TOLERANCE):
        return f"the mean of logprobs is {float(logprobs.mean()):.4f}, beside the text stands {mean}"
    return None


def _names(keys: Sequence[tuple[Any, str]]) -> str:
    return ", ".join(f"{name}_{language}" for name, language in keys) or "nothing"
