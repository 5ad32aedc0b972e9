import io
import struct
import time

import numpy as np
import pytest
from bad_media import BLUE, GREEN, RED, WHITE, bomb, encoded, noise, png_header, quadrants, with_orientation
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datagen.decode.image import Decoded, decode_image, to_rgb
from datagen.errors import DecodeError
from datagen.job import DecodeOptions

OPTIONS = DecodeOptions()


def decode(data: bytes, image_size: int = 32, **options) -> Decoded:
    return decode_image(data, DecodeOptions(**options), image_size)


def code_of(data: bytes, **options) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data, **options)
    assert len(caught.value.message) > 20
    return caught.value.code


def quarters(decoded: Decoded) -> np.ndarray:
    """Colours at the middle of the four quarters: top left, top right, bottom left, bottom right; (4, 3) int."""
    near, far = decoded.pixels.shape[0] // 4, 3 * decoded.pixels.shape[0] // 4
    return decoded.pixels[[near, near, far, far], [near, far, near, far]].astype(int)


def assert_quarters(decoded: Decoded, *colours: tuple[int, int, int], tolerance: int = 6) -> None:
    np.testing.assert_allclose(quarters(decoded), colours, atol=tolerance)


@pytest.mark.parametrize("index", range(3))
def test_golden_images_are_resized_as_the_reference_does(request, index):
    path = request.config.rootpath / f"tests/golden/images/image_{index}.png"
    expected = np.asarray(Image.open(path).convert("RGB").resize((1024, 1024)))
    decoded = decode(path.read_bytes(), image_size=1024)
    assert decoded.pixels.dtype == np.uint8
    np.testing.assert_array_equal(decoded.pixels, expected)


@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_plain_formats(image_format, options):
    decoded = decode(encoded(quadrants(), image_format, **options))
    assert (decoded.width, decoded.height) == (64, 48)
    assert decoded.pixels.shape == (32, 32, 3)
    assert_quarters(decoded, RED, GREEN, BLUE, WHITE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation, image_format):
    data = with_orientation(quadrants(), orientation, image_format)
    decoded = decode(data)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (decoded.width, decoded.height) == ((48, 64) if orientation >= 5 else (64, 48))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(shown.convert("RGB").resize((32, 32))))


def test_rotated_picture_stands_upright():
    assert_quarters(decode(with_orientation(quadrants(), 6)), BLUE, RED, WHITE, GREEN)


def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(quadrants(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x07" * 30)
    assert_quarters(decode(data), RED, GREEN, BLUE, WHITE)


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    length = struct.unpack_from(">H", jpeg, start + 2)[0]
    return jpeg[:start] + jpeg[start + 2 + length :]


def test_cmyk_jpeg_with_adobes_inverted_ink_and_without():
    adobe = encoded(quadrants().convert("CMYK"), "JPEG")
    assert_quarters(decode(adobe), RED, GREEN, BLUE, WHITE)
    plain = without_adobe_marker(encoded(quadrants().convert("CMYK").point(lambda ink: 255 - ink), "JPEG"))
    assert_quarters(decode(plain), RED, GREEN, BLUE, WHITE)


def test_cmyk_tiff():
    assert_quarters(decode(encoded(quadrants().convert("CMYK"), "TIFF")), RED, GREEN, BLUE, WHITE)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(image_format):
    levels = np.repeat(np.array([[0, 257, 32768, 65535]], dtype=np.uint16), 4, axis=0)
    decoded = decode(encoded(Image.fromarray(levels), image_format), image_size=4)
    np.testing.assert_array_equal(decoded.pixels[0], [[0] * 3, [1] * 3, [128] * 3, [255] * 3])


@pytest.mark.parametrize("values", [np.array([[-5.0, 0.0], [5.0, np.nan]], np.float32), np.array([[-500, 0], [500, -500]], np.int32)])
def test_numbers_without_a_declared_white_are_stretched(values):
    decoded = decode(encoded(Image.fromarray(values), "TIFF"), image_size=2)
    np.testing.assert_array_equal(decoded.pixels[..., 0], [[0, 128], [255, 0]])


def test_a_float_picture_of_one_value_is_black():
    decoded = decode(encoded(Image.fromarray(np.full((8, 8), 7.5, np.float32)), "TIFF"))
    assert not decoded.pixels.any()


def test_palette_and_one_bit():
    assert_quarters(decode(encoded(quadrants().quantize(4), "PNG")), RED, GREEN, BLUE, WHITE)
    assert_quarters(decode(encoded(quadrants().quantize(4), "GIF")), RED, GREEN, BLUE, WHITE)
    half = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).resize((8, 8), Image.Resampling.NEAREST).convert("1")
    assert_quarters(decode(encoded(half, "PNG")), (0, 0, 0), WHITE, WHITE, (0, 0, 0))


def half_transparent(mode: str) -> Image.Image:
    image = quadrants().convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, image.width // 2, image.height))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_over_white(image_format):
    data = encoded(half_transparent("RGBA"), image_format, **({"lossless": True} if image_format == "WEBP" else {}))
    assert_quarters(decode(data), WHITE, GREEN, WHITE, WHITE)


def test_grey_with_alpha_and_transparent_palette_and_colour_key():
    grey = quarters(decode(encoded(half_transparent("LA"), "PNG")))
    assert grey[0].tolist() == [255] * 3
    assert abs(grey[1] - 119).max() < 6
    palette = quadrants().quantize(4)
    red = palette.getpixel((0, 0))
    assert_quarters(decode(encoded(palette, "PNG", transparency=red)), WHITE, GREEN, BLUE, WHITE)
    assert_quarters(decode(encoded(palette, "GIF", transparency=red)), WHITE, GREEN, BLUE, WHITE)
    assert_quarters(decode(encoded(quadrants(), "PNG", transparency=RED)), WHITE, GREEN, BLUE, WHITE)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_taken(image_format):
    frames = [ImageOps.mirror(quadrants()), Image.new("RGB", (64, 48), "black")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(quadrants(), image_format, save_all=True, append_images=frames, **options)
    assert_quarters(decode(data), RED, GREEN, BLUE, WHITE)


@pytest.mark.parametrize("size", [(1600, 40), (40, 1600), (1, 1), (1, 900)])
def test_odd_sizes(size):
    decoded = decode(encoded(quadrants(2, 2).resize(size), "PNG"))
    assert (decoded.width, decoded.height) == size
    assert decoded.pixels.shape == (32, 32, 3)


def test_a_very_large_picture():
    data = encoded(quadrants().resize((12_000, 9_000), Image.Resampling.NEAREST), "JPEG")
    decoded = decode(data)
    assert (decoded.width, decoded.height) == (12_000, 9_000)
    assert_quarters(decoded, RED, GREEN, BLUE, WHITE)


def test_a_bomb_is_refused_by_its_header():
    start = time.monotonic()
    assert code_of(bomb()) == "bomb"
    assert time.monotonic() - start < 1


def test_the_pixel_limit_is_exact_and_ours_alone():
    before = Image.MAX_IMAGE_PIXELS
    picture = encoded(quadrants(64, 48), "PNG")
    assert decode(picture, max_pixels=64 * 48).width == 64
    assert code_of(picture, max_pixels=64 * 48 - 1) == "bomb"
    assert code_of(picture, max_pixels=1) == "bomb"
    assert before == Image.MAX_IMAGE_PIXELS


def test_empty_and_foreign_content():
    assert code_of(b"") == "empty_file"
    assert code_of(b"a letter, not a picture") == "not_an_image"
    assert code_of(b"%PDF-1.7 something") == "not_an_image"
    assert code_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not_an_image"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_cut_files_are_truncated(image_format, share):
    data = encoded(noise(), image_format)
    assert code_of(data[: int(len(data) * share)]) == "truncated"


def test_damage_is_not_truncation():
    junk = bytes(range(256)) * 4
    assert code_of(png_header(64, 48) + junk) == "corrupt"
    assert code_of(b"\x89PNG\r\n\x1a\n" + junk) == "corrupt"
    png = bytearray(encoded(noise(), "PNG"))
    png[2000:2400] = bytes(400)
    assert code_of(bytes(png)) == "corrupt"
    webp = bytearray(encoded(noise(), "WEBP"))
    webp[20:400] = bytes(380)
    assert code_of(bytes(webp)) == "corrupt"


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "La", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
)
def test_every_mode_of_pillow_has_a_way_to_rgb(mode):
    over = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB"}.get(mode, "L")
    rgb = to_rgb(Image.new("L", (4, 4), 255).convert(over).convert(mode))
    assert rgb.mode == "RGB"
    expected = 0 if mode in ("I", "F") else 1 if mode == "I;16" else 255
    np.testing.assert_allclose(np.asarray(rgb), expected, atol=1)


CODES = {"not_an_image", "truncated", "corrupt", "bomb", "out_of_memory"}
VALID = [encoded(quadrants(24, 16), f) for f in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")]


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), max_size=5),
    st.floats(0, 1),
)
@example(VALID[0], [], 0.0)
def test_mutated_files_end_as_a_picture_or_a_decode_error(data, edits, kept):
    mutated = bytearray(data)
    for place, replacement in edits:
        start = int(place * len(mutated))
        mutated[start : start + len(replacement)] = replacement
    cut = mutated[: max(1, int(len(mutated) * max(kept, 0.05)))] if kept < 0.5 else mutated
    outcome = decoded_or_code(bytes(cut))
    assert outcome in CODES or outcome == (8, 8, 3)


def decoded_or_code(data: bytes) -> tuple[int, ...] | str:
    try:
        return decode_image(data, DecodeOptions(max_pixels=10_000_000), 8).pixels.shape
    except DecodeError as error:
        return error.code
