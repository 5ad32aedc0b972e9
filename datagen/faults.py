"""Faults on purpose: a test facility that lets chaos tests kill, hang, delay or fail a real worker at a named place.

`DATAGEN_FAULTS` holds JSON: place -> what happens to the assets whose URI contains the text, for example
`{"decode": {"kill_if_uri": "bad-", "delay_s": 0.1}}`. Keys: `kill_if_uri` (SIGKILL to the process), `hang_if_uri` (never
returns), `raise_if_uri` (RuntimeError), `delay_s` (sleep, for every asset), `wait_for` (until this file exists). Unset, as in every
real run, nothing happens.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from typing import Any

from datagen.errors import JobError

VARIABLE = "DATAGEN_FAULTS"
_KEYS = frozenset({"kill_if_uri", "hang_if_uri", "raise_if_uri", "delay_s", "wait_for"})


def fault_point(place: str, uri: str) -> None:
    """Do to this process what `DATAGEN_FAULTS` says for `place` and this asset. The variable is read once per process."""
    faults = _faults()
    if not faults or place not in faults:
        return
    fault = faults[place]
    time.sleep(fault.get("delay_s", 0))
    while "wait_for" in fault and not os.path.exists(fault["wait_for"]):
        time.sleep(0.05)
    if _hits(fault, "kill_if_uri", uri):
        os.kill(os.getpid(), signal.SIGKILL)
    while _hits(fault, "hang_if_uri", uri):
        time.sleep(3600)
    if _hits(fault, "raise_if_uri", uri):
        raise RuntimeError(f"injected fault at {place} for {uri}")


def _hits(fault: dict[str, Any], key: str, uri: str) -> bool:
    return key in fault and fault[key] in uri


@functools.cache
def _faults() -> dict[str, dict[str, Any]]:
    text = os.environ.get(VARIABLE)
    if not text:
        return {}
    faults: dict[str, dict[str, Any]] = json.loads(text)
    for place, fault in faults.items():
        unknown = sorted(set(fault) - _KEYS)
        if unknown:
            raise JobError(f"{VARIABLE}: unknown key {', '.join(unknown)} for {place}; allowed: {', '.join(sorted(_KEYS))}")
    return faults
