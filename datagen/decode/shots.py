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
from datagen.records import ClipSpan

_WIDTH_PX = 256
_MICROSECOND = Fraction(1, 1_000_000)


def cut_clips(
    path: str, options: DecodeOptions, start_s: float = 0.0, clip_index: int = 0, alive: Callable[[], None] = lambda: None
) -> Iterator[ClipSpan]:
    """The clips of a video from `start_s` on, which is an earlier span's end (number `clip_index` begins there) or 0.

    Lazy. Raises DecodeError as VideoFile does.
    """
    with VideoFile(path, options, alive) as video:
        yield from clips_of(video, options, start_s, clip_index)


def clips_of(video: Footage, options: DecodeOptions, start_s: float = 0.0, clip_index: int = 0) -> Iterator[ClipSpan]:
    """The same of an open video. A clip is longer than max_clip_s only when a single frame is shown for longer than that.

    With shots a cut comes at the first frame that differs enough from the one before it, at least min_shot_s after the clip's
    start; the length limit starts a clip, too. Frames that do not decode are in a clip's span all the same.
    """
    while start_s < video.info.duration_s - TOLERANCE_S:
        limit_s = video.timetable.clip_end_s(start_s, options.max_clip_s)
        end_s = _shot_end_s(video, options, start_s, limit_s) if options.shots else limit_s
        yield ClipSpan(clip_index, start_s, end_s, is_last=end_s >= video.info.duration_s - TOLERANCE_S)
        start_s, clip_index = end_s, clip_index + 1


def _shot_end_s(video: Footage, options: DecodeOptions, start_s: float, limit_s: float) -> float:
    """When the shot that begins at `start_s` ends, at most `limit_s`."""
    differs = _Detector(options, video.info.fps)
    for shown in video.frames(start_s):
        at_end = shown.timestamp_s >= limit_s - TOLERANCE_S
        if at_end or differs(shown.timestamp_s, video.small(shown, _WIDTH_PX)):
            # The next clip begins with this frame.
            video.push_back(shown)
            return limit_s if at_end else shown.timestamp_s
    return limit_s


class _Detector:
    """PySceneDetect's content detector over the frames of one clip, with its own decoder left out."""

    def __init__(self, options: DecodeOptions, fps: float) -> None:
        from scenedetect.common import FrameTimecode, Timecode
        from scenedetect.detector import FlashFilter
        from scenedetect.detectors import ContentDetector

        # Suppressing reports a cut at its frame; merging would report it later, when the next clip has begun.
        suppress = FlashFilter.Mode.SUPPRESS
        self._detector = ContentDetector(options.shot_threshold, options.min_shot_s, filter_mode=suppress)
        rate = Fraction(fps).limit_denominator(1_000_000) or Fraction(25)
        self._timecode: Callable[[float], Any] = lambda second: FrameTimecode(Timecode(round(second / _MICROSECOND), _MICROSECOND), rate)

    def __call__(self, timestamp_s: float, picture: np.ndarray) -> bool:
        """Whether a new shot begins with this frame; picture: (H, W, 3) uint8 BGR."""
        return bool(self._detector.process_frame(self._timecode(timestamp_s), picture))
