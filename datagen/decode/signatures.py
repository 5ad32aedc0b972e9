"""What the first bytes of a file say: which image format it claims to be, and whether its end is missing."""

from __future__ import annotations

import struct

# The formats that are decoded; Pillow's many others stay closed.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "HEIF")

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)

# Brands of ISO base media files that hold pictures, and the codec that each means.
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"heif", b"heifs"), "HEIF"
)
_ANY_CODEC = frozenset({b"mif1", b"mif2", b"msf1", b"miaf", b"1pic"})


def claimed_format(data: bytes) -> str | None:
    """The format whose signature `data` starts with, or None."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _brand(data)
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def _brand(data: bytes) -> str | None:
    """The format of a file of boxes by its brands, the major one first."""
    end = min(int.from_bytes(data[:4], "big"), 1024)
    brands = [data[8:12], *(data[start : start + 4] for start in range(16, end, 4))]
    named = next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    return named or ("HEIF" if brands[0] in _ANY_CODEC else None)


def is_cut(data: bytes, pillow_says: str) -> bool:
    """Whether a file that failed to decode ends too early, rather than holding wrong bytes.

    PNG, WebP, TIFF, files of boxes and the header of a JPEG state their lengths, which is trusted over Pillow's message: after garbage
    Pillow too reads past the end.
    """
    match claimed_format(data):
        case "PNG":
            return _png_is_cut(data)
        case "WEBP":
            return int.from_bytes(data[4:8], "little") + 8 > len(data)
        case "TIFF" if int.from_bytes(data[4:8], "little" if data[:1] == b"I" else "big") >= len(data):
            return True
        case "AVIF" | "HEIF" if _boxes_are_cut(data):
            return True
        case "JPEG" if _jpeg_header_is_cut(data):
            return True
        case "JPEG2000":
            return not data.rstrip(b"\0").endswith(b"\xff\xd9")  # the end mark of its stream
        case _:
            return "truncated" in pillow_says.lower()


def webp_pixels(data: bytes) -> int:
    """Pixels that the header of a WebP announces; 0 for another file."""
    if claimed_format(data) != "WEBP" or len(data) < 30:
        return 0
    match data[12:16]:
        case b"VP8X":
            return (int.from_bytes(data[24:27], "little") + 1) * (int.from_bytes(data[27:30], "little") + 1)
        case b"VP8L":
            packed = int.from_bytes(data[21:25], "little")
            return ((packed & 0x3FFF) + 1) * ((packed >> 14 & 0x3FFF) + 1)
        case b"VP8 ":
            return (int.from_bytes(data[26:28], "little") & 0x3FFF) * (int.from_bytes(data[28:30], "little") & 0x3FFF)
    return 0


def _jpeg_header_is_cut(data: bytes) -> bool:
    """Whether it breaks off before the first scan."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return False
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:
            return False
        position += 1 if marker == 0xFF else 2 + length
    return True


def _boxes_are_cut(data: bytes) -> bool:
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if size == 1 and position + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, position + 8)
        if size == 0 or not kind.isalnum():
            return False
        position += max(size, 8)
    return position != len(data)


def _png_is_cut(data: bytes) -> bool:
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if not kind.isalpha():
            return False
        if kind == b"IEND":
            return False
        position += 12 + length
    return True
