"""What can be asked of a video, whatever it is kept in: a file, an animated picture, or a folder of numbered pictures."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from datagen.decode.timetable import TOLERANCE_S, Timetable
from datagen.job import DecodeOptions
from datagen.spans import DecodedFrame, SpanPlan, VideoInfo

# The last frame of a span is on the screen for at least this long, so that a video of less than a millisecond has a sampled one.
_SHORTEST_S = 2.5 * TOLERANCE_S


@dataclass(frozen=True, slots=True)
class Shown:
    """A decoded frame, not yet converted; frame_index and timestamp_s as in records.DecodedFrame."""

    frame_index: int
    timestamp_s: float
    picture: Any


class Footage(ABC):
    """An open video: `info`, `timetable`, and its frames from any time on.

    `num_corrupt` counts what gave an error or only part of a frame. `num_missing` counts, for the latest walk with `sampled`, the frames of
    the span that did not decode, up to the frame that was given last.
    """

    info: VideoInfo
    timetable: Timetable

    def __init__(self, options: DecodeOptions) -> None:
        self._options = options
        self.num_corrupt = 0
        self.num_missing = 0
        self.flags_at_end: list[str] = []
        self._is_stretched = False
        self._small: tuple[int, int] | None = None

    def __enter__(self) -> Footage:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    @abstractmethod
    def frames_from(self, index: int) -> Iterator[Shown]:
        """All frames that decode, in order, from number `index` on."""

    @abstractmethod
    def push_back(self, shown: Shown) -> None:
        """Let the next read begin with the frame that was read last."""

    @abstractmethod
    def image(self, shown: Shown) -> Image.Image:
        """The frame as it is displayed, RGB; transparency lies over white, as in pictures."""

    @abstractmethod
    def small(self, shown: Shown, width: int) -> np.ndarray:
        """The frame about `width` px wide, not turned, (H, W, 3) uint8 BGR, all of one size: enough to see a shot change."""

    def frame(self, shown: Shown, image_size: int) -> DecodedFrame:
        """The frame resized to (image_size, image_size), bicubic: the model's preprocessing, as for images."""
        image = self.image(shown)
        self._is_stretched |= image.size != (self.info.width, self.info.height)
        resized = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        return DecodedFrame(shown.frame_index, shown.timestamp_s, np.asarray(resized))

    def frames(self, start_s: float) -> Iterator[Shown]:
        """All frames that decode, in order, of those that appear at `start_s` or later."""
        return self.frames_from(self.timetable.index_from(start_s))

    def sampled(self, start_s: float, end_s: float | None = None, after_index: int = -1, wanted: Collection[int] = ()) -> Iterator[Shown]:
        """Frames that appear in [start_s, end_s) and are on the screen at start_s + n / fps for some n; all of them without `fps`.

        In ascending order, each at most once. end_s None: to the end. after_index: only frames later than that one (a resumed read).
        wanted: numbers of frames that come whatever `fps` says, where they lie in the span.
        """
        first, end = self._bounds(start_s, end_s)
        until_s = self.info.duration_s if end_s is None else min(end_s, self.info.duration_s)
        wanted = frozenset(wanted)
        previous: Shown | None = None
        next_index = max(first, after_index + 1)
        self.num_missing, self._is_stretched = 0, False
        for shown in self.frames_from(next_index):
            if shown.frame_index >= end:
                self.push_back(shown)
                break
            if previous is not None and self._is_taken(previous, shown.timestamp_s, start_s, wanted):
                yield previous
            # Counted only now: what comes after a frame that was given is counted with the next one, also by a second try.
            self.num_missing += shown.frame_index - next_index
            previous, next_index = shown, shown.frame_index + 1
        if previous is not None and self._is_taken(previous, max(until_s, previous.timestamp_s + _SHORTEST_S), start_s, wanted):
            yield previous
        self.num_missing += max(end - next_index, 0)

    def planned(self, start_s: float, end_s: float | None = None, wanted: Collection[int] = ()) -> SpanPlan:
        """What `sampled` will give of a span when every frame of it decodes, from the timetable alone."""
        table, wanted = self.timetable, frozenset(wanted)
        first, end = self._bounds(start_s, end_s)
        times = [table.second_of(index) for index in range(first, end)]
        until_s = self.info.duration_s if end_s is None else min(end_s, self.info.duration_s)
        until = [*times[1:], max(until_s, times[-1] + _SHORTEST_S)] if times else []
        rows = zip(range(first, end), times, until, strict=True)
        sampled = [(index, time_s) for index, time_s, until_s in rows if index in wanted or self._is_sampled(time_s, until_s, start_s)]
        return SpanPlan(first, end, sampled)

    def frames_at(self, times_s: Sequence[float]) -> list[int | None]:
        """The number of the frame on the screen at each time, in seconds after the first frame; None where none is.

        A frame that appears within a millisecond after a time counts, as written times are rounded. The end of the video is its last
        frame's, within the same millisecond.
        """
        end_s = self.info.duration_s + TOLERANCE_S
        return [self.timetable.index_at(time_s) if -TOLERANCE_S <= time_s <= end_s else None for time_s in times_s]

    def flags(self, start_s: float, end_s: float | None = None) -> list[str]:
        """What is to be known of a part: `clock_restart`, where the file's clock begins anew in it; `size_change`, when a frame of the
        latest walk with `sampled` had another size than the video's; of its end also `flags_at_end`.
        """
        first, end = self._bounds(start_s, end_s)
        flags = ["clock_restart"] if any(first <= index < end for index in self.timetable.restarts) else []
        flags += ["size_change"] if self._is_stretched else []
        return flags + (self.flags_at_end if end >= len(self.timetable.times) else [])

    def _bounds(self, start_s: float, end_s: float | None) -> tuple[int, int]:
        """The numbers of the frames of a span; what appears within the tolerance before the video's end is in the span that ends there."""
        table = self.timetable
        to_end = end_s is None or end_s >= table.duration_s - TOLERANCE_S
        return table.index_from(start_s), len(table.times) if to_end or end_s is None else table.index_from(end_s)

    def _small_size(self, size: tuple[int, int], width: int) -> tuple[int, int]:
        """What `small` makes of frames, by the first that was asked for: pictures of different sizes cannot be compared."""
        if self._small is None:
            scale = min(width / size[0], 1)
            self._small = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
        return self._small

    def _is_taken(self, shown: Shown, until_s: float, start_s: float, wanted: Collection[int]) -> bool:
        return shown.frame_index in wanted or self._is_sampled(shown.timestamp_s, until_s, start_s)

    def _is_sampled(self, time_s: float, until_s: float, start_s: float) -> bool:
        """Whether a frame on the screen from `time_s` to `until_s` is there at start_s + n / fps for some n."""
        fps = self._options.fps
        if fps is None:
            return True
        instant = math.ceil((time_s - TOLERANCE_S - start_s) * fps)
        return start_s + max(instant, 0) / fps < until_s - TOLERANCE_S
