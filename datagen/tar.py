"""The headers of a tar archive, one after the other, by few short reads. Nothing is unpacked and no member is remembered.

Understood are the formats that today's tars write (ustar, GNU, pax, V7). What an archive says of itself is not believed: sizes are held
against the file's, and extension headers against a limit.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from datagen.errors import SourceError
from datagen.ranges import Ranges, Window

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")

Kind = Literal["file", "folder", "hard link", "symbolic link", "device", "sparse file"]

_BLOCK = 512
_EXTENSION_BYTES = 1 << 20
_TRAILER_BYTES = 1 << 20
_MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_KINDS: dict[bytes, Kind] = {
    tarfile.DIRTYPE: "folder",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "device",
}
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. name: as it stands there. header_at: byte of its header. offset, size: of its data. mtime: seconds."""

    name: str
    kind: Kind
    header_at: int
    offset: int
    size: int
    mtime: float


class TarReader:
    """The members of one archive, in order.

    Iterating raises SourceError where the archive breaks off or is none, with the code `archive_truncated`, `archive_damaged`,
    `archive_compressed`, or what Ranges.at raises. has_end_mark: whether the archive ended as it should, once it is read. cut: the member
    in the middle of which it ends.
    """

    def __init__(self, ranges: Ranges) -> None:
        self.ranges = ranges
        self.has_end_mark = False
        self.cut: Member | None = None
        self._window = Window(ranges)

    def read(self, member: Member) -> bytes:
        """A member's content."""
        return self._window.read(member.offset, member.size)

    def __iter__(self) -> Iterator[Member]:
        if not self.ranges.size:
            raise SourceError("it is empty (0 bytes)", code="archive_truncated")
        position, found = 0, _Extensions()
        while position < self.ranges.size:
            header = self._header(position)
            if header is None:
                if found.any:
                    raise SourceError(f"the extension header before byte {position} belongs to no member", code="archive_damaged")
                self._check_trailer(position)
                return
            data_at = position + _BLOCK
            if header.type in _EXTENSIONS:
                found.add(header.type, self._extension(header.size, position), position)
                position = data_at + _padded(header.size)
                continue
            member = found.member(header, position, data_at)
            if member.offset + member.size > self.ranges.size:
                self.cut = member
                raise SourceError(
                    f"the archive ends after {self.ranges.size} bytes, in the middle of {member.name!r}, which announces {member.size} "
                    f"bytes from byte {member.offset} on; what else it held is not known. Copy it again",
                    code="archive_truncated",
                )
            yield member
            found, position = _Extensions(), data_at + _padded(member.size)
        if position > self.ranges.size or found.any:
            raise self._cut(position)

    def _header(self, position: int) -> tarfile.TarInfo | None:
        """The header at a byte, None for the end mark."""
        block = self._window.read(position, _BLOCK)
        if position == 0 and (packed := next((name for magic, name in _MAGICS.items() if block.startswith(magic)), None)):
            raise compressed(packed)
        if len(block) < _BLOCK:
            raise self._cut(position)
        if not any(block):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError) as error:
            if position == 0:
                raise _no_tar(block, error) from error
            raise SourceError(
                f"there is no header at byte {position} ({error}); the members before were read", code="archive_damaged"
            ) from error
        if header.size < 0:
            raise SourceError(f"the header at byte {position} announces {header.size} bytes", code="archive_damaged")
        return header

    def _extension(self, size: int, position: int) -> bytes:
        if size > _EXTENSION_BYTES:
            message = f"the extension header at byte {position} has {size} bytes, more than the {_EXTENSION_BYTES} that any name needs"
            raise SourceError(message, code="archive_damaged")
        data = self._window.read(position + _BLOCK, size)
        if len(data) < size:
            raise self._cut(position)
        return data

    def _check_trailer(self, position: int) -> None:
        """Behind the end mark there is padding; anything else would be lost."""
        rest = self.ranges.size - position
        trailer = self._window.read(position, min(rest, _TRAILER_BYTES))
        if rest > _TRAILER_BYTES or any(trailer):
            message = (
                f"there is more behind the end mark at byte {position}, as in tars joined with cat: it is not read. Give them one by one"
            )
            raise SourceError(message, code="archive_damaged")
        self.has_end_mark = True

    def _cut(self, position: int) -> SourceError:
        message = f"the archive ends after {self.ranges.size} bytes, in the middle of what begins at byte {position}. Copy it again"
        return SourceError(message, code="archive_truncated")


class _Extensions:
    """What extension headers say of the member that follows them."""

    def __init__(self) -> None:
        self.any = False
        self._name: str | None = None
        self._pax: dict[str, str] = {}

    def add(self, kind: bytes, data: bytes, position: int) -> None:
        """Take one more header's content."""
        self.any |= kind != tarfile.XGLTYPE
        if kind == tarfile.GNUTYPE_LONGNAME:
            self._name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind in _PAX:
            try:
                self._pax |= _pax_records(data)
            except ValueError as error:
                raise SourceError(f"the extension header at byte {position} cannot be read", code="archive_damaged") from error

    def member(self, header: tarfile.TarInfo, position: int, data_at: int) -> Member:
        """The member that they belong to."""
        name = self._pax.get("path") or self._name or header.name
        try:
            size, mtime = int(self._pax.get("size", header.size)), float(self._pax.get("mtime", header.mtime))
        except ValueError as error:
            raise SourceError(f"size or time of {name!r} is no number", code="archive_damaged") from error
        if size < 0:
            raise SourceError(f"{name!r} announces {size} bytes", code="archive_damaged")
        kind: Kind = _KINDS.get(header.type, "file")
        if kind != "file":
            return Member(name, kind, position, data_at, 0, mtime)
        is_sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in self._pax)
        return Member(name, "sparse file" if is_sparse else "file", position, data_at, size, mtime)


def _pax_records(data: bytes) -> dict[str, str]:
    """`length key=value` lines. Raises ValueError."""
    found = {}
    while data.strip(b"\0"):
        length, _, rest = data.partition(b" ")
        record = rest[: int(length) - len(length) - 1]
        key, equals, value = record.partition(b"=")
        if int(length) <= len(length) or not equals or not record.endswith(b"\n"):
            raise ValueError(data[:40])
        found[key.decode()] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return found


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _no_tar(block: bytes, error: Exception) -> SourceError:
    return SourceError(f"it is no tar archive ({error}); it starts with {block[:16]!r}", code="archive_damaged")


def compressed(how: str) -> SourceError:
    """The error for an archive whose members cannot be read one by one."""
    message = (
        f"it is compressed ({how}), so that no member can be read by itself. Unpack it to a plain .tar; pictures are compressed already"
    )
    return SourceError(message, code="archive_compressed")
