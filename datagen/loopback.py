"""An embedded Ray is of this machine and this user alone: it listens on the loopback, and its token is readable by its owner.

Ray binds to every interface of the machine unless its own address is the loopback's, and its way to say so is a switch that is meant for
other systems: without clusters of several machines there is no other address. The token that it makes in ~/.ray is readable by all.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_TOKEN = "RAY_AUTH_TOKEN"


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started inside listens on the loopback alone, and so do its processes for as long as they live."""
    before = os.environ.get(_NO_CLUSTER)
    os.environ[_NO_CLUSTER] = "0"
    constants = sys.modules.get("ray._private.ray_constants")  # where it was imported before, it has read the variable
    was = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    if constants is not None:
        constants.ENABLE_RAY_CLUSTER = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if constants is not None:
            constants.ENABLE_RAY_CLUSTER = was  # type: ignore[attr-defined]
        if before is None:
            del os.environ[_NO_CLUSTER]
        else:
            os.environ[_NO_CLUSTER] = before


def keep_token_private() -> None:
    """Make Ray's token where there is none yet, as Ray would, for its owner alone; close one that others may read.

    A home that cannot be written to gets none; then this process and those that it starts have one in their environment.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get(_TOKEN) or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            _close(path)
            return
        _make(path)
    except (OSError, RuntimeError):  # the latter where there is no home at all
        os.environ[_TOKEN] = secrets.token_hex(32)


def _make(path: Path) -> None:
    """Whole or not at all: another run may look at the same time."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    try:
        if path.exists() and not path.stat().st_size:
            path.unlink(missing_ok=True)
        os.link(aside, path)
    except FileExistsError:
        return
    finally:
        aside.unlink(missing_ok=True)


def _close(path: Path) -> None:
    status = path.stat()
    if status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o600)
