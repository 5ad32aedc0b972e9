"""Folders of frames: videos kept as one numbered picture per frame, as DAVIS, MOSE, SA-V and YouTube-VOS have them.

The URI of such a video is that of its folder, with a `/` at its end.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

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


def same_frame(ordered: Sequence[str]) -> tuple[str, str] | None:
    """The first two of ordered names that are one frame's, as `0.jpg` and `0.png`, or `1.jpg` and `01.jpg`; None where there are none."""
    return next((pair for pair in pairwise(ordered) if _key(pair[0])[0] == _key(pair[1])[0]), None)


def _key(name: str) -> tuple[list[str | int], str]:
    parts = _DIGITS.split(posixpath.splitext(name)[0])
    return [int(part) if position % 2 else part for position, part in enumerate(parts)], name
