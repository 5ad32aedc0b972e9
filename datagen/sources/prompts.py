"""Prompts as users write them, turned into `Prompt` values or refused with what is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from datagen.records import RLE, Prompt
from datagen.sources.rle import is_number, parse_rle

_KEYS = ("box", "points", "labels", "mask", "frame", "time_s", "object_id")
_ALLOWED = "{box: [x1, y1, x2, y2]}, {points: [[x, y], ...], labels: [1, 0, ...]}, {mask: {size, counts}} or several of these keys together"
_COUNT_LIMIT = 2**31
_VIDEO_ONLY = ("frame", "time_s", "object_id")


def parse_prompts(value: Any, media_type: str = "image") -> list[Prompt] | None:
    """The prompts of one manifest row: a list of mappings, or the same as JSON text. None or an empty list means: find everything.

    A video's prompt may name its frame by `frame` (number in the video, from 0) or `time_s` (seconds after the first frame; neither
    means the first frame), and its object by `object_id` (prompts with the same one refine one object).
    Coordinates are kept as floats as they are; whether they lie in the picture is known once it is decoded.
    Raises ValueError naming the prompt and what is wrong with it.
    """
    if isinstance(value, str):
        value = _from_json(value, "prompts")
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise ValueError(f"prompts is a list of {_ALLOWED}; found {type(value).__name__}")
    prompts = []
    for index, item in enumerate(value):
        try:
            prompts.append(parse_prompt(item, media_type))
        except ValueError as error:
            raise ValueError(f"prompt {index}: {error}") from error
    return prompts


def parse_prompt(item: Any, media_type: str = "image") -> Prompt:
    """One prompt from a mapping with the keys box, points, labels, mask, and for a video frame, time_s, object_id. Raises ValueError."""
    if not isinstance(item, Mapping):
        raise ValueError(f"found {item!r:.80}; allowed: {_ALLOWED}")
    given = {key: value for key, value in item.items() if value is not None}
    if unknown := given.keys() - _KEYS:
        raise ValueError(f"unknown key {', '.join(sorted(map(str, unknown)))}; allowed: {', '.join(_KEYS)}")
    if media_type != "video" and (misplaced := [key for key in _VIDEO_ONLY if key in given]):
        raise ValueError(f"{', '.join(misplaced)} is for prompts of videos, and this is an {media_type}")
    if "frame" in given and "time_s" in given:
        raise ValueError("it has both frame and time_s; keep the one that you know")
    points = _points(given["points"]) if "points" in given else []
    prompt = Prompt(
        box=parse_box(given["box"]) if "box" in given else None,
        points=points,
        labels=_labels(given["labels"], len(points)) if "labels" in given else [1] * len(points),
        mask=_mask(given["mask"]) if "mask" in given else None,
        frame_index=_count(given["frame"], "frame") if "frame" in given else None,
        time_s=_time(given["time_s"]) if "time_s" in given else None,
        object_id=_count(given["object_id"], "object_id") if "object_id" in given else None,
    )
    if not prompt.type:
        raise ValueError(f"it asks for nothing; allowed: {_ALLOWED}")
    return prompt


def parse_shorthand(row: Mapping[str, Any]) -> list[Prompt] | None:
    """The single prompt of a row with the columns `box`, `points`, `labels`; None when all are empty. Raises ValueError."""
    item = {key: _from_json(row[key], key) if isinstance(row[key], str) else row[key] for key in ("box", "points", "labels") if key in row}
    if all(value is None or value == [] for value in item.values()):
        return None
    return [parse_prompt(item)]


def parse_box(value: Any) -> tuple[float, float, float, float]:
    """A box from four numbers, in the order given. Raises ValueError."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        raise ValueError(f"a box is four numbers [x1, y1, x2, y2] in pixels, found {value!r:.80}")
    x1, y1, x2, y2 = map(_float, value)
    return x1, y1, x2, y2


def _points(value: Any) -> list[tuple[float, float]]:
    fits = isinstance(value, list) and all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in value)
    if not fits:
        raise ValueError(f"points are pairs [[x, y], ...] in pixels, found {value!r:.80}")
    return [(_float(x), _float(y)) for x, y in value]


def _labels(value: Any, num_points: int) -> list[int]:
    if not isinstance(value, list) or not all(is_number(label) and label in (0, 1) for label in value):
        raise ValueError(f"labels are 1 (inside the object) or 0 (outside), found {value!r:.80}")
    if len(value) != num_points:
        raise ValueError(f"{num_points} points but {len(value)} labels; give one label per point, or none when all are inside the object")
    return [int(label) for label in value]


def _mask(value: Any) -> RLE:
    return parse_rle(_from_json(value, "mask") if isinstance(value, str) else value)


def _count(value: Any, key: str) -> int:
    if not is_number(value) or not 0 <= value < _COUNT_LIMIT or value != int(value):
        raise ValueError(f"{key} is a whole number from 0 on, found {value!r:.80}")
    return int(value)


def _time(value: Any) -> float:
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"time_s is a time in seconds after the first frame, 0 or more, found {value!r:.80}")
    return _float(value)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{value!r:.40} is too large for a coordinate") from error


def _from_json(text: str, column: str) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{column} is not JSON: {error}; found {text!r:.80}") from error
