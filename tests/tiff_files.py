"""TIFF files of any layout, written by hand, because Pillow writes few."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

BLACK_IS_ZERO, WHITE_IS_ZERO, RGB, PALETTE, CMYK = 1, 0, 2, 3, 5
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
_LETTERS = {1: "B", 3: "H", 4: "I"}


def tiff(
    values: np.ndarray,
    photometric: int = BLACK_IS_ZERO,
    *,
    bits: int | None = None,
    colors: np.ndarray | None = None,
    extra: Sequence[int] = (),
    is_big: bool = False,
    is_packed: bool = False,
    is_planar: bool = False,
) -> bytes:
    """A file of (H, W) or (H, W, samples) values of any kind of number, one strip a plane.

    colors: (2 ** bits, 3) uint16 palette. extra: what samples beyond the colours mean. is_big: Motorola's byte order. is_packed: deflated.
    is_planar: samples apart. bits: 12 packs two samples into three bytes.
    """
    height, width = values.shape[:2]
    samples = values.shape[2] if values.ndim == 3 else 1
    planes = [values[..., n] for n in range(samples)] if is_planar and samples > 1 else [values]
    strips = [_packed(plane, bits, is_big) for plane in planes]
    strips = [zlib.compress(strip) if is_packed else strip for strip in strips]
    kind = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[values.dtype.kind]
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [bits or values.dtype.itemsize * 8] * samples),
        259: (3, [8 if is_packed else 1]),
        262: (3, [photometric]),
        273: (4, [0] * len(strips)),
        277: (3, [samples]),
        278: (3, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if is_planar else 1]),
        339: (3, [kind] * samples),
    }
    if colors is not None:
        tags[320] = (3, colors.T.reshape(-1).tolist())
    if extra:
        tags[338] = (3, list(extra))
    return _file(tags, strips, ">" if is_big else "<")


def _packed(plane: np.ndarray, bits: int | None, is_big: bool) -> bytes:
    if bits != 12:
        return plane.astype(plane.dtype.newbyteorder(">" if is_big else "<")).tobytes()
    pairs = plane.reshape(len(plane), -1, 2).astype(np.uint16)
    first, second = pairs[..., 0], pairs[..., 1]
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8).tobytes()


def _file(tags: dict[int, tuple[int, Sequence[int]]], strips: Sequence[bytes], order: str) -> bytes:
    bodies = {tag: struct.pack(f"{order}{len(values)}{_LETTERS[kind]}", *values) for tag, (kind, values) in tags.items()}
    room = 8 + 2 + 12 * len(tags) + 4
    places, end = {}, room
    for tag, body in bodies.items():
        if len(body) > 4:
            places[tag], end = end, end + len(body)
    starts = [end + sum(map(len, strips[:n])) for n in range(len(strips))]
    bodies[273] = struct.pack(f"{order}{len(starts)}I", *starts)
    header = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8)
    entries = [
        struct.pack(order + "HHI", tag, kind, len(values))
        + (struct.pack(order + "I", places[tag]) if tag in places else bodies[tag].ljust(4, b"\0"))
        for tag, (kind, values) in sorted(tags.items())
    ]
    directory = struct.pack(order + "H", len(tags)) + b"".join(entries) + bytes(4)
    return header + directory + b"".join(bodies[tag] for tag in places) + b"".join(strips)
