"""The timetable of a video: when each frame is shown, and where decoding can start. It makes frame numbers, the end and the cuts into
clips functions of the file alone, wherever reading starts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

# Matroska rounds timestamps to the millisecond; two times that differ by less are the same.
TOLERANCE_S = 0.001


class Key(NamedTuple):
    """A frame where decoding can start: its number, its time in the file (units of the time base), its packet's place in the file."""

    number: int
    time: int
    packet: int


@dataclass(frozen=True, slots=True)
class Timetable:
    """When the frames of a video appear, in units of `time_base`: ascending, several at one time where the file says so.

    end: when the last frame leaves the screen. keys: those where decoding can start, ascending. is_whole: reading the packets met no error.
    restarts: numbers of the frames with which the file's clock begins anew; times go on there as if it had not.
    places: the number of the frame that each packet holds, in the order of the file (-1: of none); None where a frame's own time says it.
    late: packets that come after those that follow their frame; decoding them there would harm others, so their frames are missing.
    by_order: the times are those of decoding, and the n-th frame out is the one of the n-th time. seeks: times lead to places in the file.
    """

    times: Sequence[int]
    end: int
    time_base: Fraction
    keys: Sequence[Key] = ()
    is_whole: bool = True
    restarts: Sequence[int] = ()
    places: Sequence[int] | None = None
    late: frozenset[int] = frozenset()
    by_order: bool = False
    seeks: bool = True

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

    def index_from(self, second: float) -> int:
        """The index of the first frame that appears at `second` or later, within the tolerance; the number of frames after the last."""
        return bisect_left(self.times, self.times[0] + Fraction(second - TOLERANCE_S) / self.time_base)

    def keys_until(self, index: int, count: int) -> Sequence[Key]:
        """The last `count` keys at or before frame `index`, ascending."""
        after = bisect_right(self.keys, index, key=lambda key: key.number)
        return self.keys[max(after - count, 0) : after]

    def clip_end_s(self, start_s: float, max_clip_s: float) -> float:
        """Where a clip from `start_s` must end: at a frame at most `max_clip_s` later, or later still when one frame is shown longer."""
        if start_s + max_clip_s >= self.duration_s - TOLERANCE_S:
            return self.duration_s
        first, last = self.index_at(start_s), self.index_at(start_s + max_clip_s)
        cut = max(last, first + 1)
        return self.second_of(cut)
