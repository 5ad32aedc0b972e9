"""Where shipped data lies (job files, cluster profiles, schemas), and what datagen keeps on a machine.

In a checkout they are top-level folders; in an installed wheel they are under `datagen/_share/`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from datagen.errors import ClusterError
from datagen.machine import is_writable, private_folder

_PACKAGE = Path(__file__).resolve().parent


def share_path(relative: str) -> Path:
    """Path of a shipped file, such as `schemas/assets.v1.json`. Raises FileNotFoundError when it is not shipped."""
    for root in (_PACKAGE / "_share", _PACKAGE.parent):
        path = root / relative
        if path.exists():
            return path
    raise FileNotFoundError(f"{relative} is not shipped with this datagen at {_PACKAGE}")


def cache_folder() -> Path:
    """Where datagen keeps what it makes once per machine: DATAGEN_CACHE, ~/.cache/datagen, or, where the home cannot be written, a folder
    of this user among the temporary ones. Raises ClusterError where none can be written.
    """
    chosen = os.environ.get("DATAGEN_CACHE")
    folder = Path(chosen) if chosen else Path(os.path.expanduser("~")) / ".cache" / "datagen"
    with suppress(OSError):  # is said below, or another place is taken
        folder.mkdir(parents=True, exist_ok=True)
    if is_writable(folder):
        return folder
    if chosen:
        raise ClusterError(f"DATAGEN_CACHE is {folder}, which cannot be made or written. Set it to a folder of yours")
    return private_folder("cache")
