"""Where shipped data lies (job files, cluster profiles, schemas), and what datagen keeps on a machine.

In a checkout they are top-level folders; in an installed wheel they are under `datagen/_share/`.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share_path(relative: str) -> Path:
    """Path of a shipped file, such as `schemas/assets.v1.json`. Raises FileNotFoundError when it is not shipped."""
    for root in (_PACKAGE / "_share", _PACKAGE.parent):
        path = root / relative
        if path.exists():
            return path
    raise FileNotFoundError(f"{relative} is not shipped with this datagen at {_PACKAGE}")


def cache_folder() -> Path:
    """Where datagen keeps what it makes once per machine: DATAGEN_CACHE, or ~/.cache/datagen."""
    return Path(os.environ.get("DATAGEN_CACHE") or Path.home() / ".cache" / "datagen")
