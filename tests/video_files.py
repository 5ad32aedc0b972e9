"""Small video files made with PyAV. In most of them every frame shows its own number, so that a test can tell which ones came."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from datagen.decode.video import read_frames
from datagen.job import DecodeOptions
from datagen.spans import DecodedFrame

# The quickest way of every encoder, quiet, on one thread.
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "18"},
    "libx265": {"preset": "ultrafast", "crf": "18", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "20", "svtav1-params": "lp=1"},
}
SIZE = 64  # of a frame as the model would get it
_NUM_BITS = 8


def numbered(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame that shows `index` (0..255) as eight bars, black or white, the lowest bit on the left; (height, width, 3) uint8."""
    bits = (index >> np.arange(_NUM_BITS)) & 1
    row = bits[np.arange(width) * _NUM_BITS // width] * 255
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(pixels: np.ndarray) -> int:
    """The number that a frame shows, whatever its size and for all that a codec did to it."""
    height, width = pixels.shape[:2]
    middles = (np.arange(_NUM_BITS) * 2 + 1) * width // (2 * _NUM_BITS)
    row = pixels[height // 4 : -(height // 4), middles].mean(axis=(0, 2))
    return int(((row > 127) << np.arange(_NUM_BITS)).sum())


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    *,
    fps: int = 10,
    times_ms: Sequence[int] | None = None,
    pix_fmt: str = "yuv420p",
    turn: tuple[int, bool] = (0, False),
    gop: int = 12,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    container_format: str | None = None,
) -> Path:
    """Encode (H, W, 3) uint8 RGB frames, `fps` a second or at `times_ms`; the container is the one of the suffix, or as named.

    turn: how the frames are to be turned for display: degrees clockwise, then whether mirrored left to right.
    """
    frames = list(frames)
    base = Fraction(1, fps if times_ms is None else 1000)
    times = range(len(frames)) if times_ms is None else times_ms
    with av.open(str(path), "w", format=container_format, options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=fps, options={**ENCODERS.get(codec, {}), **(options or {})})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, base
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.codec_context.thread_count = 1
        if turn != (0, False):
            stream.set_display_rotation(-turn[0], hflip=turn[1])
        _encode(container, stream, frames, times, base)
    if codec == "libsvtav1":  # as root it makes this process a real-time one, before which all others, its own children too, wait
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def _encode(container: OutputContainer, stream: VideoStream, frames: list[np.ndarray], times: Sequence[int], base: Fraction) -> None:
    for pixels, time in zip(frames, times, strict=True):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = time, base
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_audio(path: Path, seconds: float = 0.5, **muxer: Any) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w", **muxer) as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(round(seconds * 16000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, index * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def clip(folder: Path, count: int = 24, name: str = "clip.mp4", codec: str = "libx264", **options: Any) -> Path:
    """A file of `count` numbered frames."""
    return write_video(folder / name, [numbered(index) for index in range(count)], codec, **options)


def frames_of(path: Path, start_s: float = 0.0, end_s: float | None = None, **options: Any) -> list[DecodedFrame]:
    """The sampled frames of a part, read in this process."""
    return list(read_frames(str(path), DecodeOptions(**options), SIZE, start_s, end_s))


def numbers(frames: Iterable[DecodedFrame]) -> list[int]:
    """What the frames show."""
    return [number_of(frame.pixels) for frame in frames]
