"""JSON as people's tools write it: any UTF encoding, with or without a mark of it, and nothing in it that can end the process.

A value nested too deeply or a number of thousands of digits is data of one entry, so it must not cost the whole document.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from datagen.sources.values import MAX_DEPTH

_CUT_DEPTH = 4 * MAX_DEPTH
_CUT = f'"(nested more than {_CUT_DEPTH} levels)"'
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_NESTING = (list, tuple, dict)
_MAX_DIGITS = 400  # of a whole number; more than any float has


def parse_document(data: bytes) -> Any:
    """The value of one JSON document.

    What lies deeper than an interpreter can follow is cut there, which `is_deep` still sees; whole numbers of more than 400 digits become
    infinities. Raises ValueError when it is no JSON or in no UTF encoding.
    """
    text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    try:
        return _parse(text)
    except RecursionError:
        pass
    try:
        return _parse(_cut(text))
    except RecursionError:
        raise ValueError(f"it is nested more than {_CUT_DEPTH} levels deep and ends in the middle") from None


def is_deep(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether lists and objects lie in one another more than `depth` times."""
    if not isinstance(value, _NESTING):
        return False
    level: list[Any] = [value]
    for _ in range(depth):
        level = [inner for item in level for inner in _inside(item) if isinstance(inner, _NESTING)]
        if not level:
            return False
    return True


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # the interpreter's limit of digits
        return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> float:
    if len(digits) <= _MAX_DIGITS:
        return int(digits)
    return -math.inf if digits.startswith("-") else math.inf


def _cut(text: str) -> str:
    """The document with a text in place of each value that begins at `_CUT_DEPTH`."""
    kept: list[str] = []
    depth = done = start = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            start = token.start() if depth == _CUT_DEPTH else start
        elif token[0] in "]}":
            if depth == _CUT_DEPTH:
                kept += [text[done:start], _CUT]
                done = token.end()
            depth -= 1
    return "".join([*kept, text[done:]])


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
