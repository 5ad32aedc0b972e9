"""What a video is and which parts of it are read: values that the decoding of videos and the rest say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video is, measured on its packets and its first frame rather than believed from its header.

    width, height: px as displayed, after rotation; non-square pixels are not stretched. rotation: degrees clockwise (0, 90, 180,
    270) that stored frames are turned for display. fps: average, num_frames / duration_s (0.0 when the duration is 0).
    duration_s: from the first frame's appearance to the last one's end. num_frames: frames in the file; damaged ones may not
    decode. codec: FFmpeg's name, such as `h264`. truncated: the file ends before what it announces. pixel_aspect: width of a stored
    pixel over its height.
    """

    width: int
    height: int
    fps: float
    duration_s: float
    num_frames: int
    rotation: int
    codec: str
    truncated: bool
    pixel_aspect: float = 1.0


class DecodedFrame(NamedTuple):
    """One frame as it comes out of a video. frame_index: its number in the whole video, from 0; timestamp_s: when it appears, seconds
    after the video's first frame. pixels: (S, S, 3) uint8 RGB, resized for the model as an image is."""

    frame_index: int
    timestamp_s: float
    pixels: np.ndarray


@dataclass(frozen=True, slots=True)
class ClipSpan:
    """A part of a video, [start_s, end_s) in seconds after its first frame. Both ends lie where a frame begins, or at the video's end.

    ends_shot: the shot changes where it ends, so that nothing of it goes on.
    """

    clip_index: int
    start_s: float
    end_s: float
    is_last: bool = False
    ends_shot: bool = False


@dataclass(frozen=True, slots=True)
class SpanPlan:
    """Which frames of a span will be sampled, known before one is decoded.

    The span holds the frames [first_frame, end_frame) of the video. sampled: (frame_index, timestamp_s) of those that are wanted, in
    order, as in DecodedFrame; a damaged one may not decode.
    """

    first_frame: int
    end_frame: int
    sampled: list[tuple[int, float]]
