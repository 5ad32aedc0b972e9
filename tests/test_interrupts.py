"""What Ctrl-C may and may not tear apart."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datagen.budget import BudgetOptions, Spending
from datagen.interrupts import handlers_kept, held_back, sigterm_is_ctrl_c
from datagen.ledger import Ledger, LocalLedger
from datagen.run.stopping import Stop
from datagen.run.summary import RunSummary
from datagen.write import open_store


def test_ctrl_c_waits_for_the_end_of_what_must_stay_whole() -> None:
    before, steps = signal.getsignal(signal.SIGINT), []

    def commit() -> None:
        with held_back():
            steps.append("regions")
            signal.raise_signal(signal.SIGINT)
            steps.append("assets")

    with pytest.raises(KeyboardInterrupt):
        commit()
    assert steps == ["regions", "assets"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_counts_more_than_ctrl_c() -> None:
    def commit() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        commit()


def test_other_threads_commit_too() -> None:
    done = []

    def commit() -> None:
        with held_back():
            done.append(True)

    thread = threading.Thread(target=commit)
    thread.start()
    thread.join()
    assert done == [True]


def test_the_handler_of_sigterm_outlives_a_library_that_sets_its_own() -> None:
    def ours(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with handlers_kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def sigterm() -> Iterator[None]:
    before, mask = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    sigterm_is_ctrl_c()
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("started", ["from a terminal", "by Ray's job server", "in the background of a script"])
def test_sigterm_ends_a_run_however_it_was_started(sigterm: None, started: str) -> None:
    if started == "by Ray's job server":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if started == "in the background of a script":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    steps = []

    def commit() -> None:
        with held_back():
            steps.append("regions")
            signal.raise_signal(signal.SIGTERM)
            steps.append("assets")

    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        commit()
    assert steps == ["regions", "assets"]


HANGS = """
import signal, sys, time
from pathlib import Path
from datagen.run import stopping
from datagen.budget import BudgetOptions, Spending
from datagen.interrupts import sigterm_is_ctrl_c
from datagen.ledger import Ledger, LocalLedger
from datagen.run.summary import RunSummary
from datagen.write import open_store

stopping._LEAVE_S = 0.5
sigterm_is_ctrl_c()
stop = stopping.Stop(Spending(BudgetOptions(deadline=sys.argv[1])), grace_s=0.3)
with stop.leaving(), stop.watching(LocalLedger(Ledger(open_store("."), 3)), RunSummary("r", ""), lambda: 0.0):
    print("begun", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("told", flush=True)
"""


@pytest.mark.parametrize(("deadline", "code"), [("1h", 130), ("0.2s", 5)], ids=["SIGTERM", "deadline"])
def test_a_run_that_does_not_end_when_told_to_is_left(deadline: str, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, deadline]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert run.stdout is not None
    assert run.stdout.readline() == "begun\n"
    if code == 130:
        run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, out) == (code, "told\n")
    assert "what is committed stays" in err


class Flights(RunSummary):
    """A summary that says how much is in flight, and counts how often it was asked."""

    def __init__(self, flying: int) -> None:
        super().__init__("r", "")
        self.flying, self.asked = flying, 0

    def in_flight(self) -> int:
        self.asked += 1
        return self.flying


def test_a_run_that_is_drained_does_not_wait_for_the_end_of_its_grace(sigterm: None, tmp_path: Path) -> None:
    """Two looks at an empty pipeline are not enough, as the driver hears late of what workers do; a second of them is."""
    stop, summary = Stop(Spending(BudgetOptions()), grace_s=3600), Flights(flying=1)
    ledger, started = LocalLedger(Ledger(open_store(str(tmp_path)), 3)), time.monotonic()
    with pytest.raises(KeyboardInterrupt), stop.leaving(), stop.watching(ledger, summary, lambda: 0.0):  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        while summary.asked < 15:  # three seconds of looks
            time.sleep(0.05)
        assert ledger.ask("draining")
        summary.flying, summary.asked = 0, 0
        while time.monotonic() < started + 600:
            time.sleep(0.05)
    assert 3 <= summary.asked <= 20
