"""URIs of local files: what the `uri` column holds, and the way back to a path.

A file's URI is its absolute, normalised path; symbolic links are kept as written. A name that is not valid UTF-8 becomes a
`file://` URI with its bytes percent-encoded, because a table column holds text. The asset id is made from this URI, so moving
a data set elsewhere makes new assets; a manifest with an `asset_id` column keeps its ids.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from datagen.errors import SourceError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def media_type_of(uri: str) -> Literal["image", "video", "other"]:
    """`image`, `video` or `other`, by the name's extension in any case."""
    suffix = PurePosixPath(uri).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "image" if suffix in IMAGE_SUFFIXES else "other"


def uri_of_path(path: str) -> str:
    """The URI of a local path (see the module's docstring)."""
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(absolute))
    return absolute


def path_of_uri(uri: str, root: str = "") -> str:
    """The local path of a URI; a relative one starts from `root`.

    Raises SourceError (`unsupported_uri`) for any scheme but `file://`, and for text that cannot be a path.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        path = os.path.join(root, uri)
    elif scheme[1].lower() == "file":
        host, slash, rest = uri[scheme.end() :].partition("/")
        if host not in ("", "localhost"):
            raise SourceError(f"{uri} names the host {host}; write file:///path for a local file", code="unsupported_uri")
        path = os.fsdecode(unquote_to_bytes(slash + rest))
    else:
        allowed = "a path or a file:// URI. Download the file and give its path"
        raise SourceError(f"{uri} starts with {scheme[0]}, which cannot be read yet; allowed: {allowed}", code="unsupported_uri")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise SourceError(f"{uri!r} holds a character that no file name can have", code="unsupported_uri") from error
    if "\0" in path:
        raise SourceError(f"{uri!r} holds a NUL, which no file name can have", code="unsupported_uri")
    return path


def version_of_path(path: str) -> str:
    """What changes when a file changes: its size in bytes and modification time in ns; empty when the file is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"
