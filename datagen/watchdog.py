"""Notices an engine or a model that hangs: it is asked for something, and nothing comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WARM_UP = 4  # times the timeout may pass before the first sign of life: kernels are compiled and graphs captured meanwhile
_LOOKS = 10  # per timeout
_LONGEST_LOOK_S = 1.0


class Watchdog:
    """Calls `on_hang` once, on a thread of its own, when somebody has waited for `timeout_s` seconds without a sign of life.

    Before the first sign ever it waits WARM_UP times as long. Time in which this very process stood still (it was stopped, or its
    machine slept) does not count, as the engine could not be heard then.
    """

    def __init__(self, timeout_s: float, on_hang: Callable[[float], None]) -> None:
        self._timeout_s, self._on_hang = timeout_s, on_hang
        self._look_s = min(_LONGEST_LOOK_S, timeout_s / _LOOKS)
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._silent_s = 0.0
        self._is_warm = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Somebody waits for the engine. From any thread, many at once."""
        with self._lock:
            if not self._num_waiting:
                self._silent_s = 0.0
            self._num_waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_waiting -= 1

    def heard(self) -> None:
        """The engine gave a sign of life."""
        with self._lock:
            self._silent_s, self._is_warm = 0.0, True

    def close(self) -> None:
        """Watch no more."""
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self._look_s):
            now = time.monotonic()
            with self._lock:
                if self._num_waiting:
                    self._silent_s += min(now - last, 2 * self._look_s)
                silent_s, limit_s = self._silent_s, self._timeout_s * (1 if self._is_warm else WARM_UP)
                is_hung = self._num_waiting > 0 and silent_s >= limit_s
            last = now
            if is_hung:
                self._on_hang(silent_s)
                return
