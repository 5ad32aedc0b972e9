"""URIs: what the `uri` column holds, and for local files the way back to a path.

A local file's URI is its absolute, normalised path; symbolic links are kept as written. A name that is not valid UTF-8 becomes a
`file://` URI with its bytes percent-encoded, because a table column holds text. The asset id is made from this URI, so moving
a data set elsewhere makes new assets; a manifest with an `asset_id` column keeps its ids. A remote file's URI is kept as written.

What lies inside a file has that file's URI, `#`, and its place there: `shards/00000.tar#cats/000123.jpg` is a member of a tar,
`data/train-00000.parquet#image[17]` the cell of column `image` in row 17, counted from 0. The first `.tar#`, `.parquet#` or `.arrow#` is
where it is split. In a member's name `%` is written `%25`, a byte that is not UTF-8 `%FF`, and `./` is left out. A local file whose own
path holds such a mark is written as a `file://` URI, with `%23` for the `#`. A folder of frames has its own URI with a `/` at the end.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from datagen.errors import SourceError
from datagen.frame_names import is_frame_folder
from datagen.remote import SCHEMES, checked_uri, is_remote, joined

HEIF_SUFFIXES = (".heic", ".heif", ".hif")  # read by pillow-heif, an extra
# The names of what decode/signatures.py knows.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
        *(".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", *HEIF_SUFFIXES),
    }
)
# The names of what decode/containers.py opens.
VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".qt", ".f4v", ".3gp", ".3gpp", ".3g2", ".3gpp2", ".mj2", ".mjp2", ".insv", ".lrv"),  # ISO and QuickTime
        *(".mkv", ".mk3d", ".webm", ".avi", ".divx", ".flv", ".asf", ".wmv", ".wm", ".dvr-ms", ".ogv", ".ogm", ".rm", ".rmvb"),
        *(".ts", ".m2t", ".m2ts", ".mts", ".tp", ".trp", ".mpegts"),  # transport streams
        *(".mpg", ".mpeg", ".mpe", ".m2p", ".vob", ".vro", ".evo", ".tod"),  # program streams
        *(".mxf", ".dv", ".ivf", ".y4m"),
    }
)
# Pictures by name, which may move; they are videos where only videos are asked for.
ANIMATION_SUFFIXES = frozenset({".gif", ".apng"})

Media = Literal["image", "video", "any"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_INSIDE = re.compile(r"^(.+?\.(?:tar|parquet|arrow))#(.+)$", re.IGNORECASE | re.DOTALL)


class Inside(NamedTuple):
    """What a URI names inside a file. file: path or URI of the file. name: the member or cell, its escapes resolved."""

    file: str
    name: str


def inside(uri: str) -> Inside | None:
    """The two parts of a URI that leads into a file, else None."""
    match = _INSIDE.match(uri) if "#" in uri else None
    return Inside(match[1], unquote_to_bytes(match[2]).decode("utf-8", "surrogateescape")) if match else None


def inside_uri(file: str, name: str) -> str:
    """The URI of a member or cell. file: the URI of the file that holds it."""
    text = name.replace("%", "%25")
    return f"{file}#" + "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def member_path(name: str) -> str:
    """A member's name as it stands in URIs, without `./`. Raises SourceError (`unsupported_uri`) for one that leads out of its archive."""
    path = posixpath.normpath(name)
    if name.startswith("/") or path == "." or ".." in name.split("/") or "\0" in name:
        raise SourceError(f"the member name {name!r} is absolute, or leads out of its archive", code="unsupported_uri")
    return path


def file_name(uri: str) -> str:
    """The last part of a path or URI; of a member, its own."""
    place = inside(uri)
    return posixpath.basename(place.name if place else uri)


def media_type_of(uri: str, media: Media = "any") -> Literal["image", "video", "other"]:
    """`image`, `video` or `other`, by the name's extension in any case; a folder of frames is a video.

    media: what the job asks for (source.media). An animation (.gif, .apng) is a video where that is `video`, else a picture, its first.
    """
    suffix = posixpath.splitext(uri)[1].lower()
    if is_frame_folder(uri) or suffix in VIDEO_SUFFIXES or (media == "video" and suffix in ANIMATION_SUFFIXES):
        return "video"
    return "image" if suffix in IMAGE_SUFFIXES or suffix in ANIMATION_SUFFIXES else "other"


def uri_of_path(path: str) -> str:
    """The URI of a local path (see the module's docstring)."""
    return _uri_of_absolute(os.path.abspath(path))


def uri_of(place: str) -> str:
    """The URI of a path, or of a remote file, which is one already."""
    return place if is_remote(place) else uri_of_path(place)


def _uri_of_absolute(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        pass
    else:
        if "#" not in path or not _INSIDE.match(path):
            return path
    return "file://" + quote_from_bytes(os.fsencode(path))


def path_of_uri(uri: str, root: str = "") -> str:
    """The local path of a URI; a relative one starts from `root`.

    Raises SourceError (`unsupported_uri`) for any scheme but `file://`, and for text that cannot be a path. A message does not repeat
    a URI of another scheme, as it may hold a password.
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
        allowed = ", ".join(f"{name}://" for name in ("file", *SCHEMES))
        raise SourceError(f"{scheme[0]} cannot be read; allowed: a path, {allowed}", code="unsupported_uri")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise SourceError(f"{uri!r} holds a character that no file name can have", code="unsupported_uri") from error
    if "\0" in path:
        raise SourceError(f"{uri!r} holds a NUL, which no file name can have", code="unsupported_uri")
    return path


@dataclass(frozen=True)
class Roots:
    """Where the URIs of one manifest start from, and what they may name.

    root: the folder of relative ones, a path or a remote URI. confined: none may leave it. local_allowed: they may name local files.
    """

    root: str
    confined: bool = False
    local_allowed: bool = True

    def resolve(self, uri: str) -> str:
        """The URI as it is stored. Raises SourceError: `unsupported_uri`, or `refused_uri` for one that the job does not allow."""
        place = inside(uri)
        if place is None and is_frame_folder(uri):
            return self._of_file(uri).rstrip("/") + "/"
        return self._of_file(uri) if place is None else inside_uri(self._of_file(place.file), member_path(place.name))

    def _of_file(self, uri: str) -> str:
        if is_remote(uri):
            place = resolved = checked_uri(uri)
        elif is_remote(self.root) and not _SCHEME.match(uri) and not uri.startswith("/"):
            place = resolved = joined(self.root, uri)
        else:
            place = os.path.abspath(path_of_uri(uri, self.root))
            resolved = _uri_of_absolute(place)
            if not self.local_allowed:
                why = "a manifest in a bucket may not name files of this machine; source.allow_local_uris: true lets it"
                raise SourceError(f"{uri!r}: {why}", code="refused_uri")
        if self.confined and not place.startswith(self.root.rstrip("/") + "/"):
            raise SourceError(f"{uri!r} is not below source.media_root ({self.root})", code="refused_uri")
        return resolved


def version_of_path(path: str) -> str:
    """What changes when a file changes: its size in bytes and modification time in ns; empty when the file is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"
