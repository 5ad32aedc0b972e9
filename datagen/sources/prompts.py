"""Prompts as users write them, turned into `Prompt` values one by one. One that makes no sense costs itself and keeps its place."""

from __future__ import annotations

import decimal
import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from datagen.records import RLE, Asset, Prompt
from datagen.sources.rle import is_number, parse_rle
from datagen.sources.values import ROW_TOO_LARGE, parse_json, shown

MAX_PROMPTS = 100_000
"""Prompts that one asset may have."""
MAX_POINTS = 1024
"""Points that one prompt may have."""

SHORTHANDS = ("box", "points", "labels", "mask", "frame", "time_s", "object_id")
"""Columns that make the one prompt of a row."""

_KEYS = (*SHORTHANDS, "id")
_ALLOWED = "{box: [x1, y1, x2, y2]}, {points: [[x, y], ...], labels: [1, 0, ...]}, {mask: {size, counts}} or several of these keys together"
_COUNT_LIMIT = 2**31
_HASHED = tuple(entry.name for entry in fields(Prompt) if entry.name != "source")
_VIDEO_ONLY = ("frame", "time_s", "object_id")
_ASKING = ("box", "points", "mask")
_TEXT_CHARS = 1024
# Shares of the sides may reach a little out of the picture.
_SHARES_REACH = 0.1


class PromptRefusedError(ValueError):
    """One prompt that cannot be used. code: what it is counted under."""

    def __init__(self, message: str, code: str = "prompt_malformed") -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Given:
    """What a row asks for. prompts: those that can be used, each with its index among all that were given. dropped: the others, by code.

    problem: what is wrong with the first of these. used: columns that are thereby read. In an asset without any prompt everything is found.
    """

    prompts: list[Prompt] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    used: frozenset[str] = frozenset()

    @property
    def num(self) -> int:
        """How many were given."""
        return len(self.prompts) + self.dropped.total()

    def add(self, other: Given) -> None:
        """Put the prompts of another row of the same file behind these."""
        self.problem = self.problem or other.problem
        first = self.num
        self.prompts += [replace(prompt, index=first + (prompt.index or 0)) for prompt in other.prompts]
        self.dropped += other.dropped
        self.used |= other.used

    def put_into(self, asset: Asset) -> None:
        """Make these the prompts of an asset. Raises ValueError when none of those that were given can be used."""
        if self.num > MAX_PROMPTS:
            raise PromptRefusedError(f"it has {self.num} prompts; at most {MAX_PROMPTS} are read", ROW_TOO_LARGE)
        asset.dropped, asset.problem = dict(self.dropped), self.problem
        asset.prompts = self.prompts or None
        if self.dropped and not self.prompts:
            counts = ", ".join(f"{count} {code}" for code, count in sorted(self.dropped.items()))
            raise ValueError(f"none of its {self.num} prompts can be used ({counts}); {self.problem}")


def parse_prompts(value: Any, media_type: str = "image") -> Given:
    """The prompts of one manifest row: a list of mappings, or the same as JSON text. None or an empty list means: find everything.

    A video's prompt may name its frame by `frame` (number in the video, from 0) or `time_s` (seconds after the first frame; neither
    means the first frame), and its object by `object_id` (prompts with the same one refine one object). `id` is the input's own name.
    Coordinates are kept as floats as they are; whether they lie in the picture is known once it is decoded.
    Codes of what is dropped: `prompt_malformed`, `prompt_shares` (coordinates are no pixels), `prompt_too_large`, and of an image
    `prompt_negative` (it says only where its object is not).
    Raises ValueError when it is no list.
    """
    if isinstance(value, str):
        value = _from_json(value, "prompts")
    if value is None or value == []:
        return Given()
    if not isinstance(value, list):
        raise PromptRefusedError(f"prompts is a list of {_ALLOWED}; found {type(value).__name__}")
    if len(value) > MAX_PROMPTS:
        raise PromptRefusedError(f"it has {len(value)} prompts; at most {MAX_PROMPTS} are read", ROW_TOO_LARGE)
    return one_by_one(value, lambda item: parse_prompt(item, media_type))


def one_by_one(items: Sequence[Any], parse: Any, name: Any = "prompt {}".format) -> Given:
    """parse(item) for each: the prompts, and those that it refuses with a ValueError counted. name(index): what a message calls one."""
    given = Given()
    for index, item in enumerate(items):
        try:
            given.prompts.append(replace(parse(item), index=index))
        except ValueError as error:
            given.dropped[getattr(error, "code", "prompt_malformed")] += 1
            given.problem = given.problem or f"{name(index)}: {error}"
    return given


def parse_prompt(item: Any, media_type: str = "image") -> Prompt:
    """One prompt from a mapping with the keys box, points, labels, mask, id, and for a video frame, time_s, object_id.

    Raises PromptRefusedError.
    """
    if not isinstance(item, Mapping):
        raise PromptRefusedError(f"found {shown(item)}; allowed: {_ALLOWED}")
    given = {key: _as_floats(value) for key, value in item.items() if value is not None}
    if unknown := given.keys() - _KEYS:
        raise PromptRefusedError(f"unknown key {', '.join(sorted(str(key)[:40] for key in unknown))}; allowed: {', '.join(_KEYS)}")
    if media_type != "video" and (misplaced := [key for key in _VIDEO_ONLY if key in given]):
        raise PromptRefusedError(f"{', '.join(misplaced)} is for prompts of videos, and this is an {media_type}")
    if "frame" in given and "time_s" in given:
        raise PromptRefusedError("it has both frame and time_s; keep the one that you know")
    points = _points(given["points"]) if "points" in given else []
    prompt = Prompt(
        box=parse_box(given["box"]) if "box" in given else None,
        points=points,
        labels=_labels(given["labels"], len(points)) if "labels" in given else [1] * len(points),
        mask=_mask(given["mask"]) if "mask" in given else None,
        frame_index=_count(given["frame"], "frame") if "frame" in given else None,
        time_s=_time(given["time_s"]) if "time_s" in given else None,
        object_id=_count(given["object_id"], "object_id") if "object_id" in given else None,
        id=_name(given["id"]) if "id" in given else None,
    )
    if not prompt.type:
        raise PromptRefusedError(f"it asks for nothing; allowed: {_ALLOWED}")
    if media_type == "image" and not prompt.is_positive:  # in a video it may correct what another prompt found
        message = "all points are outside the object (label 0): give a box, a mask or a point inside it (label 1), too"
        raise PromptRefusedError(message, "prompt_negative")
    refuse_shares(prompt)
    return prompt


def given_prompts(row: Mapping[str, Any], media_type: str, columns: Collection[str], lenient: bool = False) -> Given:
    """What a row asks for, by `prompts` or by the shorthands, of which only `columns` are read.

    lenient: metadata that other tools made; a value that is no prompt by its form stays an ordinary column. Raises ValueError.
    """
    listed = Given()
    if "prompts" in columns and "prompts" in row and not (lenient and not _is_list_of_prompts(row["prompts"])):
        listed = parse_prompts(row["prompts"], media_type)
        listed.used = frozenset(("prompts",))
    single = parse_shorthand(row, media_type, columns, lenient)
    if listed.num and single.num:
        raise ValueError("it has both `prompts` and `box`/`points`/`mask`; keep one of them")
    given = listed if listed.num else single
    given.used = listed.used | single.used
    return given


def parse_shorthand(
    row: Mapping[str, Any], media_type: str = "image", columns: Collection[str] = SHORTHANDS, lenient: bool = False
) -> Given:
    """The single prompt of a row with the columns `box`, `points` (and `labels` of them), `mask`, and for a video `frame` or `time_s`, and
    `object_id`. columns: those that may be read so. Nothing when it has none of the first; class names in `labels` are none of points.
    """
    item: dict[str, Any] = {}
    used = {key for key in columns if key in _ASKING and key in row and not (lenient and not has_form(row[key], key))}
    try:
        item = {key: value for key in used if (value := _value(row[key], key)) not in (None, [])}
        if "labels" in columns and "points" in item and _are_point_labels(row.get("labels")):
            item["labels"], used = _value(row["labels"], "labels"), used | {"labels"}
        if item and media_type == "video":
            of_video = {key: _value(row[key], key) for key in _VIDEO_ONLY if key in columns and key in row}
            item, used = item | {key: value for key, value in of_video.items() if value is not None}, used | of_video.keys()
    except PromptRefusedError as error:
        return Given(dropped=Counter({error.code: 1}), problem=str(error), used=frozenset(used))
    given = one_by_one([item] if item else [], lambda one: parse_prompt(one, media_type), lambda index: f"its {' and '.join(sorted(item))}")
    given.used = frozenset(used)
    return given


def parse_box(value: Any) -> tuple[float, float, float, float]:
    """A box from four numbers, in the order given. Raises PromptRefusedError."""
    if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(map(is_number, value)):
        raise PromptRefusedError(f"a box is four numbers [x1, y1, x2, y2] in pixels, found {shown(value)}")
    x1, y1, x2, y2 = map(_float, value)
    return x1, y1, x2, y2


def refuse_shares(prompt: Prompt) -> None:
    """Raises PromptRefusedError (`prompt_shares`) for a box, or points, whose coordinates can only be shares of the sides."""
    box, points = prompt.box or (), [value for point in prompt.points for value in point]
    if (box and look_like_shares(box) and (max(box) <= 1 or not _are_whole(box))) or (look_like_shares(points) and not _are_whole(points)):
        found = list(box) if box and look_like_shares(box) else points
        message = f"{shown(found)} looks like shares of the sides; pixels are expected, multiply by the picture's width and height"
        raise PromptRefusedError(message, "prompt_shares")


def look_like_shares(values: Iterable[float]) -> bool:
    """Whether all of some coordinates lie in 0..1, or next to it."""
    some = list(values)
    return bool(some) and all(-_SHARES_REACH <= value <= 1 + _SHARES_REACH for value in some)


def prompts_hash(asset: Asset) -> str | None:
    """16 hex digits over the prompts of an asset, their places, and what was dropped; None for an asset of which everything is wanted."""
    if asset.prompts is None and not asset.dropped:
        return None
    prompts = [{name: getattr(prompt, name) for name in _HASHED} for prompt in asset.prompts or ()]
    text = json.dumps([prompts, sorted(asset.dropped.items())], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def note_prompts(asset: Asset) -> Asset:
    """The same asset, with the number and the hash of its prompts."""
    asset.prompts_hash = prompts_hash(asset)
    asset.num_prompts = len(asset.prompts or ()) + sum(asset.dropped.values()) if asset.prompts_hash else None
    return asset


def _is_list_of_prompts(value: Any) -> bool:
    """Whether a value that other tools may have written is meant as ours: nothing, or mappings that ask for something."""
    value = _json_or_none(value)
    items = [value] if isinstance(value, Mapping) else value
    if value is None or value == []:
        return True
    return isinstance(items, list) and any(isinstance(item, Mapping) and bool(item.keys() & _ASKING) for item in items)


def has_form(value: Any, key: str) -> bool:
    """Whether the value of a column `box`, `points` or `mask` that other tools may have written has the form of ours."""
    value = _json_or_none(value)
    return value is None or (isinstance(value, Mapping) and "counts" in value if key == "mask" else isinstance(value, list))


def _json_or_none(value: Any) -> Any:
    """A text's value as JSON, itself where it is none; nothing for an empty one."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value) if value.strip() else None
    except ValueError:
        return value


def _are_whole(values: Iterable[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def _are_point_labels(value: Any) -> bool:
    """Whether a `labels` column is meant for points: numbers, and no names of classes."""
    value = _json_or_none(value)
    return isinstance(value, list) and not any(isinstance(label, str) for label in value)


def _points(value: Any) -> list[tuple[float, float]]:
    if isinstance(value, (list, tuple)) and len(value) > MAX_POINTS:
        raise PromptRefusedError(f"it has {len(value)} points; at most {MAX_POINTS} are used", "prompt_too_large")
    is_list = isinstance(value, (list, tuple))
    if not is_list or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(is_number, pair)) for pair in value):
        raise PromptRefusedError(f"points are pairs [[x, y], ...] in pixels, found {shown(value)}")
    return [(_float(x), _float(y)) for x, y in value]


def _labels(value: Any, num_points: int) -> list[int]:
    if not isinstance(value, list) or not all(is_number(label) and label in (0, 1) for label in value):
        raise PromptRefusedError(f"labels are 1 (inside the object) or 0 (outside), found {shown(value)}")
    if len(value) != num_points:
        message = f"{num_points} points but {len(value)} labels; give one label per point, or none when all are inside the object"
        raise PromptRefusedError(message)
    return [int(label) for label in value]


def _mask(value: Any) -> RLE:
    return parse_rle(_from_json(value, "mask") if isinstance(value, str) else value)


def _count(value: Any, key: str) -> int:
    if not is_number(value) or not 0 <= value < _COUNT_LIMIT or value != int(value):
        raise PromptRefusedError(f"{key} is a whole number from 0 on, found {shown(value)}")
    return int(value)


def _time(value: Any) -> float:
    if not is_number(value) or not 0 <= value < math.inf:
        raise PromptRefusedError(f"time_s is a time in seconds after the first frame, 0 or more, found {shown(value)}")
    return _float(value)


def _name(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not 0 < len(text := str(value)) <= _TEXT_CHARS:
        raise PromptRefusedError(f"id is a text or a whole number of at most {_TEXT_CHARS} characters, found {shown(value)}")
    return text.encode("utf-8", "replace").decode()


def _as_floats(value: Any) -> Any:
    """The same with floats for decimals, which tables may hold (DuckDB writes `[1.5, 2]` as such)."""
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, list) and len(value) <= MAX_POINTS and any(isinstance(one, (list, decimal.Decimal)) for one in value):
        return [_as_floats(one) for one in value]
    return value


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise PromptRefusedError(f"{shown(value)} is too large for a coordinate") from error


def _value(value: Any, column: str) -> Any:
    """A cell's value: JSON where it is text, nothing where it is a missing number."""
    if isinstance(value, str):
        return _from_json(value, column)
    return None if isinstance(value, float) and math.isnan(value) else value


def _from_json(text: str, column: str) -> Any:
    try:
        return parse_json(text) if text.strip() else None
    except ValueError as error:
        code = "prompt_too_large" if getattr(error, "code", "") == ROW_TOO_LARGE else "prompt_malformed"
        raise PromptRefusedError(f"{column} is {error}; found {shown(text)}", code) from error
