"""What Ctrl-C may and may not tear apart."""

from __future__ import annotations

import signal
import threading

import pytest

from datagen.interrupts import handlers_kept, held_back, sigterm_is_ctrl_c


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


def test_sigterm_ends_a_run_that_was_started_with_ctrl_c_blocked() -> None:
    before = signal.getsignal(signal.SIGTERM)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as Ray's job server does it
    try:
        sigterm_is_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, before)
