"""The ids of assets and of what is found in them, and ids as keys: no two different ids are ever one key, whatever they look like.

Text is compared character by character: no folding of case, no reading as a number, no unicode normalisation.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable

MAX_ID_CHARS = 1024
KEY_BYTES = 16

# Control characters, halves of surrogate pairs, and what ends a line or a paragraph.
_REFUSED = {"Cc", "Cs", "Zl", "Zp"}


def id_key(text: str) -> bytes:
    """16 bytes that stand for an id in memory."""
    return hashlib.blake2b(_bytes(text), digest_size=KEY_BYTES).digest()


def set_name(ids: Iterable[str]) -> str:
    """20 hex digits of the SHA-256 of a set of ids, whatever their order; of no other set.

    Ids are joined by line feeds; those of a set in which one holds a line feed are written as JSON, after two line feeds, with which no
    joined set begins.
    """
    members = sorted(set(ids))
    text = "\n\n" + json.dumps(members) if any("\n" in member for member in members) else "\n".join(members)
    return hashlib.sha256(_bytes(text)).hexdigest()[:20]


def asset_id_of(uri: str, version: str = "") -> str:
    """The id of an asset: 20 hex digits of the SHA-256 of its URI (and of its version, when changed files count as new); of no others.

    Raises ValueError for a version with a line feed.
    """
    if "\n" in version:
        raise ValueError(f"the version {version!r} holds a line feed")
    return hashlib.sha256(f"{uri}\n{version}".encode()).hexdigest()[:20]


def clip_id_of(asset_id: str, clip_index: int) -> str:
    """The id of a clip of a video."""
    return f"{asset_id}-{clip_index:05d}"


def work_id_of(asset_id: str, clip_index: int | None, portion: int | None = None) -> str:
    """What crashes are counted against: an image, a portion of one, or one clip of a video.

    Never the same for two of them, whatever the ids look like.
    """
    if portion is not None:
        return f"portion {portion} of {asset_id}"
    return f"image {asset_id}" if clip_index is None else f"clip {clip_index} of {asset_id}"


def region_id_of(asset_id: str, region_index: int) -> str:
    """The id of a region of an image. Six digits: the ids of up to a million regions sort as text."""
    return f"{asset_id}-{region_index:06d}"


def track_id_of(asset_id: str, number: int) -> str:
    """The id of an object of a video; numbers count up from 0 through all clips of the asset. Six digits, as of regions."""
    return f"{asset_id}-t{number:06d}"


def id_problem(text: str) -> str | None:
    """Why a text cannot be the id of an asset; None when it can."""
    if not text:
        return "it is empty"
    if len(text) > MAX_ID_CHARS:
        return f"it has {len(text)} characters, allowed are {MAX_ID_CHARS}"
    if text.isascii() and text.isprintable():
        return None
    bad = next((character for character in text if unicodedata.category(character) in _REFUSED), None)
    return None if bad is None else f"it holds U+{ord(bad):04X}, a control character or no character at all"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
