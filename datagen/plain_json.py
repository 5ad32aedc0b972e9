"""JSON files that somebody else made: read with a bound on their size, and with one error for all that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datagen.errors import ModelLoadError

_MAX_BYTES = 64 * 2**20


def read_json(path: Path, what: str, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """The mapping that a checkpoint's JSON file holds. what: the file's role, for messages. Raises ModelLoadError."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ModelLoadError(f"{what} {path} has {size} bytes; at most {max_bytes} are read")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise ModelLoadError(f"{what} {path} is no readable JSON: {why}. Download the checkpoint again") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{what} {path} holds a {type(value).__name__}, expected a mapping. Download the checkpoint again")
    return value
