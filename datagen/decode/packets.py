"""The timetable of a video: when each frame is shown, read from the packets without decoding them.

Headers lie about durations and counts, and say nothing about a variable frame rate; packets do not. The table takes 8 bytes per
frame (a 2-hour video at 30 fps: 1.7 MB) and one read of the file. It makes frame indices, the end and the cuts into clips
functions of the file alone, wherever decoding starts.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

# Matroska rounds timestamps to the millisecond; two times that differ by less are the same.
TOLERANCE_S = 0.001
_PACKETS_PER_SIGN_OF_LIFE = 1000


@dataclass(frozen=True, slots=True)
class Timetable:
    """Presentation times in units of `time_base`, ascending and without repeats; `end` is when the last frame leaves the screen.

    key_times: those of the key frames, where decoding can start. is_whole: reading the packets met no error.
    """

    times: Sequence[int]
    key_times: Sequence[int]
    end: int
    time_base: Fraction
    is_whole: bool

    @property
    def duration_s(self) -> float:
        """From the first frame's appearance to the last one's disappearance."""
        return self.seconds(self.end)

    def seconds(self, time: int) -> float:
        """Seconds since the first frame appeared."""
        return float((time - self.times[0]) * self.time_base)

    def second_of(self, index: int) -> float:
        """When frame `index` appears, in seconds; the end for an index past the last."""
        return self.seconds(self.times[index]) if index < len(self.times) else self.duration_s

    def index_of(self, time: int) -> int:
        """The index of the frame shown from `time` on; of the next one when none starts exactly then."""
        return bisect_left(self.times, time)

    def index_at(self, second: float) -> int:
        """The index of the frame on the screen at `second` (the first before the start, the last after the end)."""
        reached = self.times[0] + Fraction(second + TOLERANCE_S) / self.time_base
        return max(bisect_right(self.times, reached) - 1, 0)

    def keys_until(self, time: int, count: int) -> Sequence[int]:
        """Times of the last `count` key frames at or before `time`, ascending."""
        after = bisect_right(self.key_times, time)
        return self.key_times[max(after - count, 0) : after]

    def clip_end_s(self, start_s: float, max_clip_s: float) -> float:
        """Where a clip from `start_s` must end: at a frame at most `max_clip_s` later, or later still when one frame is shown longer."""
        if start_s + max_clip_s >= self.duration_s - TOLERANCE_S:
            return self.duration_s
        first, last = self.index_at(start_s), self.index_at(start_s + max_clip_s)
        cut = max(last, first + 1)
        return self.second_of(cut)


def read_timetable(container: InputContainer, stream: VideoStream, alive: Callable[[], None]) -> Timetable:
    """Read all packets of `stream`; an unreadable end is left out. `times` is empty when there are none."""
    by_dts = has_no_presentation_times(container)
    times, keys, latest, shown_for, is_whole = array("q"), array("q"), None, 0, True
    try:
        for number, packet in enumerate(container.demux(stream)):
            if number % _PACKETS_PER_SIGN_OF_LIFE == 0:
                alive()
            time = packet.dts if by_dts or packet.pts is None else packet.pts
            if time is not None and packet.size and not (packet.is_discard or packet.is_corrupt):
                times.append(time)
                if packet.is_keyframe:
                    keys.append(time)
                if latest is None or time > latest:
                    latest, shown_for = time, packet.duration or 0
    except av.FFmpegError:
        is_whole = False
    times, keys = _ascending(times), _ascending(keys)
    end = times[-1] + _shown_for(times, shown_for, stream) if times else 0
    return Timetable(times, keys, end, stream.time_base or Fraction(1), is_whole)


def has_no_presentation_times(container: InputContainer) -> bool:
    """Whether the container stores only the order of decoding, so that the n-th frame out is the one of the n-th time."""
    return container.format.name == "avi"


def _ascending(times: array[int]) -> array[int]:
    return array("q", np.unique(np.frombuffer(times, dtype=np.int64)).tobytes())


def _shown_for(times: Sequence[int], duration: int, stream: VideoStream) -> int:
    """How long the last frame is shown: what its packet says, or the time between the last two, or one frame of the header's rate."""
    if duration > 0:
        return duration
    if len(times) > 1:
        return times[-1] - times[-2]
    rate, base = stream.average_rate, stream.time_base
    return round(1 / (rate * base)) if rate and base else 0
