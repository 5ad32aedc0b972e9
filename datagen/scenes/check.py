"""Reading the grammar back: what a description states, attribute by attribute, so that each can be held against the truth."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from datagen.records import LANGUAGES
from datagen.scenes.compose import side_of
from datagen.scenes.words import COLORS, PLACES, SHAPES, SIDES, SIZES


def _any(words: list[str]) -> str:
    """A pattern for one of the words, longer ones first."""
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_COLOR_EN, _SHAPE_EN = _any(list(COLORS)), _any(list(SHAPES))
_COLOR_ZH, _SHAPE_ZH = _any([zh for _, zh in COLORS.values()]), _any([zh for zh, _ in SHAPES.values()])

_DESCRIPTION = {
    "en": (
        rf"^A (?P<size>{_any(list(SIZES))}) (?P<color>{_COLOR_EN}) (?P<shape>{_SHAPE_EN})",
        rf"at the (?P<place>{_any([en for en, _ in PLACES])})\.",
        rf"It is (?P<side>{_any([en for en, _ in SIDES.values()])}) an? (?P<neighbour>(?:{_COLOR_EN}) (?:{_SHAPE_EN}))\.",
        r"It is (?P<alone>alone)\.",
        r"It is (?P<hidden>partly hidden)\.",
    ),
    "zh": (
        rf"有一个(?P<size>{_any([zh for _, zh in SIZES.values()])})的(?P<color>{_COLOR_ZH})(?P<shape>{_SHAPE_ZH})。",
        rf"^(?P<place>{_any([zh for _, zh in PLACES])})有",
        rf"它在(?P<neighbour>(?:{_COLOR_ZH})(?:{_SHAPE_ZH}))的(?P<side>{_any([zh for _, zh in SIDES.values()])})。",
        r"它(?P<alone>独自)在那里。",
        r"它(?P<hidden>被遮住)了一部分。",
    ),
}


def stated(description: str, language: str) -> dict[str, str]:
    """Attribute -> the words that state it: size, color, shape, place, hidden, alone, side, neighbour; those that are stated."""
    found: dict[str, str] = {}
    for pattern in _DESCRIPTION[language]:
        match = re.search(pattern, description)
        if match:
            found |= match.groupdict()
    return found


def right_attributes(description: str, truth: str, language: str, sides: Mapping[str, str] | None = None) -> tuple[int, int]:
    """(how many attributes of a description are right, how many count): all that either of the two states.

    sides: label of every other shape of the picture -> the side of it that the described one is on. With them a relation is right that
    holds, whichever of them it names; without, or where it names none of them, name and side are held against those that the truth tells.
    """
    said, true = stated(description, language), stated(truth, language)
    if sides and said.get("neighbour") in sides:
        true |= {"neighbour": said["neighbour"], "side": sides[said["neighbour"]]}
    asked = said.keys() | true.keys()
    return sum(said.get(name) == true.get(name) for name in asked), len(asked)


def attributes_right(found: Path, truth: Path, language: str, *, any_neighbour: bool = False) -> float:
    """Share of the attributes of all descriptions of `truth` that are right in `found`, datasets both; a missing one has none right.

    any_neighbour: whether a description may name another shape than the nearest, if it is on the side that it says; sides are those of
    the centres of the boxes around what is seen.
    """
    column = f"description_{language}"
    said = {_key(row): row[column] or "" for row in _regions(found, [column])}
    counts = []
    for _, rows in groupby(_regions(truth, [column, f"label_{language}", "box_xyxy"]), lambda row: row["asset_id"]):
        picture = list(rows)
        for row in picture:
            sides = _sides(row, picture, language) if any_neighbour else None
            counts.append(right_attributes(said.get(_key(row), ""), row[column], language, sides))
    return sum(right for right, _ in counts) / sum(asked for _, asked in counts)


def _sides(row: dict[str, Any], picture: Iterable[dict[str, Any]], language: str) -> dict[str, str]:
    """Label of every other shape of the picture -> the words for the side of it that a shape is on."""
    words = LANGUAGES.index(language)
    others = (other for other in picture if other is not row)
    return {other[f"label_{language}"]: SIDES[side_of(_center(row), _center(other))][words] for other in others}


def _center(row: dict[str, Any]) -> tuple[float, float]:
    left, top, right, bottom = row["box_xyxy"]
    return (left + right) / 2, (top + bottom) / 2


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["asset_id"], row["region_index"]


def _regions(folder: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of `regions`, those of a picture one after another."""
    return sorted(pq.read_table(folder / "regions", columns=["asset_id", "region_index", *columns]).to_pylist(), key=_key)
