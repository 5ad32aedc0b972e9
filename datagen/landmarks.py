"""Whether a worker sees the places that its driver sees: the same path may be another folder on another node, or in another container.

The driver notes what it sees of the input, the weights and the output; a worker looks before it works. Only local places: those in
buckets are the same from everywhere.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from datagen.errors import JobError
from datagen.job import Job
from datagen.paths import is_name
from datagen.write import Store
from datagen.write.store import STAGING

_PATIENCE_S = 20.0  # a network file system may show a new file late
_LOOK_S = 0.5
_HASHED_BYTES = 1 << 20


@dataclass(frozen=True)
class Landmark:
    """Something that is to be seen from everywhere. what: of which option it is, in words. place: that option's value.

    path: of a file or folder; sign: the file's size and the hash of its beginning, empty where that may change. has_entries: of a folder.
    """

    what: str
    place: str
    path: str
    sign: str = ""
    has_entries: bool = False

    def is_seen(self) -> bool:
        """Whether it is here. Of a folder whose files may come and go meanwhile, no more is asked than that there are any."""
        if self.has_entries:
            return _has_entries(self.path)
        return sign_of(self.path) == self.sign if self.sign else os.path.exists(self.path)


@dataclass(frozen=True)
class Landmarks:
    """What each step has to see: media where it decodes, weights where it computes, the output where it writes."""

    media: tuple[Landmark, ...] = ()
    weights: tuple[Landmark, ...] = ()
    output: tuple[Landmark, ...] = ()

    @classmethod
    def of(cls, job: Job, store: Store, run_id: str) -> Landmarks:
        """What the driver of a located job sees; leaves a token among the run's staged files."""
        source, model = job.source, job.model
        media = [
            *_of_media("input", source.input),
            *_of_media("source.media_root", source.media_root),
        ]
        weights = []
        if not job.perceive.engine == job.describe.engine == "fake":
            for option in ("checkpoint", "sam2", "sam2_config"):
                value = getattr(model, option)
                if value is not None and not is_name(option, value) and os.path.exists(value):
                    path = os.path.join(value, "config.json") if os.path.isdir(value) else value
                    weights.append(Landmark(f"model.{option}", value, path, sign_of(path)))
        return cls(tuple(media), tuple(weights), tuple(_of_output(store, run_id)))


def sign_of(path: str) -> str:
    """A file's size and the hash of its beginning; empty where there is no such file."""
    try:
        with open(path, "rb") as file:
            return f"{os.fstat(file.fileno()).st_size} {hashlib.sha256(file.read(_HASHED_BYTES)).hexdigest()}"
    except OSError:
        return ""


def look_for(landmarks: Iterable[Landmark]) -> None:
    """Raises JobError when one is not seen from here."""
    for landmark in landmarks:
        until = time.monotonic() + _PATIENCE_S
        while not landmark.is_seen():
            if time.monotonic() > until:
                raise JobError(
                    f"a worker on {socket.gethostname()} does not see the {landmark.what} that the driver sees, {landmark.place}: "
                    f"{landmark.path} is {_instead(landmark)}. Give a path of a file system "
                    "that every node mounts at the same place, or a bucket (s3://...)"
                )
            time.sleep(_LOOK_S)


def _of_media(what: str, place: str | None) -> list[Landmark]:
    """A folder, a file, or the folder that a pattern is about."""
    if place is None or "://" in place:
        return []
    if not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.exists(place):
        return []
    return [Landmark(what, place, place, has_entries=_has_entries(place))]


def _has_entries(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(iter(entries), None) is not None
    except OSError:
        return False


def _instead(landmark: Landmark) -> str:
    if not os.path.exists(landmark.path):
        return "not there"
    return "empty" if landmark.has_entries else "another"


def _of_output(store: Store, run_id: str) -> list[Landmark]:
    if "://" in store.uri:
        return []
    token = f"{STAGING}/{run_id}/driver"
    store.write(token, secrets.token_bytes(16))
    path = os.path.join(store.uri, token)
    return [Landmark("output", store.uri, path, sign_of(path))]
