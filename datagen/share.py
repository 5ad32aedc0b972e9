"""Where the shipped data lies: job files, cluster profiles and schemas.

In a checkout they are top-level folders; in an installed wheel they are under `datagen/_share/`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share_path(relative: str) -> Path:
    """Path of a shipped file, such as `schemas/assets.v1.json`. Raises FileNotFoundError when it is not shipped."""
    for root in (_PACKAGE / "_share", _PACKAGE.parent):
        path = root / relative
        if path.exists():
            return path
    raise FileNotFoundError(f"{relative} is not shipped with this datagen at {_PACKAGE}")
