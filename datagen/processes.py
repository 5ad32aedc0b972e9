"""Which process wrote something, and whether it still lives: asked by whoever finds a lease or a heartbeat."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import psutil


def this_process() -> dict[str, Any] | None:
    """What names a process among all machines and containers; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    return {"place": f"{boot} {space}", "pid": os.getpid(), "started": psutil.Process().create_time()}


def state_of(process: Any) -> Literal["alive", "dead", "unknown"]:
    """Whether a holder lives, where it can be asked: among the processes that this one can see."""
    here = this_process()
    if not isinstance(process, dict) or here is None or process.get("place") != here["place"]:
        return "unknown"
    try:
        found = psutil.Process(int(process["pid"]))
        is_same = abs(found.create_time() - float(process["started"])) < 1.0 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return "dead"
    except (psutil.Error, KeyError, TypeError, ValueError):
        return "unknown"
    return "alive" if is_same else "dead"
