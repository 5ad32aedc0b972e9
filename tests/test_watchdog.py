"""When an engine counts as hung."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from datagen.watchdog import WARM_UP, Watchdog

TIMEOUT_S = 0.3


class Bell:
    """Counts how often it was rung, and after how long."""

    def __init__(self) -> None:
        self.silences: list[float] = []
        self.rung = threading.Event()

    def __call__(self, silent_s: float) -> None:
        self.silences.append(silent_s)
        self.rung.set()


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def watchdog(bell: Bell) -> Iterator[Watchdog]:
    dog = Watchdog(TIMEOUT_S, bell)
    yield dog
    dog.close()


def test_silence_while_somebody_waits_is_a_hang_and_told_once(watchdog: Watchdog, bell: Bell) -> None:
    watchdog.heard()
    with watchdog.waiting(), watchdog.waiting():
        assert bell.rung.wait(30)
        time.sleep(2 * TIMEOUT_S)
    [silent_s] = bell.silences
    assert TIMEOUT_S <= silent_s < WARM_UP * TIMEOUT_S


def test_the_first_sign_of_life_may_take_longer(watchdog: Watchdog, bell: Bell) -> None:
    with watchdog.waiting():
        assert bell.rung.wait(30)
    assert bell.silences[0] >= WARM_UP * TIMEOUT_S


def test_an_idle_engine_and_one_that_answers_slowly_do_not_hang(watchdog: Watchdog, bell: Bell) -> None:
    watchdog.heard()
    time.sleep(2 * TIMEOUT_S)
    with watchdog.waiting():
        for _ in range(8):
            time.sleep(TIMEOUT_S / 4)
            watchdog.heard()
    with watchdog.waiting():
        time.sleep(TIMEOUT_S / 4)
    assert not bell.silences


def test_time_in_which_this_process_stood_still_does_not_count(bell: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ahead = time.monotonic, [0.0]
    monkeypatch.setattr("datagen.watchdog.time.monotonic", lambda: clock() + ahead[0])
    watchdog = Watchdog(60.0, bell)
    watchdog.heard()
    with watchdog.waiting():
        time.sleep(0.1)
        ahead[0] = 3600.0
        assert not bell.rung.wait(2.5)
    watchdog.close()
