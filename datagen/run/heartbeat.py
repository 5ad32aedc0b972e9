"""The heartbeat of a run: a small file in the dataset that says how far it is, replaced every few seconds, and what to make of it.

Only the holder of the lease writes it, so it is of the run that is on, or of the last one.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from datagen.errors import DatagenError, SourceError
from datagen.processes import state_of, this_process
from datagen.redaction import redact_values
from datagen.run.summary import RunSummary
from datagen.write import RunRecord, Store, open_dataset
from datagen.write.store import META

logger = logging.getLogger(__name__)

HEARTBEAT = f"{META}/heartbeat.json"
BEAT_S = 5.0
_LATE = 3  # beats that may be missing before a run counts as silent
_LOOK_S = 1.0
STEPS = ("decode", "perceive", "describe")
INCIDENTS = ("crashes", "engine_restarts", "memory_short")

# alive: it beats. ended: it said so itself. died: its process is gone. silent: it has stopped beating, and nobody here knows why.
Verdict = Literal["alive", "ended", "died", "silent"]


@contextmanager
def beating(store: Store, record: RunRecord, summary: RunSummary, every_s: float = BEAT_S) -> Iterator[None]:
    """Write the heartbeat now, every `every_s` seconds, and with the run's last state at the end. Call it under the lease.

    A beat that cannot be written is logged and costs the run nothing.
    """
    heart = _Heart(store, record, summary, every_s)
    heart.start()
    state, error = "failed", None
    try:
        yield
        state = "finished" if record.status == "running" else record.status  # a run without work has no record
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except DatagenError as raised:
        error = {"code": raised.code, "message": raised.message}
        raise
    finally:
        heart.stop(state, error)


class _Heart:
    def __init__(self, store: Store, record: RunRecord, summary: RunSummary, every_s: float) -> None:
        self._store, self._record, self._summary, self._every_s = store, record, summary, every_s
        self._pace = _Pace()
        self._beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._beat("running")
        self._thread.start()

    def stop(self, state: str, error: Mapping[str, str] | None) -> None:
        self._over.set()
        self._thread.join()
        self._beat(state, error)

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self._beat("running")

    def _beat(self, state: str, error: Mapping[str, str] | None = None) -> None:
        self._beats += 1
        facts = {
            "format": 1,
            "beat": self._beats,
            "every_s": self._every_s,
            "beat_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run_id": self._record.run_id,
            "job": self._record.job["name"],
            "input": self._record.job["source"]["input"],
            "host": socket.gethostname(),
            "process": this_process(),
            "started_at": self._record.started_at,
            "state": state,
            "waiting": self._summary.waiting if state == "running" else None,
            "error": error,
            **_numbers(self._summary, self._pace),
        }
        try:
            self._store.write(HEARTBEAT, json.dumps(redact_values(facts), indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace"))
        except DatagenError as failed:
            logger.warning("no heartbeat: %s", failed.message)


def _numbers(summary: RunSummary, pace: _Pace) -> dict[str, Any]:
    counters, states = dict(summary.counters), summary.states()
    described = counters.get("describe", 0) + summary.videos
    tokens_per_s, assets_per_s = pace(counters.get("output_tokens", 0), described)
    left = summary.todo - described
    return {
        "assets": {
            "listed": summary.listed,
            "all_listed": summary.all_listed,
            "done_before": summary.done_before,
            "todo": summary.todo,
            "done": summary.todo - states["left"],
            "failed": states["failed"],
            "left": states["left"],
        },
        "parts": summary.parts,
        "regions": counters.get("regions", 0),
        "clips": counters.get("clips", 0),
        "tracks": counters.get("tracks", 0),
        "steps": {step: {"samples": counters.get(step, 0), "workers": counters.get(f"{step}_workers", 0)} for step in STEPS},
        "incidents": {name: counters.get(name, 0) for name in INCIDENTS},
        "output_tokens": counters.get("output_tokens", 0),
        "tokens_per_s": tokens_per_s,
        "eta_s": round(left / assets_per_s, 1) if assets_per_s and summary.all_listed else None,
    }


class _Pace:
    """Tokens and assets per second since the first asset was through: loading models says nothing about what is left."""

    def __init__(self) -> None:
        self._first: tuple[float, int, int] | None = None

    def __call__(self, tokens: int, assets: int) -> tuple[float | None, float | None]:
        now = time.monotonic()
        if not assets:
            return None, None
        if self._first is None:
            self._first = now, tokens, assets
        since, first_tokens, first_assets = self._first
        if now == since:
            return None, None
        return round((tokens - first_tokens) / (now - since), 2), (assets - first_assets) / (now - since)


@dataclass(frozen=True)
class RunStatus:
    """What a dataset's heartbeat says (`beat`: its content), what to make of it, and how old it is by this machine's clock, seconds."""

    verdict: Verdict
    age_s: float
    beat: dict[str, Any]

    @property
    def ok(self) -> bool:
        """False for a run that is neither on nor has ended by itself."""
        return self.verdict in ("alive", "ended")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"verdict": self.verdict, "age_s": round(self.age_s, 1), **self.beat}


def run_status(dataset: str) -> RunStatus:
    """The run that writes to a dataset, or the last one that did.

    Where it cannot be asked whether the run's process lives, and its last beat is not of the last seconds, the next one is waited for:
    the clocks of two machines need not agree. Raises SourceError when there is no dataset, or none of its runs left a heartbeat.
    """
    store = open_dataset(dataset)
    beat = _read(store)
    if beat["state"] != "running":
        return RunStatus("ended", _age_s(beat), beat)
    if state_of(beat["process"]) == "dead":
        return RunStatus("died", _age_s(beat), beat)
    late_s = _LATE * float(beat["every_s"])
    if 0 <= _age_s(beat) <= late_s:
        return RunStatus("alive", _age_s(beat), beat)
    return _watch(store, beat, late_s)


def _watch(store: Store, first: dict[str, Any], for_s: float) -> RunStatus:
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        time.sleep(min(_LOOK_S, for_s / 10))
        beat = _read(store)
        if (beat["run_id"], beat["beat"]) != (first["run_id"], first["beat"]):
            return RunStatus("alive" if beat["state"] == "running" else "ended", _age_s(beat), beat)
    return RunStatus("silent", _age_s(first), first)


def _read(store: Store) -> dict[str, Any]:
    try:
        beat = json.loads(store.read(HEARTBEAT))
        return {**beat, "beat": int(beat["beat"]), "beat_at": str(datetime.fromisoformat(beat["beat_at"]).isoformat())}
    except FileNotFoundError as error:
        raise SourceError(f"no run into {store.uri} has left a heartbeat yet ({HEARTBEAT}); `datagen stats` lists the runs") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{store.uri}/{HEARTBEAT} is damaged ({error!r}); the next run writes it anew") from error


def _age_s(beat: Mapping[str, Any]) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(beat["beat_at"])).total_seconds()
