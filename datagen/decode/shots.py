"""A video's clips: cut where the shot changes (PySceneDetect), and at a maximum length.

The spans are a function of the file and the options. They cover the video without gap or overlap, and each clip looks at no
frame before its start, so the list can be continued from any of its ends: after a crash nothing earlier is decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from datagen.decode.footage import Footage
from datagen.decode.timetable import TOLERANCE_S
from datagen.decode.video import VideoFile
from datagen.job import DecodeOptions
from datagen.spans import ClipSpan

_WIDTH_PX = 256
_MICROSECOND = Fraction(1, 1_000_000)


def cut_clips(
    path: str,
    options: DecodeOptions,
    start_s: float = 0.0,
    clip_index: int = 0,
    shot_start_s: float | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Iterator[ClipSpan]:
    """The clips of a video from `start_s` on, which is an earlier span's end (number `clip_index` begins there) or 0.

    shot_start_s: where the shot of the first of them began; None: where it begins itself. Lazy. Raises DecodeError as VideoFile does.
    """
    with VideoFile(path, options, alive) as video:
        yield from clips_of(video, options, start_s, clip_index, shot_start_s)


def clips_of(
    video: Footage, options: DecodeOptions, start_s: float = 0.0, clip_index: int = 0, shot_start_s: float | None = None
) -> Iterator[ClipSpan]:
    """The same of an open video. A clip is longer than max_clip_s only when a single frame is shown for longer than that.

    With shots a cut comes at the first frame that differs enough from the one before it, at least min_shot_s after the shot's
    start. The length limit starts a clip, but no shot, and a cut may come right there, too. Frames that do not decode are in a clip's
    span all the same.
    """
    shot_start_s = start_s if shot_start_s is None else shot_start_s
    while start_s < video.info.duration_s - TOLERANCE_S or clip_index == 0:  # a video of less than a millisecond is a clip, too
        limit_s = video.timetable.clip_end_s(start_s, options.max_clip_s)
        end_s, is_cut = _shot_end_s(video, options, start_s, limit_s, shot_start_s) if options.shots else (limit_s, False)
        is_last = end_s >= video.info.duration_s - TOLERANCE_S
        end_s = video.info.duration_s if is_last else end_s
        yield ClipSpan(clip_index, start_s, end_s, is_last, ends_shot=is_cut and not is_last)
        start_s, clip_index, shot_start_s = end_s, clip_index + 1, end_s if is_cut else shot_start_s


def _shot_end_s(video: Footage, options: DecodeOptions, start_s: float, limit_s: float, shot_start_s: float) -> tuple[float, bool]:
    """When the part of a shot that begins at `start_s` ends, at most `limit_s`; and whether the shot ends there."""
    differs = _Detector(options, video.info.fps)
    for shown in video.frames(start_s):
        at_end = shown.timestamp_s >= limit_s - TOLERANCE_S
        is_long_enough = shown.timestamp_s >= shot_start_s + options.min_shot_s - TOLERANCE_S
        is_cut = differs(shown.timestamp_s, video.small(shown, _WIDTH_PX)) and is_long_enough
        if at_end or is_cut:
            # The next clip begins with this frame.
            video.push_back(shown)
            return limit_s if at_end else shown.timestamp_s, is_cut
    return limit_s, False


class _Detector:
    """PySceneDetect's content detector over the frames of one clip, with its own decoder and its own shortest shot left out."""

    def __init__(self, options: DecodeOptions, fps: float) -> None:
        from scenedetect.common import FrameTimecode, Timecode
        from scenedetect.detectors import ContentDetector

        self._detector = ContentDetector(options.shot_threshold, min_scene_len=0)
        rate = Fraction(fps).limit_denominator(1_000_000) or Fraction(25)
        self._timecode: Callable[[float], Any] = lambda second: FrameTimecode(Timecode(round(second / _MICROSECOND), _MICROSECOND), rate)

    def __call__(self, timestamp_s: float, picture: np.ndarray) -> bool:
        """Whether this frame differs enough from the one before for a new shot; picture: (H, W, 3) uint8 BGR."""
        return bool(self._detector.process_frame(self._timecode(timestamp_s), picture))
