"""The lease on a dataset in a bucket: an object that only one run can create or replace, by conditional requests.

The holder replaces it every few seconds. Whoever comes second watches: a replaced object means a live run, and the second leaves; one
that nobody replaced for `s3.lease_ttl_s` is of a dead run and is taken over, by a request that only one of several can win.
Ages are counted by the store's clock or by one process's own, so the clocks of machines need not agree.

A holder that could not renew for most of that time (cut off, stopped) publishes nothing before it has renewed. When that shows that
another run took over, it never publishes again. Should such a run be frozen between this look and its request: what it would
publish was staged before, and the run that took over removes all staged objects before it lists what is done.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from datagen.errors import OutputBusyError, StorageError, StorageUnavailableError, WriteError
from datagen.job import S3Options
from datagen.processes import state_of, this_process
from datagen.s3 import SCHEME, patiently
from datagen.write.store import who_is

_POLL_S = 1.0
# The rest is for the requests that are under way when the lease is looked at.
_TRUSTED_SHARE = 2 / 3
# Counts on while the machine sleeps, where there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class _Seen:
    """A lease object. age_s: since it was written, by the store's clock."""

    etag: str
    content: dict[str, Any]
    age_s: float


class S3Lease:
    """The lease of one run. Raises OutputBusyError, StorageError, and WriteError for a store that does not honour conditions."""

    def __init__(self, options: S3Options, bucket: str, key: str, dataset: str) -> None:
        self._options, self._bucket, self._key, self._dataset = options, bucket, key, dataset
        self._where = f"{SCHEME}{bucket}/{key}"
        self._nonce = uuid.uuid4().hex
        self._beat = 0
        self._etag = ""
        self._trusted_until = 0.0
        self._lost_to: str | None = None
        self._owner: dict[str, Any] = {}
        self._changing = threading.Lock()
        self._ended = threading.Event()

    @contextmanager
    def held(self, owner: Mapping[str, Any]) -> Iterator[None]:
        """Take the lease, keep it for as long as the context lasts, and give it back."""
        self._owner = dict(owner)
        self._take()
        thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            with suppress(StorageError, OutputBusyError):  # otherwise it expires
                self._replace(_POLL_S, released=True)

    def check(self) -> None:
        """Make sure that this run is still the holder. Raises OutputBusyError when another took over, StorageUnavailableError when
        the store does not say."""
        if self._lost_to is None and time.clock_gettime(_CLOCK) < self._trusted_until:
            return  # without waiting for a heartbeat that may be stuck
        with self._changing:
            if self._lost_to is None and time.clock_gettime(_CLOCK) >= self._trusted_until:
                self._renew(self._options.patience_s)
            if self._lost_to is not None:
                raise OutputBusyError(
                    f"this run lost {self._dataset} to another: {self._lost_to}. It was cut off or stopped for longer than "
                    f"s3.lease_ttl_s ({self._options.lease_ttl_s:g} s). What it had committed is whole; the other run goes on."
                )

    # --- holding -----------------------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._ended.wait(self._options.lease_heartbeat_s):
            with self._changing, suppress(StorageError):  # `check` tries for longer
                if self._lost_to is None:
                    self._renew(self._options.lease_heartbeat_s)

    def _renew(self, patience_s: float) -> None:
        started = time.clock_gettime(_CLOCK)
        try:
            self._replace(patience_s)
        except OutputBusyError as error:
            self._lost_to = error.message
            return
        self._trusted_until = started + _TRUSTED_SHARE * self._options.lease_ttl_s

    def _replace(self, patience_s: float, released: bool = False) -> None:
        """Replace the object that this run wrote last. Raises OutputBusyError when it is another's by now."""
        for _ in range(2):
            self._beat += 1
            etag = self._put_if(patience_s, released, IfMatch=self._etag)
            if etag is not None:
                self._etag = etag
                return
            seen = self._look(patience_s)
            if seen is None or seen.content.get("nonce") != self._nonce:
                raise OutputBusyError(who_is(seen.content.get("owner", {})) if seen else "its lease was deleted")
            self._etag = seen.etag  # an earlier request had arrived, and its answer had not
            if seen.content.get("beat") == self._beat:
                return
        raise StorageUnavailableError(f"{self._dataset}: the lease could not be renewed. Rerun the same command to resume.")

    # --- taking ------------------------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Become the holder, by one of three ways; watch while it is not known whether the holder lives."""
        first, since = None, time.clock_gettime(_CLOCK)
        while True:
            seen, started = self._look(), time.clock_gettime(_CLOCK)
            if seen is None:
                taken = self._try_to_put(IfNoneMatch="*")
            elif seen.content.get("nonce") == self._nonce:  # the answer to our own request was lost
                self._etag, taken = seen.etag, True
            elif self._is_over(seen) or (first == seen.etag and started - since > self._options.lease_ttl_s):
                taken = self._try_to_put(IfMatch=seen.etag)
            elif first in (None, seen.etag) and state_of(seen.content.get("process")) != "alive":
                first, taken = seen.etag, False
                time.sleep(min(_POLL_S, self._options.lease_heartbeat_s / 2))
            else:
                raise self._busy(seen)
            if taken:
                self._trusted_until = started + _TRUSTED_SHARE * self._options.lease_ttl_s
                if seen is None:
                    self._refuse_unconditional_store()
                return

    def _is_over(self, seen: _Seen) -> bool:
        is_old = seen.age_s > self._options.lease_ttl_s
        return bool(seen.content.get("released")) or is_old or state_of(seen.content.get("process")) == "dead"

    def _try_to_put(self, **condition: str) -> bool:
        etag = self._put_if(self._options.patience_s, False, **condition)
        self._etag = etag or self._etag
        return etag is not None

    def _refuse_unconditional_store(self) -> None:
        """A store that ignores the conditions would let two runs write at once. Asked once, when a dataset begins."""
        if self._try_to_put(IfNoneMatch="*") or self._try_to_put(IfMatch='"0"'):
            raise WriteError(
                f"the store of {self._dataset} ignores conditional requests (If-None-Match, If-Match), so that two runs could write at "
                "once. Use one that honours them (AWS, MinIO, Ceph, R2 in their current versions), or write to a local folder."
            )

    def _busy(self, seen: _Seen) -> OutputBusyError:
        owner = who_is(seen.content.get("owner", {})) or "it does not say who it is"
        return OutputBusyError(
            f"another run is writing to {self._dataset}: {owner}. Wait until it ends, stop it, or choose another --output."
        )

    # --- requests ----------------------------------------------------------------------------------------------------------------

    def _put_if(self, patience_s: float, released: bool, **condition: str) -> str | None:
        """Write the object on a condition; its ETag, or None where the condition did not hold."""
        content = {"owner": self._owner, "nonce": self._nonce, "beat": self._beat, "released": released, "process": this_process()}
        request = {"Bucket": self._bucket, "Key": self._key, "Body": json.dumps(content, default=str).encode(), **condition}
        try:
            answer = patiently(self._options, self._where, lambda s3: s3.put_object(**request), patience_s)
        except FileNotFoundError:
            return None
        except StorageError as error:
            if error.code != "precondition":
                raise
            return None
        return str(answer["ETag"])

    def _look(self, patience_s: float | None = None) -> _Seen | None:
        def request(s3: Any) -> _Seen:
            answer = s3.get_object(Bucket=self._bucket, Key=self._key)
            content = _content(answer["Body"].read())
            now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            return _Seen(answer["ETag"], content, (now - answer["LastModified"]).total_seconds())

        try:
            return patiently(self._options, self._where, request, patience_s)
        except FileNotFoundError:
            return None


def _content(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:  # not ours: it counts as held until it expires
        return {}
    return content if isinstance(content, dict) else {}
