"""TIFF files as Pillow reads them, and what it gets wrong or does not know: layouts of more than 8 bits.

White-is-zero, palettes, 12 bits, unsigned 32 bits, doubles, grey with alpha, planes of 16 bits, and the byte order of what libtiff unpacks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, TiffImagePlugin

from datagen.errors import DecodeError

_NEW_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 254, 256, 257, 258, 259, 262, 277
_COLOR_MAP, _SAMPLE_FORMAT = 320, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE = 0, 1, 3
_UNSIGNED, _SIGNED, _FLOAT = (1,), (2,), (3,)
_REDUCED, _TRANSPARENCY_MASK = 1, 4  # bits of NewSubfileType: not pages, but a smaller copy or a mask of one
_MOST_PAGES = 1 << 16

_LITTLE, _BIG = TiffImagePlugin.II, TiffImagePlugin.MM
# libtiff gives numbers in the machine's order, whatever the file's is.
_NATIVE = {
    **dict.fromkeys(("I;16S", "I;16BS"), "I;16NS"),
    **dict.fromkeys(("I;32S", "I;32BS"), "I;32NS"),
    **dict.fromkeys(("F;32F", "F;32BF"), "F;32NF"),
    **dict.fromkeys(("F;64F", "F;64BF"), "F;64NF"),
}


def _add_layouts() -> None:
    """Teach Pillow layouts whose values `true_values` sets right. What it knows stays, except unsigned 32 bits in the wrong order."""
    known = TiffImagePlugin.OPEN_INFO
    for order, mark in ((_LITTLE, ""), (_BIG, "B")):
        sixteen = ("I;16" + mark, "I;16" + mark)
        for photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
            known.setdefault((order, photometric, _UNSIGNED, 1, (12,), ()), ("I;16", "I;12"))
            known.setdefault((order, photometric, _UNSIGNED, 1, (16,), ()), sixteen)
            known.setdefault((order, photometric, _SIGNED, 1, (16,), ()), ("I", f"I;16{mark}S"))
            known[order, photometric, _UNSIGNED, 1, (32,), ()] = ("I", f"I;32{mark}S")
            known.setdefault((order, photometric, _SIGNED, 1, (32,), ()), ("I", f"I;32{mark}S"))
            known.setdefault((order, photometric, _FLOAT, 1, (32,), ()), ("F", f"F;32{mark}F"))
            known.setdefault((order, photometric, _FLOAT, 1, (64,), ()), ("F", f"F;64{mark}F"))
            for alpha in ((), (0,), (2,)):  # four bytes a pixel, whatever they mean
                known.setdefault((order, photometric, _UNSIGNED, 1, (16, 16), alpha), ("RGBA", "RGBA"))
        known.setdefault((order, _PALETTE, _UNSIGNED, 1, (16,), ()), sixteen)


_add_layouts()


def unsupported(kind: str) -> DecodeError:
    """The error for a TIFF that is whole, and of a kind that is not decoded."""
    return DecodeError(f"TIFF files of this kind are not decoded: {kind}; convert it", code="unsupported_image")


def prepare(image: Image.Image) -> None:
    """Set right how an opened TIFF's bytes will be unpacked, before it is loaded. Raises DecodeError (`unsupported_image`)."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    bits, is_planar = _bits(image), image.tag_v2.get(284, 1) == 2 and len(_bits(image)) > 1
    if is_planar and max(bits) > 8 and (image.mode not in ("RGB", "RGBA") or len(bits) < 3):
        raise unsupported(f"{len(bits)} planes of {max(bits)} bits")
    for number, tile in enumerate(image.tile):
        rawmode, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name == "libtiff":
            rawmode = _NATIVE.get(rawmode, rawmode)
        elif is_planar and max(bits) > 8:
            if rawmode not in ("R", "G", "B", "A"):
                raise unsupported(f"a plane {rawmode} of {max(bits)} bits")
            rawmode += ";16B" if image.tag_v2.prefix == _BIG else ";16L"
        image.tile[number] = tile._replace(args=(rawmode, *rest))


def true_values(image: Image.Image) -> Image.Image:
    """A loaded TIFF with the values that its layout means: black is low, palettes are colours, and 12 bits fill 16.

    Pictures of up to 8 bits, and of colours in 16, are right as they are.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return image
    bits, photometric = _bits(image), image.tag_v2.get(_PHOTOMETRIC)
    if bits == (16, 16):
        return _grey_with_alpha(image, photometric)
    if image.mode.startswith("I;16"):
        return _sixteen_bits(np.asarray(image).astype(np.uint16), bits, photometric, image.tag_v2.get(_COLOR_MAP, ()))
    if image.mode not in ("I", "F"):
        return image
    values = np.asarray(image)
    if bits == (32,) and image.mode == "I" and image.tag_v2.get(_SAMPLE_FORMAT, _UNSIGNED)[0] == 1:
        values = values.view(np.uint32)
    if photometric != _WHITE_IS_ZERO and values.dtype != np.uint32:
        return image
    signed = values.astype(np.float32)
    return Image.fromarray(-signed if photometric == _WHITE_IS_ZERO else signed)


def _sixteen_bits(values: np.ndarray, bits: tuple[int, ...], photometric: object, colors: tuple[int, ...]) -> Image.Image:
    if photometric == _PALETTE:
        if len(colors) != 3 << 16:
            raise ValueError(f"a palette of 16 bits has 65536 colours, found {len(colors) // 3}")
        table = (np.asarray(colors, dtype=np.uint32).reshape(3, -1).T + 128) // 257
        return Image.fromarray(table.astype(np.uint8)[values])
    if bits == (12,):
        values = ((values.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    return Image.fromarray(np.uint16(65535) - values if photometric == _WHITE_IS_ZERO else values)


def _grey_with_alpha(image: TiffImagePlugin.TiffImageFile, photometric: object) -> Image.Image:
    order = "<u2" if image.info.get("compression", "raw") != "raw" or image.tag_v2.prefix == _LITTLE else ">u2"
    values = np.frombuffer(image.tobytes(), dtype=order).reshape(image.height, image.width, 2).astype(np.uint32)
    grey, alpha = (((channel + 128) // 257).astype(np.uint8) for channel in (values[..., 0], values[..., 1]))
    if photometric == _WHITE_IS_ZERO:
        grey = np.uint8(255) - grey
    has_alpha = image.tag_v2.get(338, (0,)) == (2,)
    return Image.fromarray(np.stack([grey, alpha], axis=-1)) if has_alpha else Image.fromarray(grey)


def _bits(image: TiffImagePlugin.TiffImageFile) -> tuple[int, ...]:
    bits = image.tag_v2.get(_BITS, (1,))
    samples = int(image.tag_v2.get(_SAMPLES, 1))
    return tuple(bits) * samples if len(bits) == 1 else tuple(bits)[:samples]


def num_pages(data: bytes) -> int:
    """How many pages a TIFF has, smaller copies and masks of pages left out; at least 1."""
    pages = sum(not tags.get(_NEW_SUBFILE_TYPE, 0) & (_REDUCED | _TRANSPARENCY_MASK) for tags in _directories(data))
    return max(1, pages)


def layout(data: bytes) -> str | None:
    """What the first page of a TIFF says of its layout, in words; None when that cannot be read."""
    tags = next(_directories(data), {})
    if not (tags.get(_WIDTH) and tags.get(_HEIGHT) and _PHOTOMETRIC in tags):
        return None
    samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, 1)
    return f"{samples} samples of {bits} bits, photometric {tags[_PHOTOMETRIC]}, compression {tags.get(_COMPRESSION, 1)}"


def _directories(data: bytes) -> Iterator[dict[int, int]]:
    """Tag -> first value, for tags of whole numbers, of each directory in turn; ends where the file breaks off or turns in a circle."""
    order = "<" if data[:1] == b"I" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    position, count, size, offset = (8, "Q", 20, "Q") if is_big else (4, "H", 12, "I")
    seen: set[int] = set()
    try:
        (start,) = struct.unpack_from(order + offset, data, position)
        while start and start not in seen and len(seen) < _MOST_PAGES:
            seen.add(start)
            (entries,) = struct.unpack_from(order + count, data, start)
            first = start + struct.calcsize("=" + count)
            if first + entries * size > len(data):
                return
            yield dict(_entry(data, first + number * size, order, is_big) for number in range(min(entries, 1 << 10)))
            (start,) = struct.unpack_from(order + offset, data, first + entries * size)
    except struct.error:
        return


def _entry(data: bytes, place: int, order: str, is_big: bool) -> tuple[int, int]:
    tag, kind, count = struct.unpack_from(order + ("HHQ" if is_big else "HHI"), data, place)
    letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
    if letter is None or not count:
        return tag, 0
    at, room, pointer = (place + 12, 8, "Q") if is_big else (place + 8, 4, "I")
    if struct.calcsize("=" + letter) * count > room:
        (at,) = struct.unpack_from(order + pointer, data, at)
    return tag, int(struct.unpack_from(order + letter, data, at)[0])
