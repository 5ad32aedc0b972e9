"""Values as rows bring them: JSON read with bounds, made plain for the tables, and shown in messages without being printed whole."""

from __future__ import annotations

import base64
import datetime
import json
import math
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from datagen.tables import BadRow, Row

if TYPE_CHECKING:
    import pyarrow as pa

MAX_DEPTH = 64
"""Lists and objects within one another that a row may have."""

ROW_TOO_LARGE = "row_too_large"
"""Code of a row that is longer, deeper or of more prompts than is read."""

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxdict, _repr.maxlist, _repr.maxtuple, _repr.maxstring, _repr.maxother = 4, 6, 8, 8, 80, 80


class ValueRefusedError(ValueError):
    """A value of a row that cannot be used. code: the row's, where it has one of its own."""

    def __init__(self, message: str, code: str = "manifest_bad_row") -> None:
        super().__init__(message)
        self.code = code


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueRefusedError: it is none, it has one key twice, or it is nested deeper than MAX_DEPTH."""
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueRefusedError:
        raise
    except ValueError as error:
        raise ValueRefusedError(f"not JSON: {error}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        refuse_depth(value)
    return value


def refuse_depth(value: Any) -> None:
    """Raises ValueRefusedError for lists and mappings nested deeper than MAX_DEPTH."""
    level, depth = [value], 0
    while level := [inner for one in level for inner in _children(one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()


def bounded(rows: Iterator[Row], schema: pa.Schema) -> Iterator[Row]:
    """The rows of a table, those that are nested deeper than MAX_DEPTH as bad ones."""
    if max((_depth_of(field.type) for field in schema), default=0) <= MAX_DEPTH:
        yield from rows
        return
    for row in rows:
        try:
            refuse_depth(row)
            yield row
        except ValueRefusedError as error:
            yield BadRow(str(error), error.code)


def _depth_of(kind: pa.DataType) -> int:
    return 1 + max((_depth_of(kind.field(index).type) for index in range(kind.num_fields)), default=0)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return ()
    return [inner for inner in value if isinstance(inner, (Mapping, list, tuple))]


def plain(value: Any) -> Any:
    """The same as strict JSON can hold it: dates as ISO text, bytes as base64, NaN and infinities as None, the unknown as text."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(plain(str(key))): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return plain(str(value))


def shown(value: Any) -> str:
    """A value for a message: at most some 80 characters, however large it is."""
    try:
        text = _repr.repr(value)
    except ValueError:  # of an integer of thousands of digits
        text = f"a {type(value).__name__} of very many digits"
    return text if len(text) <= 80 else text[:77] + "..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueRefusedError(f"the key {shown(twice)} stands twice in one object; keep one")
    return value


def _too_deep() -> ValueRefusedError:
    return ValueRefusedError(f"lists and objects are nested deeper than {MAX_DEPTH} levels", ROW_TOO_LARGE)
