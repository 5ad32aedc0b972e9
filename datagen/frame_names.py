"""Folders of frames: videos kept as one numbered picture per frame, as DAVIS, MOSE, SA-V and YouTube-VOS have them.

The URI of such a video is that of its folder, with a `/` at its end.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable

# What Pillow opens here and people keep frames as.
FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})

_DIGITS = re.compile(r"(\d+)")


def is_frame_folder(uri: str) -> bool:
    """Whether a URI or path names a folder of frames."""
    return uri.endswith("/")


def in_order(names: Iterable[str]) -> list[str]:
    """The frames among the files of one folder, by the numbers in their names: `2.jpg` before `10.jpg`. Hidden files are none."""
    frames = (name for name in names if posixpath.splitext(name)[1].lower() in FRAME_SUFFIXES and not name.startswith("."))
    return sorted(frames, key=_key)


def _key(name: str) -> tuple[list[str | int], str]:
    parts = _DIGITS.split(posixpath.splitext(name)[0])
    return [int(part) if position % 2 else part for position, part in enumerate(parts)], name
