"""Reading the grammar back: what a description states, attribute by attribute, so that each can be held against the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq

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


def right_attributes(description: str, truth: str, language: str) -> tuple[int, int]:
    """(how many attributes of a description are right, how many count): all that either of the two states."""
    said, true = stated(description, language), stated(truth, language)
    asked = said.keys() | true.keys()
    return sum(said.get(name) == true.get(name) for name in asked), len(asked)


def attributes_right(found: Path, truth: Path, language: str) -> float:
    """Share of the attributes of all descriptions of `truth` that are right in `found`, datasets both; a missing one has none right."""
    said, true = (_descriptions(folder, language) for folder in (found, truth))
    counts = [right_attributes(said.get(key, ""), text, language) for key, text in true.items()]
    return sum(right for right, _ in counts) / sum(asked for _, asked in counts)


def _descriptions(folder: Path, language: str) -> dict[tuple[str, int], str]:
    column = f"description_{language}"
    rows = pq.read_table(folder / "regions", columns=["asset_id", "region_index", column]).to_pylist()
    return {(row["asset_id"], row["region_index"]): row[column] or "" for row in rows}
