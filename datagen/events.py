"""The event log of a run: one JSON object per line, `_datagen/logs/<run_id>.jsonl`.

Every line has `ts` (UTC), `level`, `event`, `message` and `run_id`; where there is one `step`, `asset_id` and `code` (an error code, as in
the table `assets`), and what else the event is about. Secrets are redacted. Only the driver writes it; what workers have to say comes
through the ledger. Warnings of datagen's other loggers in this process are in it, too, as the event `log`.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from datagen.printable import printable_json
from datagen.redaction import redact_values

_logger = logging.getLogger("datagen.events")
_FIRST = ("ts", "level", "event", "step", "run_id", "asset_id", "code", "message")


class Note(Protocol):
    """How something that happened is told, here or in a worker: as to log_event."""

    def __call__(self, event: str, message: str, *, level: int = logging.INFO, **facts: Any) -> None:
        """Tell it."""


def log_event(event: str, message: str, *, level: int = logging.INFO, at: float | None = None, **facts: Any) -> None:
    """Write an event to the log of the run that is on in this process; without one it goes nowhere.

    facts: `step`, `asset_id`, `code` and anything else that JSON can hold. at: when it was, seconds since the epoch; left out: now.
    """
    _logger.log(level, message, extra={"datagen": {"event": event, **({} if at is None else {"at": at}), **facts}})


@contextmanager
def event_log(path: Path, run_id: str) -> Iterator[None]:
    """Append the events of this process to `path` for as long as the context lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(_JsonLine(run_id))
    package, level = logging.getLogger("datagen"), _logger.level
    _logger.propagate = False  # events are for this file, and not for whoever else configured logging
    _logger.setLevel(logging.INFO)
    _logger.addHandler(handler)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        _logger.removeHandler(handler)
        _logger.setLevel(level)
        _logger.propagate = True
        handler.close()


class _JsonLine(logging.Formatter):
    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id

    def format(self, record: logging.LogRecord) -> str:
        facts = {"event": "log", "logger": record.name, **getattr(record, "datagen", {})}
        if facts["event"] != "log":
            del facts["logger"]
        when = datetime.fromtimestamp(facts.pop("at", record.created), UTC)
        facts |= {
            "ts": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "run_id": self._run_id,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            facts["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        ordered = {name: facts[name] for name in _FIRST if facts.get(name) is not None} | {
            name: value for name, value in facts.items() if name not in _FIRST
        }
        return printable_json(json.dumps(redact_values(ordered), ensure_ascii=False, default=str))
