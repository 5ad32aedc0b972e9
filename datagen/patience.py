"""How long a run waits for workers that die, load or find no room, and what it says meanwhile. What Ray knows comes from workers.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

ROUNDS = 5
"""Workers that die together, as with their node, count once; so often they have to die before a run gives up."""

_TOGETHER_S = 2.0
_USUAL_S = 30.0  # a worker may take this long to be there before anybody is told
_SHOWN_CHARS = 300
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception)\b")
_NODE = re.compile(r"\(IP: ([^,)]+)")
_MEMORY = re.compile(r"was (\S+) used / (\S+) limit")


@dataclass(frozen=True)
class Death:
    """A worker that ended otherwise than on purpose, or with its node. at: seconds since the epoch. kind: the same for the same cause.

    why: in words.
    """

    at: float
    kind: str
    why: str


@dataclass(frozen=True)
class Pulse:
    """What the ledger knows of the workers that have reported.

    finished: grows with every sample that a step lets go of. in_hand: samples that workers hold. loading: step -> for how many seconds
    its slowest worker has been loading.
    """

    finished: int = 0
    in_hand: int = 0
    loading: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What Ray knows of them. deaths: all so far. pending: step -> what a worker that is not there yet asks for, in words.

    there: steps that have a worker. room: what the nodes have and what of it is free, in words.
    """

    deaths: Sequence[Death] = ()
    pending: Mapping[str, str] = field(default_factory=dict)
    there: Collection[str] = ()
    room: str = ""


class Patience:
    """Looks at a run now and then, and says what it waits for (`waits`), or that it has waited for long enough.

    deaths_s: workers may die again and again for so long while nothing is finished. idle_s: so long a step may have no worker at all, or
    nobody anything in hand. loading_s: so long a worker may load its model. All in seconds.
    """

    def __init__(self, deaths_s: float, idle_s: float, loading_s: float) -> None:
        self._deaths_s, self._idle_s, self._loading_s = deaths_s, idle_s, loading_s
        self._finished = -1
        self._since = self._busy = 0.0
        self.waits: str | None = None

    def resume(self, now: float) -> None:
        """The run was busy with something else, and begins to wait for workers again. now: seconds since the epoch."""
        self._since, self._busy = max(self._since, now), max(self._busy, now)

    def look(self, now: float, pulse: Pulse, seen: Seen) -> str | None:
        """Why the run is to end, in words; None while it may wait on."""
        if pulse.finished != self._finished:
            self._finished, self._since, self._busy = pulse.finished, now, now
        absent = {step: what for step, what in seen.pending.items() if step not in {*seen.there, *pulse.loading}}
        if not absent and (pulse.in_hand or pulse.loading):
            self._busy = now
        deaths = [death for death in seen.deaths if death.at > self._since]
        self.waits = _in_words(deaths, absent if now - self._since >= _USUAL_S else {}, seen.room)
        rounds = len({int(death.at / _TOGETHER_S) for death in deaths})
        if rounds >= ROUNDS and now - self._since >= self._deaths_s:
            return f"workers die again and again, and nothing gets done: {len(deaths)} in {now - self._since:.0f} s. {_cause(deaths)}"
        slow = [f"{step} ({seconds:.0f} s)" for step, seconds in pulse.loading.items() if seconds >= self._loading_s]
        if slow:
            return (
                f"a worker has been loading for longer than run.loading_timeout_s ({self._loading_s:g} s): {', '.join(slow)}. "
                "The run's log may say at what; a file system or a download that hangs looks like this"
            )
        if now - self._busy >= self._idle_s:
            what = self.waits or "no worker has anything to do, and none says why"
            return f"nothing has happened for {now - self._busy:.0f} s (run.workers_timeout_s is {self._idle_s:g}): {what}"
        return None


def in_short(detail: str) -> str:
    """What Ray says of a death, without its colours, its pages of advice and its tracebacks, but with the error at their end."""
    lines = [line.strip() for line in _COLOUR.sub("", detail).splitlines() if line.strip()]
    detail = " ".join(lines).partition(" Some common causes include:")[0]
    if "low on memory" not in detail:
        if len(detail) <= _SHOWN_CHARS:
            return detail
        errors = [line for line in lines if _ERROR.match(line)]
        return f"{detail[:_SHOWN_CHARS]} ..." + (f" {errors[-1][:_SHOWN_CHARS]}" if errors else "")
    node, used = _NODE.search(detail), _MEMORY.search(detail)
    where = f" of node {node[1]}" if node else ""
    share = f" ({used[1]} of {used[2]} in use)" if used else ""
    return (
        f"Ray kills workers for memory: the memory{where} is above its threshold{share}. Run fewer or smaller workers "
        "(perceive.pool.max_workers, describe.pool.max_workers, describe.cpu_kv_cache_gib), end what else uses the memory, or raise "
        "RAY_memory_usage_threshold where Ray is started"
    )


def _in_words(deaths: Sequence[Death], absent: Mapping[str, str], room: str) -> str | None:
    if deaths:
        since = datetime.fromtimestamp(min(death.at for death in deaths), UTC)
        return f"waits for workers: {len(deaths)} died since {since:%Y-%m-%d %H:%M:%S} UTC. {_cause(deaths)}"
    if absent:
        asked = "; ".join(f"{step} asks {what}" for step, what in absent.items())
        return f"waits for workers: {asked}. {room}"
    return None


def _cause(deaths: Sequence[Death]) -> str:
    """The commonest reason, in its latest words."""
    kind = Counter(death.kind for death in deaths).most_common(1)[0][0]
    return max((death for death in deaths if death.kind == kind), key=lambda death: death.at).why
