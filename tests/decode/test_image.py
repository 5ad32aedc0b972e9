import io
import struct
import sys
import time
import zlib

import numpy as np
import pillow_heif
import pytest
from bad_media import BLUE, GREEN, RED, WHITE, bomb, encoded, noise, png_header, quadrants, with_orientation
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datagen.decode.image import Decoded, decode_image, to_rgb
from datagen.decode.png import only_picture
from datagen.decode.signatures import claimed_format
from datagen.errors import DecodeError
from datagen.job import DecodeOptions

OPTIONS = DecodeOptions()
pillow_heif.register_heif_opener()  # to write such files


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


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True}),
        ("AVIF", {"quality": 95}),
        ("HEIF", {"quality": 95}),
    ],
)
def test_plain_formats(image_format, options):
    decoded = decode(encoded(quadrants(), image_format, **options))
    assert (decoded.width, decoded.height) == (64, 48)
    assert decoded.pixels.shape == (32, 32, 3)
    assert_quarters(decoded, RED, GREEN, BLUE, WHITE)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
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
    decoded = decode(data)
    assert_quarters(decoded, RED, GREEN, BLUE, WHITE)
    # The further pictures of a camera's MPO are no frames.
    assert decoded.num_frames == (1 if image_format == "MPO" else 3)


@pytest.mark.parametrize("image_format", ["AVIF", "HEIF"])
def test_frames_of_lossy_animations_are_counted(image_format):
    data = encoded(quadrants(), image_format, save_all=True, append_images=[ImageOps.mirror(quadrants())], quality=95)
    decoded = decode(data)
    assert_quarters(decoded, RED, GREEN, BLUE, WHITE, tolerance=20)
    assert decoded.num_frames == 2


def test_a_picture_for_viewers_without_animations_counts_beside_its_frames():
    frames = [ImageOps.mirror(quadrants()), Image.new("RGB", (64, 48), "black")]
    decoded = decode(encoded(quadrants(), "PNG", save_all=True, append_images=frames, default_image=True))
    assert_quarters(decoded, RED, GREEN, BLUE, WHITE)
    assert decoded.num_frames == 3


def test_damage_behind_the_first_frame_costs_the_count_alone():
    data = encoded(noise(), "GIF", save_all=True, append_images=[ImageOps.mirror(noise())] * 2)
    first = len(encoded(noise(), "GIF"))
    decoded = decode(data[: first + 400] + b"\x07" * 99)
    assert 1 <= decoded.num_frames <= 3


def test_a_heic_picture_stands_upright_and_without_its_reader_says_what_to_install(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(quadrants(), "HEIF", exif=exif.tobytes(), quality=95)
    assert_quarters(decode(data), BLUE, RED, WHITE, GREEN, tolerance=20)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DecodeError, match=r"pip install pillow-heif.*extra `heif`") as refusal:
        decode(data)
    assert refusal.value.code == "not_installed"


@pytest.mark.parametrize(
    ("brands", "claimed"),
    [
        (b"heic\0\0\0\0mif1heic", "HEIF"),
        (b"mif1\0\0\0\0mif1heix", "HEIF"),
        (b"mif1\0\0\0\0mif1avif", "AVIF"),
        (b"avis\0\0\0\0avifmif1", "AVIF"),
        (b"mif1\0\0\0\0mif1miaf", "HEIF"),
        (b"isom\0\0\0\0isomavc1", None),
    ],
)
def test_files_of_boxes_are_known_by_their_brands(brands, claimed):
    assert claimed_format(struct.pack(">I4s", 8 + len(brands), b"ftyp") + brands + bytes(99)) == claimed


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


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "HEIF"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_cut_files_are_truncated(image_format, share):
    data = encoded(noise(), image_format)
    assert code_of(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("length", [3, 20, 100, 600])
def test_a_jpeg_cut_in_its_header_is_truncated(length):
    assert code_of(encoded(noise(), "JPEG")[:length]) == "truncated"


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


CODES = {"not_an_image", "truncated", "corrupt", "unsupported_image", "bomb", "out_of_memory"}
VALID = [encoded(quadrants(24, 16), f) for f in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000", "AVIF", "HEIF")]


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


def chunk(kind: bytes, body: bytes, *, damage: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damage)


def with_chunks(*chunks: bytes, image: Image.Image | None = None) -> bytes:
    png = encoded(image or quadrants(), "PNG")
    return png[:33] + b"".join(chunks) + png[33:]


PACKED = zlib.compress(b"x" * 2_000_000)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"workflow\0\0" + PACKED)],
        [chunk(b"iTXt", b"workflow\0\1\0\0\0" + PACKED)],
        [chunk(b"tEXt", b"workflow\0" + b"x" * 3_000_000)],
        [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + PACKED)],
        [chunk(b"zTXt", b"Raw profile type exif\0\0" + PACKED)],
        [chunk(b"zTXt", b"Raw profile type exif\0\0no zlib")],
        [chunk(b"iCCP", b"p\0\0" + PACKED)],
        [chunk(b"zTXt", b"k%d\0\0" % number + zlib.compress(b"y" * 1_000_000)) for number in range(70)],
        [chunk(b"tEXt", b"Comment\0hello", damage=1)],
        [chunk(b"eXIf", b"II*\0", damage=1)],
        [chunk(b"tRNS", b"\0\0\0\0\0\0", damage=1)],
        [chunk(b"acTL", b"\0"), chunk(b"fcTL", b"\0\0\0\7" * 3)],
        [chunk(b"gAMA", b""), chunk(b"cHRM", b"\1"), chunk(b"pHYs", b"\1"), chunk(b"sBIT", b""), chunk(b"zTXt", b"a\0\7")],
    ],
)
def test_what_is_not_the_picture_never_costs_a_png(chunks):
    assert_quarters(decode(with_chunks(*chunks)), RED, GREEN, BLUE, WHITE)


def test_a_png_keeps_its_orientation_wherever_it_stands():
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    profile = b"\nexif\n%8d\n" % len(raw) + raw.hex().encode() + b"\n"
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    for stated in (
        chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")),
        chunk(b"tEXt", b"Raw profile type exif\0" + profile),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        assert_quarters(decode(with_chunks(stated)), BLUE, RED, WHITE, GREEN)


@pytest.mark.parametrize("where", ["body", "checksum"])
def test_damage_of_the_picture_itself_still_fails(where):
    png = bytearray(encoded(noise(), "PNG"))
    length = struct.unpack_from(">I", png, 33)[0]
    assert png[37:41] == b"IDAT"
    place = 41 + length // 2 if where == "body" else 41 + length
    png[place] ^= 1
    assert code_of(bytes(png)) == "corrupt"


def test_a_png_is_left_as_it_is_from_where_it_breaks_off():
    png = encoded(noise(), "PNG")
    for size in (8, 20, 33, 50, len(png) // 2, len(png) - 5):
        assert only_picture(png[:size]) == png[:size]
    assert only_picture(png + b"more") == png + b"more"
