"""A video's timetable, read from its packets without decoding them.

Headers lie about durations and counts, and say nothing about a variable frame rate; packets do not. The table takes 8 bytes per
frame (a 2-hour video at 30 fps: 1.7 MB), 24 more per packet while it is read, and one read of the file.

A clock may begin anew in the middle of a file, as where recordings were joined by putting one behind the other (`cat a.ts b.ts`). Each
part's frames then follow the end of the part before.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from datagen.decode.timetable import Key, Timetable

_PACKETS_PER_SIGN_OF_LIFE = 1000
# Decoding times rise. One that falls starts a new clock: at a key frame at once, elsewhere only by more than a muxer's carelessness.
_FALL_S = 0.5
# In streams that are meant to be joined, a leap ahead does so, too; as in the ffmpeg program, which takes longer still pictures out.
_LEAP_S = 10.0
_JOINABLE = frozenset({"mpegts", "mpeg"})
# No picture stays on the screen for so long: in any stream, what comes after has a damaged time.
_FAR_S = 864_000.0
_FALLBACK_RATE = 25
_MOST_LATE = 64
_NO_TIME = -(2**63)
_EXACT = 2.0**60


def read_timetable(container: InputContainer, stream: VideoStream, alive: Callable[[], None]) -> Timetable:
    """Read all packets of `stream`; an unreadable end is left out. `times` is empty when there are none."""
    packets, is_whole = _Packets(stream), True
    try:
        for number, packet in enumerate(demuxed(container, stream)):
            if number % _PACKETS_PER_SIGN_OF_LIFE == 0:
                alive()
            if packet.size:
                packets.add(packet, is_cut_off(packet, container))
            elif packet.pts is not None:
                packets.stay(packet)
    except av.FFmpegError:
        is_whole = False
    return packets.timetable(container, is_whole)


def demuxed(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The packets of a stream, and at last an empty one. Raises av.FFmpegError where the file cannot be read on."""
    try:
        yield from container.demux(stream)
    except IndexError:
        # PyAV's own, at the very end, when streams have come up in the middle of the file.
        return


@dataclass(slots=True)
class _Packets:
    """What the packets of one stream say, in the order of the file; those of size 0, which hold nothing, are not among them."""

    stream: VideoStream
    shown: array[int] = field(default_factory=lambda: array("q"))
    decoded: array[int] = field(default_factory=lambda: array("q"))
    lasts: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    hidden: set[int] = field(default_factory=set)
    step: int = 0

    def add(self, packet: Packet[VideoStream], is_lost: bool) -> None:
        number = len(self.shown)
        self.shown.append(_NO_TIME if packet.pts is None else packet.pts)
        self.decoded.append(_NO_TIME if packet.dts is None else packet.dts)
        self.step = max(packet.duration or 0, 0)
        self.lasts.append(self.step)
        if is_lost or packet.is_discard or is_never_shown(self.stream.codec_context.codec.canonical_name, packet):
            self.hidden.add(number)
        elif packet.is_keyframe:
            self.keys.append(number)

    def stay(self, packet: Packet[VideoStream]) -> None:
        """An empty packet, as Theora and AVI have them: what is on the screen stays there."""
        if self.shown and self.shown[-1] != _NO_TIME and packet.pts is not None:
            self.lasts[-1] = max(self.lasts[-1], packet.pts + max(packet.duration or 0, self.step) - self.shown[-1])

    def timetable(self, container: InputContainer, is_whole: bool) -> Timetable:
        base = self.stream.time_base or Fraction(1)
        is_seen = np.ones(len(self.shown), dtype=bool)
        is_seen[list(self.hidden)] = False
        packets = np.flatnonzero(is_seen)
        if not packets.size:
            return Timetable((), 0, base, is_whole=is_whole)
        shown, decoded, lasts = (
            np.frombuffer(a, dtype=a.typecode)[packets].astype(np.int64) for a in (self.shown, self.decoded, self.lasts)
        )
        is_key = np.isin(packets, np.asarray(self.keys, dtype=np.int64))
        is_reordered = bool(self.stream.codec_context.has_b_frames)
        # An AVI file stores only the order of decoding.
        by_order = is_reordered if container.format.name == "avi" else bool((shown == _NO_TIME).any() and not _are_in_order(shown, decoded))
        clock = _filled(np.where(decoded == _NO_TIME, shown, decoded), np.maximum(lasts, 1))
        times = clock if by_order else np.where(shown == _NO_TIME, clock, shown)
        leap_s = _LEAP_S if container.format.name in _JOINABLE else _FAR_S
        late = _late(clock, is_key) if container.format.name == "mpegts" else np.zeros(0, dtype=np.int64)
        skipped = frozenset(packets[late].tolist())
        if late.size:
            rows = _put_back(clock, late)
            packets, times, lasts, clock, is_key = packets[rows], times[rows], lasts[rows], clock[rows], is_key[rows]
        starts = _starts(clock, is_key, base, leap_s)
        _mend(times, clock, lasts, starts, leap_s / base)
        counted = not by_order and bool(late.size or (np.diff(clock) < 0).any())
        table = self._laid_out(packets, times, lasts, is_key, starts, by_order, counted)
        seeks = len(starts) == 1 and table.places is None and not by_order
        return replace(table, late=skipped, by_order=by_order, seeks=seeks, is_whole=is_whole)

    def _laid_out(
        self,
        packets: NDArray[np.int64],
        times: NDArray[np.int64],
        lasts: NDArray[np.int64],
        is_key: NDArray[np.bool_],
        starts: list[int],
        by_order: bool,
        counted: bool,
    ) -> Timetable:
        """The parts of the file, one clock each, one behind the other. counted: its packets are not in the order of their times."""
        numbers, laid, end = np.empty_like(times), np.empty_like(times), 0
        for first, after in zip(starts, [*starts[1:], len(times)], strict=True):
            order = np.argsort(times[first:after], kind="stable")
            part = times[first:after][order]
            numbers[first:after][order] = np.arange(first, after)
            laid[first:after] = part - part[0] + end if first else part
            end = int(laid[after - 1]) + self._shown_for(part, int(lasts[first:after][order[-1]]))
        places = None
        if counted or (not by_order and (len(starts) > 1 or (np.diff(laid) == 0).any())):
            places = array("i", [-1]) * len(self.shown)
            np.frombuffer(places, dtype=np.int32)[packets] = numbers
        keys = sorted(Key(int(numbers[row]), int(times[row]), int(packets[row])) for row in np.flatnonzero(is_key))
        base = self.stream.time_base or Fraction(1)
        return Timetable(array("q", laid.tobytes()), end, base, keys, restarts=starts[1:], places=places)

    def _shown_for(self, times: NDArray[np.int64], last: int) -> int:
        """How long the last frame is shown: what its packet says, or the mean time between two, or one frame of the header's rate."""
        if last > 0:
            return last
        if len(times) > 1 and times[-1] > times[0]:
            between = int(times[-1] - times[-2])
            return between or max(round(int(times[-1] - times[0]) / (len(times) - 1)), 1)
        rate, base = self.stream.average_rate or Fraction(_FALLBACK_RATE), self.stream.time_base or Fraction(1)
        return max(round(1 / (rate * base)), 1)


def is_cut_off(packet: Packet[VideoStream], container: InputContainer) -> bool:
    """Whether the file ends within a packet. In transport streams the same flag means that something is missing near it, as at a seam."""
    return packet.is_corrupt and container.format.name not in _JOINABLE


def is_never_shown(codec: str, packet: Packet[VideoStream]) -> bool:
    """Whether no frame comes out of a packet, though it has a time: of VP8 and VP9 when it holds only a picture that others are predicted
    from, of Theora when it is a header, as where streams were joined.
    """
    if codec not in ("vp8", "vp9", "theora"):
        return False
    data = memoryview(packet)
    bits = data[0]
    if codec == "theora":
        return bool(bits & 0x80)
    if codec == "vp8":
        return not bits & 0x10
    is_superframe = len(data) > 1 and data[-1] & 0xE0 == 0xC0  # it ends with one that is shown
    shift = bits >> 4 & 3 == 3  # profile 3 has a bit more
    is_shown_again, is_shown = bits >> (3 - shift) & 1, bits >> (1 - shift) & 1
    return bits >> 6 == 2 and not is_superframe and not is_shown_again and not is_shown


def _are_in_order(shown: NDArray[np.int64], decoded: NDArray[np.int64]) -> bool:
    """Whether every frame that has both times is shown when it is decoded, so that one time can stand for the other."""
    both = (shown != _NO_TIME) & (decoded != _NO_TIME)
    return bool(both.any() and (shown[both] == decoded[both]).all())


def _filled(times: NDArray[np.int64], lasts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same with times for those that have none: each one frame after the one before."""
    known = times != _NO_TIME
    if known.all():
        return times
    steps = np.concatenate([[0], np.cumsum(lasts)[:-1]])
    latest = np.maximum.accumulate(np.where(known, np.arange(len(times)), -1))
    first = int(np.argmax(known)) if known.any() else 0
    origin = times[first] - steps[first] if known.any() else 0
    since = np.where(latest < 0, origin + steps, times[latest] + steps - steps[latest])
    return np.where(known, times, since)


def _mend(times: NDArray[np.int64], clock: NDArray[np.int64], lasts: NDArray[np.int64], starts: list[int], leap: float) -> None:
    """Set times that are far from those of decoding. The demuxer took them from the next part of a joined stream (it guesses some from what
    follows), so such a frame is its part's last; or they are damaged.
    """
    for first, after in zip(starts, [*starts[1:], len(times)], strict=True):
        strange = np.abs(times[first:after].astype(np.float64) - clock[first:after]) > leap
        times[first:after][strange] = clock[after - 1] + lasts[after - 1]


def _late(clock: NDArray[np.int64], is_key: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Single packets out of the order that the ones around them keep. Where a transport stream's stream numbers change at a seam, the
    demuxer keeps the last one before it back.
    """
    before, here, after = clock[:-2], clock[1:-1], clock[2:]
    strays = (after >= before) & ((here < before) | ((here > after) & ~is_key[2:])) & ~is_key[1:-1]
    late = np.flatnonzero(strays) + 1
    return late if late.size <= _MOST_LATE else late[:0]


def _put_back(clock: NDArray[np.int64], late: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of packets in which each late one follows the one before it whose time is the nearest below its own."""
    rows = np.delete(np.arange(len(clock)), late).tolist()
    for row in late.tolist():
        earlier = [place for place, other in enumerate(rows) if other < row and clock[other] <= clock[row]]
        nearest = max(earlier, key=lambda place: (clock[rows[place]], place), default=-1)
        rows.insert(nearest + 1, row)
    return np.asarray(rows, dtype=np.int64)


def _starts(clock: NDArray[np.int64], is_key: NDArray[np.bool_], base: Fraction, leap_s: float) -> list[int]:
    """Where a clock begins: at 0, and wherever decoding times fall, or leap ahead by more than `leap_s` seconds."""
    # In floats, as what lies further apart than integers reach would come round; small steps are the same in both.
    steps = np.where(np.abs(far := np.diff(clock.astype(np.float64))) > _EXACT, far, np.diff(clock))
    begins = ((steps < 0) & (is_key[1:] | (steps < -_FALL_S / base))) | (steps > leap_s / base)
    return [0, *(np.flatnonzero(begins) + 1).tolist()]
