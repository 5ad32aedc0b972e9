"""How a run ends early in good order: nothing new is begun, what is begun is finished and committed, and then it stops.

Reasons are a used-up budget and SIGTERM, the notice before a machine is taken away. Workers learn of it from the ledger: a step leaves
alone what it has not begun, so that the pipeline is empty after the time that one batch takes. When it is, or `run.grace_s` is over, the
driver is interrupted as by Ctrl-C, between two commits. Where even that does not end it, because it waits in a library or for a process
that hangs, the command leaves at once a minute later: as after a kill, what is committed stays, and a rerun goes on. A main thread that is
inside native code and does not even hear of it has no such minute: the command leaves when the grace is over (leaver.py).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from datagen.budget import Spending
from datagen.errors import ClusterError
from datagen.events import log_event
from datagen.interrupts import INTERRUPTED, STOPPED, as_ctrl_c, interrupt_main_thread, is_command, sigterm_calls, sigterm_tells
from datagen.leaver import watched
from datagen.ledger import LedgerClient
from datagen.run.summary import RunSummary

_LOOK_S = 0.2
_HEAR_S = 5.0  # for a main thread to hear of a signal on a busy machine
_LEAVE_S = 60.0  # for Ray, and for an engine, to shut down
_SETTLED_S = 1.0  # longer than the driver takes to hear of what workers have done


class Stop:
    """Whether a run is to end early, and why. `spending` is kept up to date while it is watched."""

    def __init__(self, spending: Spending, grace_s: float) -> None:
        self._spending, self._grace_s = spending, grace_s
        self.reason: str | None = None
        self.by_signal = False
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._left = threading.Event()
        self._interrupting = threading.Lock()
        self._is_told = False

    def refuse_uncounted(self, gpus: float) -> None:
        """See Spending.refuse_uncounted."""
        self._spending.refuse_uncounted(gpus)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """A command that is told to end meanwhile leaves after its grace, whatever its main thread does."""
        if not is_command() or threading.current_thread() is not threading.main_thread():
            yield
            return
        with watched(self._grace_s + _HEAR_S, self._leave) as leaver, sigterm_tells(leaver.heard):
            yield

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """What is in it has to end soon after it was told to, or the command ends."""
        try:
            yield
        finally:
            self._left.set()

    @contextmanager
    def watching(self, ledger: LedgerClient, summary: RunSummary, gpus: Callable[[], float]) -> Iterator[None]:
        """Watch the budget and SIGTERM, and end the run in good order. gpus: how many there are now."""
        in_main = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._watch, args=(ledger, summary, gpus, in_main), name="stop", daemon=True)
        self._thread.start()
        try:
            with sigterm_calls(self._on_sigterm):
                yield
        finally:
            with self._interrupting:  # from here on this thread is not interrupted any more
                self._over.set()
            self._thread.join()
            self._count(summary, gpus, at_once=True)

    def _on_sigterm(self) -> None:
        """Runs between any two instructions of the main thread, so it only leaves a note. The second time, it does not wait."""
        if self.reason is not None or self._is_told or not self._grace_s:
            as_ctrl_c()
        self.reason, self.by_signal = self.reason or "SIGTERM", True

    def _watch(self, ledger: LedgerClient, summary: RunSummary, gpus: Callable[[], float], in_main: bool) -> None:
        while self.reason is None and not self._over.wait(_LOOK_S):
            self._count(summary, gpus)
            self.reason = self.reason or self._spending.over()
        if self._over.is_set():
            return
        log_event("stopping", f"{self.reason}: nothing new is begun", reason=self.reason, grace_s=self._grace_s)
        try:
            ledger.ask("drain")
        except ClusterError:  # the run itself is about to say so
            return
        self._wait_until_drained(summary, gpus)
        with self._interrupting:
            if in_main and not self._over.is_set():
                threading.Thread(target=self._leave_at_last, name="leave", daemon=True).start()
                self._is_told = True
                interrupt_main_thread()

    def _leave_at_last(self) -> None:
        if not self._left.wait(_LEAVE_S) and is_command():
            self._leave()

    def _leave(self) -> None:
        reason = self.reason or "SIGTERM"
        message = f"{reason}: the run hangs and is left; what is committed stays, run the same command to go on"
        log_event("left", message, level=logging.ERROR, reason=reason)
        print(f"datagen: {message}", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED if self.by_signal or self.reason is None else STOPPED)

    def _wait_until_drained(self, summary: RunSummary, gpus: Callable[[], float]) -> None:
        now = time.monotonic()
        until, busy = now + self._grace_s, now
        while now < until and now - busy < _SETTLED_S and not self._over.wait(_LOOK_S):
            self._count(summary, gpus)
            now = time.monotonic()
            busy = now if summary.in_flight() else busy

    def _count(self, summary: RunSummary, gpus: Callable[[], float], at_once: bool = False) -> None:
        with suppress(ClusterError):  # the run itself is about to say so; the time is added once there is an answer
            self._spending.count(gpus, at_once)
        summary.gpu_hours, summary.cost = self._spending.gpu_hours, self._spending.cost
