"""Every odd-but-legal and every bad picture that a run must survive, with what must become of each.

`make_media(folder)` writes the files, `write_manifest(folder, media)` a manifest of them; both are used from unit tests up to the
end-to-end test. Files that kill or hang the decoder do so through `FAULTS`, the value for the environment variable DATAGEN_FAULTS.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FAULTS_BY_PLACE = {"decode": {"kill_if_uri": "kills-decoder", "hang_if_uri": "hangs-decoder"}}
FAULTS = json.dumps(FAULTS_BY_PLACE)

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 180, 40), (30, 40, 210), (255, 255, 255)


@dataclass(frozen=True)
class Media:
    """One manifest row and its fate. name: the file's name, also when there is no file. size: (width, height) as displayed, px.

    fate: `decoded`, `empty` or `failed`; code: the failure's. step: where it fails (`source`, `decode`, `perceive`).
    """

    name: str
    fate: str
    code: str | None = None
    step: str = "decode"
    size: tuple[int, int] | None = None
    row: dict[str, Any] = field(default_factory=dict)


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green over blue, white: a picture whose orientation and colours can be told from its four quarters."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    top, left = slice(None, height // 2), slice(None, width // 2)
    bottom, right = slice(height // 2, None), slice(width // 2, None)
    pixels[top, left], pixels[top, right], pixels[bottom, left], pixels[bottom, right] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def with_orientation(image: Image.Image, orientation: int, image_format: str = "JPEG") -> bytes:
    """The picture as a file whose EXIF says how to turn it (1..8)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, image_format, exif=exif)


def png_header(width: int, height: int) -> bytes:
    """A PNG's signature and first chunk: 8-bit RGB of the given size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A small PNG that unpacks to far more pixels than allowed."""
    data = zlib.compress(bytes(1 << 20), 9)
    chunk = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return png_header(width, height) + chunk


def noise(width: int = 160, height: int = 120) -> Image.Image:
    """A picture that no format compresses away, so that cutting its file cuts pixels."""
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_media(folder: Path, *, huge: bool = True) -> list[Media]:
    """Write every case into `folder`. huge: also the 12,000 x 9,000 picture, which takes about a second to make."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = [*_legal(), *_bad(), *_bad_prompts()]
    if huge:
        cases.append((Media("huge.jpg", "decoded", size=(12_000, 9_000)), encoded(quadrants().resize((12_000, 9_000)), "JPEG")))
    for media, data in cases:
        if data is not None:
            path = folder / media.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return [media for media, _ in cases]


def write_manifest(folder: Path, media: list[Media], name: str = "manifest.jsonl") -> Path:
    """A JSON-lines manifest of the media, in order, beside the files."""
    path = folder / name
    rows = [media_row.row if "uri" in media_row.row else {"uri": media_row.name, **media_row.row} for media_row in media]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


Case = tuple[Media, bytes | None]


def _legal() -> list[Case]:
    picture = quadrants()
    size = picture.size
    grey16 = Image.fromarray(np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1)))
    return [
        (Media("plain.jpg", "decoded", size=size), encoded(picture, "JPEG")),
        (Media("cmyk.jpg", "decoded", size=size), encoded(picture.convert("CMYK"), "JPEG")),
        (Media("grey16.png", "decoded", size=size), encoded(grey16, "PNG")),
        (Media("palette.png", "decoded", size=size), encoded(picture.quantize(4), "PNG")),
        (Media("palette.gif", "decoded", size=size), encoded(picture.quantize(4), "GIF")),
        (Media("alpha.png", "decoded", size=size), encoded(picture.convert("RGBA"), "PNG")),
        (Media("alpha.webp", "decoded", size=size), encoded(picture.convert("RGBA"), "WEBP", lossless=True)),
        (Media("bits.png", "decoded", size=size), encoded(picture.convert("1"), "PNG")),
        (Media("lzw.tif", "decoded", size=size), encoded(picture, "TIFF", compression="tiff_lzw")),
        (Media("plain.bmp", "decoded", size=size), encoded(picture, "BMP")),
        (Media("rotated.jpg", "decoded", size=(48, 64)), with_orientation(picture, 6)),
        (Media("flat.png", "decoded", size=(1600, 40)), encoded(quadrants(1600, 40), "PNG")),
        (Media("sous dossier/ça été noël.JPG", "decoded", size=size), encoded(picture, "JPEG")),
        (Media("one_pixel.png", "empty", size=(1, 1)), encoded(quadrants(2, 2).resize((1, 1)), "PNG")),
    ]


def _bad() -> list[Case]:
    jpeg, png = encoded(noise(), "JPEG"), encoded(noise(), "PNG")
    return [
        (Media("missing.jpg", "failed", "missing_file"), None),
        (Media("empty.jpg", "failed", "empty_file"), b""),
        (Media("text.jpg", "failed", "not_an_image"), b"this is a letter, not a picture\n" * 9),
        (Media("cut.jpg", "failed", "truncated"), jpeg[: len(jpeg) // 2]),
        (Media("cut.png", "failed", "truncated"), png[: len(png) // 2]),
        (Media("garbage.png", "failed", "corrupt"), png_header(64, 48) + bytes(range(256)) * 4),
        (Media("bomb.png", "failed", "bomb"), bomb()),
        (Media("kills-decoder.png", "failed", "decoder_crashed"), encoded(quadrants(), "PNG")),
        (Media("hangs-decoder.png", "failed", "decode_timeout"), encoded(quadrants(), "PNG")),
        (Media("no uri", "failed", "manifest_no_uri", "source", row={"uri": None}), None),
    ]


def _bad_prompts() -> list[Case]:
    data, size = encoded(quadrants(), "JPEG"), (64, 48)
    boxes = {
        "prompt_outside": [100.0, 100.0, 200.0, 200.0],
        "prompt_inverted": [40.0, 30.0, 10.0, 5.0],
        "prompt_nan": [float("nan"), 1.0, 20.0, 20.0],
    }
    return [
        (Media(f"{code}.jpg", "failed", code, "perceive", size=size, row={"prompts": [{"box": box}]}), data) for code, box in boxes.items()
    ]
