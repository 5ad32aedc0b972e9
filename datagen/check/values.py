"""Values that no row can have: numbers that are none, negative counts, damaged JSON, unknown words; in `assets` and `clips`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datagen.check.report import Problem
from datagen.flags import is_drop_reason, is_flag

_SHA256 = re.compile("[0-9a-f]{64}")
_COUNTS = ("num_regions", "num_tracks", "num_clips", "num_frames", "size_bytes", "retries", "num_prompts", "num_video_frames", "next_track")
_SIZES = (("width", "height"), ("stated_width", "stated_height"))

Row = Mapping[str, Any]


def value_problems(row: Row, row_id: str) -> Iterator[Problem]:
    """What is wrong with the values of a row of `assets` or `clips`, each by itself."""
    for wrong in _number_problems(row):
        yield "value", wrong, row_id
    if not row["uri"] or not row["asset_id"]:
        yield "value", "its uri or asset_id is empty", row_id
    if row["sha256"] is not None and not _SHA256.fullmatch(row["sha256"]):
        yield "value", f"sha256 is {row['sha256']!r:.80}, not 64 hex digits", row_id
    if (row["sha256"] is None) != (row["size_bytes"] is None):
        yield "value", f"sha256 is {row['sha256']} and size_bytes {row['size_bytes']}: a file that was read has both", row_id
    wrong_json = row["extra"] is not None and _json_problem(row["extra"])
    if wrong_json:
        yield "extra", f"{wrong_json}; it should be a JSON object", row_id
    for wrong in dropped_problems(row["dropped"]):
        yield "dropped", wrong, row_id


def dropped_problems(dropped: Sequence[Row]) -> Iterator[str]:
    """What is wrong with the counts of what was left out."""
    reasons = [drop["reason"] for drop in dropped]
    if len(set(reasons)) != len(reasons):
        yield f"a reason is there twice: {', '.join(sorted(reasons))}"
    for drop in dropped:
        if not is_drop_reason(drop["reason"]):
            yield f"unknown reason {drop['reason']!r:.80}"
        if drop["count"] <= 0:
            yield f"{drop['reason']} is counted {drop['count']} times"


def flag_problems(table: str, flags: Iterable[str]) -> Iterator[str]:
    """Flags that are unknown, or there twice."""
    flags = list(flags)
    for flag in dict.fromkeys(flags):
        if not is_flag(table, flag):
            yield f"unknown flag {flag!r:.80}"
    if len(set(flags)) != len(flags):
        yield f"a flag is there twice: {', '.join(map(ascii, sorted(flags)))}"


def is_share(value: float) -> bool:
    """Whether a score is a number from 0 to 1."""
    return 0 <= value <= 1  # NaN is not


def _number_problems(row: Row) -> Iterator[str]:
    for name in _COUNTS:
        count = row.get(name)
        if count is not None and count < 0:
            yield f"{name} is {count}"
    if row["attempts"] < 1:
        yield f"attempts is {row['attempts']}"
    for name in ("fps", "duration_s"):
        if row[name] is not None and not (math.isfinite(row[name]) and row[name] >= 0):
            yield f"{name} is {row[name]}"
    for width, height in _SIZES:
        one, other = row.get(width), row.get(height)
        if (one is None) != (other is None) or (one is not None and min(one, other) < 1):
            yield f"{width} is {one} and {height} {other}"
    if "num_prompts" in row and (row["num_prompts"] is None) != (row["prompts_hash"] is None):
        yield f"num_prompts is {row['num_prompts']} and prompts_hash {row['prompts_hash']}: prompts that were given have both"


def _json_problem(text: str) -> str | None:
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:
        return f"{error}"
    return None if isinstance(value, dict) else f"it is {type(value).__name__}"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
