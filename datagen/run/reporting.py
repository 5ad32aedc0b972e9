"""What a run says while it is on: the screen, its two logs, and the counters of its workers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from datagen.errors import ClusterError, StorageError
from datagen.events import event_log, log_event
from datagen.ledger import LedgerClient
from datagen.redaction import redact_file
from datagen.run.summary import RunSummary
from datagen.share import cache_folder
from datagen.write import Store
from datagen.write.store import META, TEMP_PREFIX

logger = logging.getLogger(__name__)

POLL_S = 0.5
Progress = Callable[[RunSummary], None]
Screen = Callable[[Path], AbstractContextManager[Progress]]


@contextmanager
def no_screen(log: Path) -> Iterator[Progress]:
    """Shows nothing and redirects nothing: for runs from Python."""
    yield lambda _: None


@contextmanager
def logged(store: Store, run_id: str, screen: Screen) -> Iterator[Progress]:
    """The screen, with the run's logs in the dataset: at once in a folder; a bucket gets them at the end, until then they are in the cache.

    `<run_id>.log` has what libraries print, where the screen sends it there, and is redacted at the end; `<run_id>.jsonl` the events.
    """
    is_local = "://" not in store.uri
    folder = Path(store.uri) / META / "logs" if is_local else cache_folder() / "logs"
    noise, events = folder / f"{run_id}.log", folder / f"{run_id}.jsonl"
    try:
        with event_log(events, run_id), screen(noise) as progress:
            yield progress
    finally:
        if noise.exists():
            _redact(noise, folder / f"{TEMP_PREFIX}{run_id}.log")
        if not is_local:
            _keep(store, [noise, events])


def _redact(noise: Path, temp: Path) -> None:
    """Redact a log. Where that fails, as on a full disk, the log is removed, and what ended the run is still what the run says."""
    try:
        redact_file(noise, temp)
    except OSError as error:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
        noise.unlink(missing_ok=True)
        logger.warning("%s could not be redacted (%s), so it is removed", noise, error.strerror)


def _keep(store: Store, logs: list[Path]) -> None:
    for log in logs:
        if log.exists():
            try:
                store.write(f"{META}/logs/{log.name}", log.read_bytes())
            except StorageError as error:
                logger.warning("the log stays in %s: %s", log, error.message)


@contextmanager
def polling(ledger: LedgerClient, summary: RunSummary, progress: Progress) -> Iterator[None]:
    """Ask the ledger for its counters and events twice a second, and once more at the end."""
    stop = threading.Event()

    def poll() -> None:
        while True:
            last = stop.wait(POLL_S)
            try:
                summary.counters, summary.spans = ledger.ask("progress", summary.states()), ledger.ask("spans")
                summary.waiting = ledger.ask("waiting")
                for event in ledger.ask("events"):
                    log_event(**event)
            except ClusterError:  # the run itself is about to say so
                return
            progress(summary)
            if last:
                return

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
