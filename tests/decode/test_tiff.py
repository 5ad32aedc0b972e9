"""TIFF files of more than 8 bits show what their values mean, in every order, packing and photometric."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from bad_media import encoded, quadrants
from PIL import Image
from tiff_files import BLACK_IS_ZERO, CMYK, PALETTE, RGB, WHITE_IS_ZERO, tiff

from datagen.decode.image import decode_image
from datagen.decode.tiff import num_pages
from datagen.errors import DecodeError
from datagen.job import DecodeOptions

SIDE = 8
LEVELS = np.array([[0, 2570, 25700, 65535], [32768, 1000, 60000, 51400]], np.uint16).repeat(4, axis=0).repeat(2, axis=1)
ORDERS = [pytest.param(big, packed, id=f"{'big' if big else 'little'}{'-packed' if packed else ''}") for big in (0, 1) for packed in (0, 1)]


def shown(data: bytes) -> np.ndarray:
    """(8, 8, 3) int: what is shown of a picture of 8 x 8."""
    decoded = decode_image(data, DecodeOptions(), SIDE)
    assert (decoded.width, decoded.height, decoded.num_frames) == (SIDE, SIDE, 1)
    return decoded.pixels.astype(int)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.round(values.astype(np.float64) / 257)[..., None], 3, axis=2)


def assert_shown(data: bytes, expected: np.ndarray) -> None:
    np.testing.assert_allclose(shown(data), expected, atol=1)


@pytest.mark.parametrize(("is_big", "is_packed"), ORDERS)
class TestEveryOrder:
    def test_grey(self, is_big, is_packed):
        how = {"is_big": is_big, "is_packed": is_packed}
        assert_shown(tiff(LEVELS, BLACK_IS_ZERO, **how), grey(LEVELS))
        assert_shown(tiff(LEVELS, WHITE_IS_ZERO, **how), grey(65535 - LEVELS))

    def test_twelve_bits(self, is_big, is_packed):
        how = {"is_big": is_big, "is_packed": is_packed, "bits": 12}
        twelve = LEVELS >> 4
        assert_shown(tiff(twelve, BLACK_IS_ZERO, **how), grey(LEVELS))
        assert_shown(tiff(twelve, WHITE_IS_ZERO, **how), grey(65535 - LEVELS))

    @pytest.mark.parametrize(
        "values",
        [
            (LEVELS.astype(np.int32) - 32768).astype(np.int16),
            LEVELS.astype(np.int32) * 30000 - 900_000_000,
            LEVELS.astype(np.uint32) * 65537,
            LEVELS.astype(np.float32) / 65535,
            LEVELS.astype(np.float64) * 3 - 7,
        ],
        ids=lambda values: str(values.dtype),
    )
    def test_numbers_without_a_white_are_stretched_over_their_range(self, is_big, is_packed, values):
        how = {"is_big": is_big, "is_packed": is_packed}
        assert_shown(tiff(values, BLACK_IS_ZERO, **how), grey(LEVELS))
        assert_shown(tiff(values, WHITE_IS_ZERO, **how), grey(65535 - LEVELS))

    def test_palette(self, is_big, is_packed):
        indices = np.arange(65536, dtype=np.uint32)
        colors = np.stack([indices, 65535 - indices, indices // 2], axis=-1).astype(np.uint16)
        expected = np.stack([LEVELS, 65535 - LEVELS, LEVELS // 2], axis=-1) / 257
        assert_shown(tiff(LEVELS, PALETTE, colors=colors, is_big=is_big, is_packed=is_packed), expected)

    @pytest.mark.parametrize("is_planar", [False, True])
    def test_colours(self, is_big, is_packed, is_planar):
        how = {"is_big": is_big, "is_packed": is_packed, "is_planar": is_planar}
        colours = np.stack([LEVELS, 65535 - LEVELS, LEVELS // 2], axis=-1)
        assert_shown(tiff(colours, RGB, **how), colours / 257)
        half = np.concatenate([colours, np.full_like(LEVELS, 32768)[..., None]], axis=-1)
        assert_shown(tiff(half, RGB, extra=[2], **how), (colours / 257 + 255) / 2)

    def test_inks(self, is_big, is_packed):
        inks = np.stack([LEVELS, 65535 - LEVELS, LEVELS // 2, LEVELS // 3], axis=-1)
        expected = (1 - inks[..., :3] / 65535) * (1 - inks[..., 3:] / 65535) * 255
        np.testing.assert_allclose(shown(tiff(inks, CMYK, is_big=is_big, is_packed=is_packed)), expected, atol=2)

    def test_grey_with_alpha(self, is_big, is_packed):
        how = {"is_big": is_big, "is_packed": is_packed}
        half = np.stack([LEVELS, np.full_like(LEVELS, 32768)], axis=-1)
        assert_shown(tiff(half, BLACK_IS_ZERO, extra=[2], **how), (grey(LEVELS) + 255) / 2)
        assert_shown(tiff(half, WHITE_IS_ZERO, extra=[2], **how), (grey(65535 - LEVELS) + 255) / 2)
        assert_shown(tiff(half, BLACK_IS_ZERO, extra=[0], **how), grey(LEVELS))


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.zeros((8, 8, 3), np.float32), RGB),
        tiff(np.zeros((8, 8, 4), np.uint16), CMYK, is_planar=True),
        tiff(np.zeros((8, 8, 2), np.uint16), BLACK_IS_ZERO, extra=[2], is_planar=True),
        tiff(np.zeros((8, 8, 3), np.uint16), 8),
    ],
    ids=["float colours", "planes of ink", "planes of alpha", "lab"],
)
def test_a_kind_that_is_not_decoded_is_not_called_damaged(data):
    with pytest.raises(DecodeError, match="bits") as refusal:
        decode_image(data, DecodeOptions(), SIDE)
    assert refusal.value.code == "unsupported_image"


def test_a_palette_with_too_few_colours_is_damage():
    colors = np.zeros((256, 3), np.uint16)
    with pytest.raises(DecodeError, match="65536") as refusal:
        decode_image(tiff(LEVELS, PALETTE, colors=colors), DecodeOptions(), SIDE)
    assert refusal.value.code == "corrupt"


@pytest.mark.parametrize("big_tiff", [False, True])
def test_pages_are_counted_and_thumbnails_are_none(big_tiff):
    pages = [quadrants() for _ in range(4)]
    for page, kind in zip(pages, (0, 1, 4, 0), strict=True):
        page.encoderinfo = {"tiffinfo": {254: kind}}
    data = encoded(quadrants(), "TIFF", save_all=True, append_images=pages, big_tiff=big_tiff)
    assert Image.open(io.BytesIO(data)).n_frames == 5
    assert decode_image(data, DecodeOptions(), SIDE).num_frames == 3


def test_the_chain_of_pages_may_be_damaged():
    data = encoded(quadrants(), "TIFF", save_all=True, append_images=[quadrants()])
    start = int.from_bytes(data[4:8], "little")
    after = start + 2 + 12 * int.from_bytes(data[start : start + 2], "little")
    for target in (start, len(data) + 99, after):  # a circle, beyond the end, nonsense
        damaged = data[:after] + target.to_bytes(4, "little") + data[after + 4 :]
        assert decode_image(damaged, DecodeOptions(), SIDE).num_frames >= 1
    assert num_pages(data[:after] + start.to_bytes(4, "little") + data[after + 4 :]) == 1


@pytest.mark.parametrize(("orientation", "is_big"), list(itertools.product((1, 6), (False, True))))
def test_sixteen_bits_are_turned_as_exif_says(orientation, is_big):
    picture = Image.fromarray(LEVELS[:, :6].copy())
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(picture, "TIFF", exif=exif), DecodeOptions(), SIDE)
    assert (decoded.width, decoded.height) == ((8, 6) if orientation == 6 else (6, 8))
