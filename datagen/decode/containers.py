"""What the bytes of a video file say without decoding them: which container it claims to be, and whether its end is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

# FFmpeg's names of the demuxers that are used; its many others stay closed, playlists that name other files above all.
# Raw streams (.264, .hevc, .m2v) stay closed, too: they hold no times.
DEMUXERS = "mov,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,mxf,ivf,dv,rm,yuv4mpegpipe,gif,apng"

_EBML = b"\x1aE\xdf\xa3"
_SEGMENT = b"\x18S\x80g"
_ISO_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp"})
_LATER_ISO_BOXES = frozenset({b"sidx", b"ssix", b"mfra", b"meta", b"udta", b"uuid", b"pnot", b"prft", b"emsg", b"pdin"})
_ASF = bytes.fromhex("3026b2758e66cf11")
_FLV_HEADER_BYTES = 13
_FLV_TAGS = (8, 9, 18)
_TS_SYNC = b"\x47"
# Packets of transport streams: bytes each, and where in them the sync byte is (Blu-ray and cameras put a time before it).
_TS_PACKETS = ((188, 0), (192, 4), (204, 0))
_HEAD_BYTES = 1024
_MAGIC = (
    (_EBML, "matroska"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (_ASF, "asf"),
    (b"FLV", "flv"),
    (b"OggS", "ogg"),
    (b"\x06\x0e\x2b\x34", "mxf"),
    (b"DKIF", "ivf"),
    (b".RMF", "rm"),
    (b"YUV4MPEG2", "y4m"),
    (b"GIF8", "gif"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\x1f\x07\x00", "dv"),
)


def claimed_container(head: bytes) -> str | None:
    """The container whose signature a file's first bytes (a few hundred) carry: `mp4`, `matroska`, `avi` ..., or None."""
    if head[4:8] in _ISO_BOXES:
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if any(len(head) >= size and head[start::size].strip(_TS_SYNC) == b"" for size, start in _TS_PACKETS):
        return "mpegts"
    return next((name for start, name in _MAGIC if head.startswith(start)), None)


def container_of(path: str) -> tuple[str | None, bool]:
    """The container a file claims to be, and whether it ends before what it announces. Raises OSError."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        match claimed_container(head):
            case "mp4":
                return "mp4", _mp4_is_cut(file, size)
            case "matroska":
                return "matroska", _matroska_is_cut(head, size)
            case "avi":
                return "avi", _avi_is_cut(file, size)
            case name:
                return name, False


def has_second_movie(path: str) -> bool:
    """Whether another movie follows in an MP4, ASF or FLV file, as `cat a.mp4 b.mp4` makes it; nothing reads that. Raises OSError."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        match claimed_container(file.read(_HEAD_BYTES)):
            case "mp4":
                kinds = [kind for kind, end in _boxes(file, size) if end <= size]
                return kinds.count(b"moov") > 1 and b"moof" not in kinds
            case "asf":
                return _asf_goes_on(file, size)
            case "flv":
                return _flv_goes_on(file, size)
    return False


def _asf_goes_on(file: BinaryIO, size: int) -> bool:
    """Whether a second header follows the objects of an ASF file."""
    position, seen = 0, 0
    while position + 24 <= size:
        file.seek(position)
        head = file.read(24)
        seen += head[: len(_ASF)] == _ASF
        length = int.from_bytes(head[16:], "little")
        if seen > 1 or length < 24:
            break
        position += length
    return seen > 1


def _flv_goes_on(file: BinaryIO, size: int) -> bool:
    """Whether a second header follows the tags of an FLV file."""
    position = _FLV_HEADER_BYTES
    while position + 11 <= size:
        file.seek(position)
        head = file.read(4)
        if head[0] & 0x1F not in _FLV_TAGS:
            return head[:3] == b"FLV"
        position += 11 + int.from_bytes(head[1:], "big") + 4
    return False


def _mp4_is_cut(file: BinaryIO, size: int) -> bool:
    """Whether a top-level box reaches beyond the end, or the one with the tables (moov) never comes. Whatever follows the boxes is none."""
    boxes = list(_boxes(file, size))
    kinds = {kind for kind, _ in boxes}
    return (bool(boxes) and boxes[-1][1] > size) or (b"mdat" in kinds and b"moov" not in kinds)


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """The top-level boxes of an MP4 file: what each is, and where it ends, which may be behind the end of the file."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length == 0:
            length = size - position
        if length < 8 or kind not in _ISO_BOXES | _LATER_ISO_BOXES:
            return
        position += length
        yield kind, position


def _avi_is_cut(file: BinaryIO, size: int) -> bool:
    """Whether one of its RIFF chunks (more than one in a file of gigabytes) reaches beyond the end."""
    position, first = 0, True
    while position + 12 <= size:
        file.seek(position)
        header = file.read(12)
        if header[:4] != b"RIFF" or not (first or header[8:] == b"AVIX"):
            break
        length = int.from_bytes(header[4:8], "little")
        position, first = position + 8 + length + length % 2, False
    return position > size + 1


def _matroska_is_cut(head: bytes, size: int) -> bool:
    """Whether the segment announces more bytes than there are; one of unknown length (a live recording) is never cut."""
    length, after_length = _vint(head, len(_EBML))
    start = after_length + length
    if not after_length or head[start : start + 4] != _SEGMENT:
        return False
    length, after_length = _vint(head, start + 4)
    if not after_length:
        return False
    unknown = length == (1 << (7 * (after_length - start - 4))) - 1
    return not unknown and after_length + length > size


def _vint(data: bytes, position: int) -> tuple[int, int]:
    """An EBML length at `position`, and the position after it (0 when there is none)."""
    first = data[position] if position < len(data) else 0
    width = 9 - first.bit_length()
    if first == 0 or position + width > len(data):
        return 0, 0
    return int.from_bytes(data[position : position + width], "big") & ((1 << (7 * width)) - 1), position + width
