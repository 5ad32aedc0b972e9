"""Damage to files: any bytes, and with an eye for headers and values. Every mutation is a function of a number, so that a case can be
written down, repeated and shrunk.
"""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

Mutation = tuple[str, int]
"""What is done, and the number that says where and how."""

_MOST = 6
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
# Behind these names stand lengths, counts, sizes and offsets: PNG, JPEG, WebP/AVI (RIFF), TIFF, GIF; MP4; Matroska; FLV, MPEG-TS; Parquet.
_HEADERS = re.compile(
    rb"IHDR|IDAT|PLTE|tRNS|eXIf|iCCP|IEND|\xff[\xc0-\xc4\xd8-\xdd\xe0\xe1\xee]|RIFF|VP8[ LX]|ANIM|ALPH|II\*\0|MM\0\*|GIF8|BM"
    rb"|ftyp|moov|mvhd|tkhd|mdhd|stsd|stts|ctts|stsc|stsz|stco|co64|stss|elst|mdat|avcC|avc1|moof|trun"
    rb"|\x1aE\xdf\xa3|\x18S\x80g|\x16T\xaek|\x1fC\xb6u|\x1cS\xbbk|\x15I\xa9f|\xa3|avih|strh|strf|idx1|movi|FLV|\x47|PAR1",
    re.DOTALL,
)
_VALUES = re.compile(rb'-?\d+(?:\.\d+)?|"(?:[^"\\]|\\.)*"|null|true|\[[^\[\]]*\]|\{[^{}]*\}')
_WORDS: Sequence[bytes] = (
    *(
        b"0",
        b"-1",
        b"1e999",
        b"-1e999",
        b"NaN",
        b"Infinity",
        b"1e-320",
        b"9223372036854775808",
        b"1" * 400,
        b"0.1",
        b"null",
        b"true",
        b'""',
    ),
    *(
        b"[]",
        b"{}",
        b"[[]]",
        b"[null]",
        b'{"box": null}',
        b"[" * 2000,
        b'{"a":' * 2000,
        b'"\\ud800"',
        b'"\\u0000"',
        b'"' + b"x" * 4096 + b'"',
    ),
    *(
        b'"../../etc/passwd"',
        b'"file:///dev/zero"',
        b'"s3://"',
        b'"http://["',
        b'"/"',
        b'"a\\nb"',
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\x00",
        b"\r",
    ),
    *(
        b"[1, 2, 3]",
        b"[1, 2, 3, 4, 5]",
        b'["a", 2, 3, 4]',
        b"[1e308, 1e308, 1e309, 1]",
        b"&a [*a]",
        b"!!python/object:os.system x",
        b"- - - ?",
    ),
    *(b"? [a]", b"2026-01-01", b"0x10", b"1_000", b".inf", b"'", b'"', b",", b":", b"}", b"]", b"\n", b"\t", b"%", b"<<: *a"),
)


def mutations() -> st.SearchStrategy[list[Mutation]]:
    """One to six mutations."""
    one = st.tuples(st.sampled_from(sorted(_MUTATORS)), st.integers(0, 2**32 - 1))
    return st.lists(one, min_size=1, max_size=_MOST)


def mutated(data: bytes, some: Sequence[Mutation], others: Sequence[bytes]) -> bytes:
    """The data after these mutations; others: files of the same kind, to splice from."""
    for name, number in some:
        rng = random.Random(number)
        data = _MUTATORS[name](data, rng, others)
    return data


def _flip(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4, 16)) if data else 0):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _noise(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _truncate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _delete(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 8)) + data[end:]


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    (start, end), (from_, to) = _span(data, rng), _span(other, rng)
    return data[:start] + other[from_:to] + data[rng.choice((start, end)) :]


def _join(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """The head of one file and the tail of another."""
    other = rng.choice(others)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _number(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """An edge case of an integer near a header's name, or else anywhere."""
    places = [match.end() for match in _HEADERS.finditer(data)]
    place = rng.choice(places) + rng.randrange(-8, 32) if places and rng.random() < 0.8 else rng.randrange(len(data) + 1)
    width = rng.choice((1, 2, 4, 4, 8))
    value = (rng.choice(_EDGES) + rng.choice((0, 0, -1, 1))) % (1 << (8 * width))
    place = min(max(place, 0), max(len(data) - width, 0))
    return data[:place] + value.to_bytes(width, rng.choice(("big", "little"))) + data[place + width :]


def _word(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Another value where a text has one."""
    places = list(_VALUES.finditer(data[: 1 << 16]))
    if not places:
        return _splice(data, rng, others)
    place = rng.choice(places)
    return data[: place.start()] + rng.choice(_WORDS) + data[place.end() :]


def _line(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Lines gone, doubled, or in another order."""
    lines = data.splitlines(keepends=True)
    if len(lines) > 1:
        match rng.randrange(3):
            case 0:
                del lines[rng.randrange(len(lines))]
            case 1:
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            case _:
                rng.shuffle(lines)
    return b"".join(lines)


def _checksums(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A PNG with the checksums that its chunks should have, so that what was changed in them is believed."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _flip(data, rng, others)
    out, position = bytearray(data[:8]), 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + length]
        out += data[position : position + 4] + body + struct.pack(">I", zlib.crc32(body))
        position += 12 + length
    return bytes(out) + data[position:]


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A place and its end: most are short."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 16, 64, 256, max(1, len(data) // 4))))


_MUTATORS: dict[str, Callable[[bytes, random.Random, Sequence[bytes]], bytes]] = {
    "checksums": _checksums,
    "delete": _delete,
    "flip": _flip,
    "join": _join,
    "line": _line,
    "noise": _noise,
    "number": _number,
    "repeat": _repeat,
    "splice": _splice,
    "truncate": _truncate,
    "word": _word,
}
