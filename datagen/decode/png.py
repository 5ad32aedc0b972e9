"""PNG files without what is not the picture, so that no text, profile or bad checksum of one costs the pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Ancillary chunks that pixels depend on. Colours are not managed here, so they depend on no profile and no gamma.
_OF_THE_PICTURE = frozenset({b"tRNS", b"eXIf"})
# How texts begin in which programs keep the orientation, none of them packed but zTXt. Others, whatever their size, are left out.
_WITH_ORIENTATION = {
    b"tEXt": b"Raw profile type exif\0",
    b"zTXt": b"Raw profile type exif\0\0",
    b"iTXt": b"XML:com.adobe.xmp\0\0",
}
_LARGEST_TEXT = 1 << 20  # bytes, unpacked; as much as Pillow reads


class _Chunk(NamedTuple):
    kind: bytes
    body: memoryview
    whole: memoryview
    is_intact: bool

    @property
    def is_critical(self) -> bool:
        return self.kind[:1].isupper()


def only_picture(data: bytes) -> bytes:
    """A PNG's bytes without the ancillary chunks that no pixel depends on, and without those whose checksum is wrong (as libpng does).

    From where the file breaks off, or holds no chunk, it is left as it is. Raises ValueError for a wrong checksum of the picture itself.
    """
    kept, end = [memoryview(_SIGNATURE)], len(_SIGNATURE)
    for chunk in _chunks(memoryview(data)):
        end += len(chunk.whole)
        if chunk.is_critical and not chunk.is_intact:
            raise ValueError(f"the checksum of the chunk {chunk.kind.decode('ascii', 'replace')} is wrong")
        if chunk.is_critical or (chunk.is_intact and _is_wanted(chunk)):
            kept.append(chunk.whole)
    return b"".join([*kept, memoryview(data)[end:]])


def num_png_frames(data: bytes) -> int:
    """How many pictures an animated PNG has; 1 for any other. A picture for viewers that know no animations counts, too."""
    frames = 0
    for chunk in _chunks(memoryview(data)):
        if chunk.kind == b"acTL" and chunk.is_intact and len(chunk.body) >= 4:
            frames = int.from_bytes(chunk.body[:4], "big") + 1
        elif chunk.kind == b"fcTL":
            return max(1, frames - 1)  # the picture itself is the first frame
        elif chunk.kind == b"IDAT":
            break
    return max(1, frames)


def _chunks(data: memoryview) -> Iterator[_Chunk]:
    """The whole chunks from the first on, up to the end mark or to what is none."""
    start, kind = len(_SIGNATURE), b""
    while start + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data) or not kind.isalpha():
            return
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        is_intact = zlib.crc32(data[start + 4 : end - 4]) == checksum
        yield _Chunk(kind, data[start + 8 : end - 4], data[start:end], is_intact)
        start = end


def _is_wanted(chunk: _Chunk) -> bool:
    if chunk.kind in _OF_THE_PICTURE:
        return True
    name = _WITH_ORIENTATION.get(chunk.kind, b"")
    if not name or chunk.body[: len(name)] != name or len(chunk.body) > _LARGEST_TEXT:
        return False
    return chunk.kind != b"zTXt" or _unpacks_small(chunk.body[len(name) :])


def _unpacks_small(packed: memoryview) -> bool:
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, _LARGEST_TEXT)
    except zlib.error:
        return False
    return not unpacker.unconsumed_tail
