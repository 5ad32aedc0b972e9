"""Image bytes to pixels, with Pillow.

What is shown is what is decoded: the first frame or page, turned as EXIF says, transparency over white; how many there are is told.
Colour profiles are not applied (nor does the reference). Grey of 12 and 16 bits is scaled to 8; signed or 32-bit integers and floats
declare no white, so their own range, minimum to maximum, becomes 0 to 255.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from datagen.decode.limits import memory_is_short, out_of_memory
from datagen.decode.png import num_png_frames, only_picture
from datagen.decode.signatures import FORMATS, claimed_format, is_cut, webp_pixels
from datagen.decode.tiff import layout, num_pages, prepare, true_values, unsupported
from datagen.errors import DecodeError
from datagen.job import DecodeOptions

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FROM_16_BITS = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


_STRIP_ROWS = 64


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture ready for the model. width and height (px) of the displayed image; pixels (S, S, 3) uint8 RGB, resized to the model's S.

    num_frames: pictures in the file, of which this is the first: frames of an animation, or pages. is_turned: EXIF says that what is
    stored is turned by 90 degrees for display.
    """

    width: int
    height: int
    pixels: np.ndarray
    num_frames: int = 1
    is_turned: bool = False


def decode_image(data: bytes, options: DecodeOptions, image_size: int) -> Decoded:
    """Decode one file's bytes and resize to (image_size, image_size), bicubic, without keeping the aspect: the model's preprocessing.

    Raises DecodeError with code `empty_file`, `not_an_image`, `truncated`, `corrupt`, `unsupported_image` (whole, and of a kind that is
    not decoded), `not_installed` (HEIC without the package that reads it), `bomb` (more than max_pixels, known from the header, before
    any pixel is decoded) or `out_of_memory`.
    """
    if not data:
        raise DecodeError("the file is empty (0 bytes)", code="empty_file")
    try:
        loaded = _loaded(data, options.max_pixels)
        stored, shown = loaded.size, _turned(loaded)
        del loaded
        resized = to_rgb(shown).resize((image_size, image_size), Image.Resampling.BICUBIC)
    except MemoryError as error:
        raise out_of_memory(options) from error
    is_turned = shown.size != stored or _is_turned_by_pillow(data, options.max_pixels)
    return Decoded(shown.width, shown.height, np.asarray(resized), num_frames(data, options.max_pixels), is_turned)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any of Pillow's modes as 8-bit RGB (see the module's docstring)."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_FROM_16_BITS[np.asarray(image)])
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_stretched(np.asarray(image)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Pillow converts premultiplied grey only to grey with alpha.
    return over_white((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))


def displayed(data: bytes, max_pixels: int, *, turned: bool = True) -> Image.Image:
    """A file's picture at its own size, in the mode that it has. turned: as EXIF says. Raises DecodeError as decode_image does."""
    if not data:
        raise DecodeError("the file is empty (0 bytes)", code="empty_file")
    try:
        image = _loaded(data, max_pixels)
        return _turned(image) if turned else image
    except MemoryError as error:
        message = "decoding needs more memory than there is; lower decode.max_pixels to refuse such files"
        raise DecodeError(message, code="out_of_memory") from error


def over_white(image: Image.Image) -> Image.Image:
    """An RGBA picture over white, RGB."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _loaded(data: bytes, max_pixels: int) -> Image.Image:
    image: Image.Image | None = None
    with _pixel_limit(max_pixels):
        try:
            image = _opened(data)
            prepare(image)
            image.load()
            image = true_values(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            message = f"the header announces more than decode.max_pixels ({max_pixels}); raise it if the file is honest ({error})"
            raise DecodeError(message, code="bomb") from error
        except MemoryError:
            raise
        except Exception as error:
            # Some codecs call it damage when they get no memory.
            if memory_is_short(webp_pixels(data) if image is None else image.width * image.height):
                raise MemoryError from error
            # Pillow's plug-ins raise nearly every kind of exception when the bytes are wrong.
            raise _broken(data, error) from error
    if image.format in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for Adobe's, which store inverted ink; without the marker it is not.
        return ImageChops.invert(image)
    return image


def _opened(data: bytes) -> Image.Image:
    """The picture before it is loaded, by the reader of the format that its first bytes claim alone."""
    claimed = claimed_format(data)
    if claimed == "HEIF":
        _register_heif()
    if claimed == "PNG":
        data = only_picture(data)
    return Image.open(io.BytesIO(data), formats=[claimed] if claimed else [])


def num_frames(data: bytes, max_pixels: int) -> int:
    """Pictures in the file: frames of an animation or pages, at least 1. Where the further ones are damaged, 1."""
    match claimed_format(data):
        case "PNG":
            return num_png_frames(data)
        case "TIFF":
            return num_pages(data)
        case "GIF" | "WEBP" | "AVIF" | "HEIF":
            with _pixel_limit(max_pixels):
                try:
                    return max(1, int(getattr(_opened(data), "n_frames", 1)))
                except MemoryError:
                    raise
                except Exception:  # noqa: BLE001 (the first picture is whole, and is all that is used)
                    return 1
    return 1


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise DecodeError(
            "this is a HEIC picture, and pillow-heif, which reads them, is not installed: `pip install pillow-heif` on every machine "
            "that decodes (the extra `heif` of datagen), then run again with run.retry_failed",
            code="not_installed",
        ) from error
    register_heif_opener(thumbnails=False)


def _broken(data: bytes, error: Exception) -> DecodeError:
    if isinstance(error, DecodeError):
        return error
    claimed = claimed_format(data)
    if claimed is None:
        return DecodeError(f"the content is no {', '.join(FORMATS)} image; it starts with {data[:16]!r}", code="not_an_image")
    detail = (
        "its header cannot be read or is of a rare kind"
        if isinstance(error, UnidentifiedImageError)
        else f"{type(error).__name__}: {error}"
    )
    if is_cut(data, str(error)):
        return DecodeError(f"the {claimed} file ends too early, after {len(data)} bytes ({detail})", code="truncated")
    if isinstance(error, UnidentifiedImageError) and claimed == "TIFF" and (kind := layout(data)):
        return unsupported(kind)
    return DecodeError(f"the {claimed} data is damaged ({detail})", code="corrupt")


@contextmanager
def _pixel_limit(max_pixels: int) -> Iterator[None]:
    """Pillow's own check against bombs, which it makes on every header, at our limit; its other warnings are noise here."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _turned(image: Image.Image) -> Image.Image:
    # Read after loading: Pillow turns a TIFF itself while loading, and drops the tag.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = image.getexif().get(_ORIENTATION_TAG)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 (a damaged EXIF block says nothing about the orientation; the picture is whole)
            return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _is_turned_by_pillow(data: bytes, max_pixels: int) -> bool:
    """Whether this is a TIFF whose sides change places while it is loaded."""
    if claimed_format(data) != "TIFF":
        return False
    with _pixel_limit(max_pixels):
        tags = getattr(_opened(data), "tag_v2", {})
    return tags.get(_ORIENTATION_TAG) in (5, 6, 7, 8)


def _stretched(values: np.ndarray) -> np.ndarray:
    """The finite range of `values` (H, W) spread over 0..255, uint8; NaN and a picture of one value become 0."""
    strips = [values[top : top + _STRIP_ROWS] for top in range(0, len(values), _STRIP_ROWS)]  # whole, it would take ten times the picture
    ranges = [(strip[kept].min(), strip[kept].max()) for strip in strips if (kept := np.isfinite(strip)).any()]
    low, high = float(min(low for low, _ in ranges)) if ranges else 0.0, float(max(high for _, high in ranges)) if ranges else 0.0
    stretched = np.zeros(values.shape, dtype=np.uint8)
    if high > low:
        for top, strip in zip(range(0, len(values), _STRIP_ROWS), strips, strict=True):
            scaled = (np.clip(strip.astype(np.float64), low, high) - low) / (high - low) * 255
            stretched[top : top + _STRIP_ROWS] = np.nan_to_num(np.round(scaled)).astype(np.uint8)
    return stretched
