"""Videos that are pictures one after another: a folder of numbered ones, and an animated WebP. Each is decoded as a picture is.

A folder's frames follow one another at decode.frames_fps; times are not kept in it. The frame numbers count its pictures, in the order of
the numbers in their names. Runs in the decoding child, as video.py does.
"""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
from PIL import Image

from datagen.decode.files import checksum, read_file
from datagen.decode.footage import Footage, Shown
from datagen.decode.image import displayed, to_rgb
from datagen.decode.timetable import Timetable
from datagen.errors import DecodeError
from datagen.frame_names import in_order, same_frame
from datagen.job import DecodeOptions
from datagen.spans import VideoInfo

_MILLISECOND = Fraction(1, 1000)
# As browsers do: a picture that asks for less would not be seen.
_SHORTEST_MS, _INSTEAD_MS = 11, 100


class Pictures(Footage):
    """Frames that can be decoded one by one, in any order."""

    def __init__(self, options: DecodeOptions, timetable: Timetable, alive: Callable[[], None]) -> None:
        super().__init__(options)
        self.timetable = timetable
        self._alive = alive
        self._ahead: Shown | None = None
        self._format = ""
        first = self._first()
        num_frames, duration_s = len(timetable.times), timetable.duration_s
        self.info = VideoInfo(*first.size, num_frames / duration_s, duration_s, num_frames, 0, self._format, truncated=False)

    @abstractmethod
    def _picture(self, index: int) -> Image.Image:
        """A frame as it is displayed. Raises DecodeError for one that does not decode."""

    def close(self) -> None:
        """See Footage."""

    def frames_from(self, index: int) -> Iterator[Shown]:
        """See Footage."""
        ahead, self._ahead = self._ahead, None
        while index < len(self.timetable.times):
            self._alive()
            if ahead is not None and ahead.frame_index == index:
                yield ahead
            else:
                try:
                    picture = self._picture(index)
                except DecodeError:
                    self.num_corrupt += 1
                else:
                    yield Shown(index, self.timetable.second_of(index), picture)
            index += 1

    def push_back(self, shown: Shown) -> None:
        """See Footage."""
        self._ahead = shown

    def image(self, shown: Shown) -> Image.Image:
        """See Footage."""
        return to_rgb(shown.picture)

    def small(self, shown: Shown, width: int) -> np.ndarray:
        """See Footage."""
        image = to_rgb(shown.picture)
        resized = image.resize(self._small_size(image.size, width), Image.Resampling.BOX)
        return np.asarray(resized, dtype=np.uint8)[:, :, ::-1]

    def _first(self) -> Image.Image:
        error: DecodeError | None = None
        for index in range(len(self.timetable.times)):
            self._alive()
            try:
                return self._picture(index)
            except DecodeError as failed:
                error = error or failed
        if error is None:
            raise DecodeError("it holds no frame", code="no_frames")
        raise DecodeError(f"none of its {len(self.timetable.times)} frames can be decoded: the first: {error.message}", code=error.code)


class FrameFolder(Pictures):
    """A folder of numbered pictures. Raises DecodeError: `missing_file`, `unreadable`, `no_frames`, `frame_twice`, and the codes of
    decode_image.
    """

    def __init__(self, path: str, options: DecodeOptions, alive: Callable[[], None] = lambda: None) -> None:
        names = in_order(_names(path))
        if (pair := same_frame(names)) is not None:
            advice = "keep one of them; masks belong into a folder of their own"
            raise DecodeError(f"{pair[0]!r} and {pair[1]!r} are one frame by their names: {advice}", code="frame_twice")
        self._files = [os.path.join(path, name) for name in names]
        if not self._files:
            raise DecodeError(f"{path!r} holds no pictures, so it is no folder of frames", code="no_frames")
        base = 1 / Fraction(options.frames_fps).limit_denominator(100_000)
        super().__init__(options, Timetable(range(len(self._files)), len(self._files), base), alive)

    def _picture(self, index: int) -> Image.Image:
        path = self._files[index]
        self._format = self._format or os.path.splitext(path)[1].lower().removeprefix(".")
        try:
            return displayed(read_file(path, self._options.max_pixels), self._options.max_pixels)
        except DecodeError as error:
            raise DecodeError(f"{os.path.basename(path)!r}: {error.message}", code=error.code) from error


class AnimatedWebp(Pictures):
    """An animated WebP; a still one is a video of one frame. Raises DecodeError with the codes of decode_image."""

    def __init__(self, path: str, options: DecodeOptions, alive: Callable[[], None] = lambda: None) -> None:
        data = read_file(path, options.max_pixels)
        self._image = displayed(data, options.max_pixels, turned=False)
        times, end = array("q"), 0
        for shown_for_ms in _durations_ms(data):
            times.append(end)
            end += shown_for_ms if shown_for_ms >= _SHORTEST_MS else _INSTEAD_MS
        super().__init__(options, Timetable(times, end, _MILLISECOND), alive)

    def _picture(self, index: int) -> Image.Image:
        self._format = "webp"
        try:
            self._image.seek(index)
            return self._image.copy()
        except Exception as error:  # Pillow raises nearly every kind of exception when the bytes are wrong
            raise DecodeError(f"frame {index} of the WebP data is damaged ({type(error).__name__}: {error})", code="corrupt") from error


def is_webp(path: str) -> bool:
    """Whether a file's first bytes are a WebP's. Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def _durations_ms(data: bytes) -> list[int]:
    """How long each frame of an animated WebP is shown; of a still one, no time for its only frame."""
    found, position = [], 12
    while position + 8 <= len(data):
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if kind == b"ANMF" and length >= 16:
            found.append(int.from_bytes(data[position + 20 : position + 23], "little"))
        position += 8 + length + length % 2
    return found or [0]


def checksum_of_folder(path: str, alive: Callable[[], None]) -> tuple[int, str]:
    """Size of all frames, bytes, and the SHA-256 (hex) over theirs, in order, one hexadecimal line each. Raises DecodeError."""
    size, digest = 0, hashlib.sha256()
    for name in in_order(_names(path)):
        num_bytes, sha256 = checksum(os.path.join(path, name), alive)
        size += num_bytes
        digest.update(f"{sha256}\n".encode())
    return size, digest.hexdigest()


def check_folder(path: str) -> os.stat_result:
    """Raises DecodeError with code `missing_file` or `unreadable` for what is no folder that can be read."""
    _names(path)
    return os.stat(path)


def _names(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DecodeError(f"there is no folder {path!r}", code="missing_file") from error
    except OSError as error:
        raise DecodeError(f"{path!r} cannot be read: {error.strerror}", code="unreadable") from error
