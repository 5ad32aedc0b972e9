"""Video files to frames, with PyAV (FFmpeg's libraries), as a stream: memory does not grow with length.

What is shown is what is decoded: rotation and mirroring as the display matrix says; edit lists as the demuxer applies them.
Pixels are those stored: non-square ones are not stretched. Colours become 8-bit RGB by swscale, by the frame's own matrix and
range (BT.601 where it names none); HDR is not tone-mapped. A stream that changes its size is resized frame by frame.

Runs in the decoding child (worker.py): the bytes may be hostile. In other processes use reader.VideoReader.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from datagen.decode.containers import DEMUXERS, container_of
from datagen.decode.files import check_file
from datagen.decode.orientation import orientation_of
from datagen.decode.packets import TOLERANCE_S, has_no_presentation_times, read_timetable
from datagen.errors import DecodeError
from datagen.job import DecodeOptions
from datagen.records import DecodedFrame, SpanPlan, VideoInfo

_KEYS_TRIED = 3


def probe_video(path: str, options: DecodeOptions | None = None) -> VideoInfo:
    """What the video is; reads all packets, decodes one frame. Raises DecodeError as VideoFile does."""
    with VideoFile(path, options or DecodeOptions()) as video:
        return video.info


def read_frames(
    path: str, options: DecodeOptions, image_size: int, start_s: float = 0.0, end_s: float | None = None
) -> Iterator[DecodedFrame]:
    """The sampled frames of a part of a video (see VideoFile.sampled), as the model wants them. Raises DecodeError as VideoFile does."""
    with VideoFile(path, options) as video:
        for shown in video.sampled(start_s, end_s):
            yield video.frame(shown, image_size)


@dataclass(frozen=True, slots=True)
class Shown:
    """A decoded frame, not yet converted; frame_index and timestamp_s as in records.DecodedFrame."""

    frame_index: int
    timestamp_s: float
    picture: VideoFrame


class VideoFile:
    """An open video: `info`, `timetable`, and its frames from any time on.

    Reading goes on where the last read ended when that is the way to the wanted time, else it starts at a key frame before it, so
    that neither consecutive clips nor a late first one decode anything twice. `num_corrupt` counts the packets that gave an error or
    only part of a frame.

    path: a local file. alive: called at least once per decoded frame, so that a watchdog can tell slow from hung.
    Raises DecodeError with code `missing_file`, `unreadable`, `empty_file`, `not_a_video`, `truncated` (nothing of it can be read),
    `corrupt`, `no_video_stream`, `no_frames`, `unsupported_codec`, `bomb` (frames of more than max_pixels) or `out_of_memory`.
    """

    def __init__(self, path: str, options: DecodeOptions, alive: Callable[[], None] = lambda: None) -> None:
        if check_file(path).st_size == 0:
            raise DecodeError("the file is empty (0 bytes)", code="empty_file")
        self._path = path
        self._options = options
        self._alive = alive
        self.num_corrupt = 0
        self._converter = VideoReformatter()
        self._claimed, self._is_cut = container_of(path)
        self._container, self._stream = self._opened()
        try:
            self.timetable = read_timetable(self._container, self._stream, alive)
            if not self.timetable.times:
                raise self._unusable("no_frames", "it holds no frame")
            self._decoder: Iterator[VideoFrame] = iter(())
            self._ahead: Shown | None = None
            self._last_index = -1
            self._restart()
            self.info = self._measured()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def sampled(self, start_s: float, end_s: float | None = None, after_index: int = -1, wanted: Collection[int] = ()) -> Iterator[Shown]:
        """Frames that appear in [start_s, end_s) and are on the screen at start_s + n / fps for some n; all of them without `fps`.

        In ascending order, each at most once. end_s None: to the end. after_index: only frames later than that one (a resumed read).
        wanted: numbers of frames that come whatever `fps` says, where they lie in the span.
        """
        wanted = frozenset(wanted)
        end_s = self.info.duration_s + 1 if end_s is None else end_s
        previous: Shown | None = None
        for shown in self.frames(max(start_s, self.timetable.second_of(after_index + 1))):
            if shown.timestamp_s >= end_s - TOLERANCE_S:
                self.push_back(shown)
                break
            if shown.timestamp_s < start_s - TOLERANCE_S or shown.frame_index <= after_index:
                continue
            if previous is not None and self._is_taken(previous, shown.timestamp_s, start_s, wanted):
                yield previous
            previous = shown
        if previous is not None and self._is_taken(previous, min(end_s, self.info.duration_s), start_s, wanted):
            yield previous

    def frames(self, start_s: float) -> Iterator[Shown]:
        """All frames that decode, in order, from the one on the screen at `start_s` on."""
        wanted = self.timetable.index_at(start_s)
        self._go_to(wanted)
        while (shown := self._next()) is not None:
            if shown.frame_index >= wanted:
                yield shown

    def push_back(self, shown: Shown) -> None:
        """Let the next read begin with the frame that was read last."""
        self._ahead = shown

    def frame(self, shown: Shown, image_size: int) -> DecodedFrame:
        """The frame in RGB, turned for display, resized to (image_size, image_size), bicubic: the model's preprocessing, as for images."""
        rgb = self._converter.reformat(shown.picture, format="rgb24", threads=1).to_ndarray()
        turn = orientation_of(shown.picture).turn
        image = Image.fromarray(rgb)
        resized = (image if turn is None else image.transpose(turn)).resize((image_size, image_size), Image.Resampling.BICUBIC)
        return DecodedFrame(shown.frame_index, shown.timestamp_s, np.asarray(resized))

    def small(self, shown: Shown, width: int) -> np.ndarray:
        """The frame about `width` px wide, not turned, (H, W, 3) uint8 BGR: enough to see a shot change."""
        picture = shown.picture
        scale = min(width / picture.width, 1)
        size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
        small = self._converter.reformat(picture, *size, format="bgr24", interpolation="AREA", threads=1)
        return np.asarray(small.to_ndarray(), dtype=np.uint8)

    def planned(self, start_s: float, end_s: float | None = None, wanted: Collection[int] = ()) -> SpanPlan:
        """What `sampled` will give of a span when every frame of it decodes, from the timetable alone."""
        table, end_s = self.timetable, self.info.duration_s + 1 if end_s is None else end_s
        first, end = (bisect_left(table.times, table.times[0] + (second - TOLERANCE_S) / table.time_base) for second in (start_s, end_s))
        times = [table.second_of(index) for index in range(first, end)]
        until = [*times[1:], min(end_s, self.info.duration_s)]
        rows = zip(range(first, end), times, until, strict=True)
        wanted = frozenset(wanted)
        sampled = [(index, time_s) for index, time_s, until_s in rows if index in wanted or self._is_sampled(time_s, until_s, start_s)]
        return SpanPlan(first, end, sampled)

    def frames_at(self, times_s: Sequence[float]) -> list[int | None]:
        """The number of the frame on the screen at each time, in seconds after the first frame; None where none is.

        A frame that appears within a millisecond after a time counts, as written times are rounded. The end of the video is its last
        frame's, within the same millisecond.
        """
        end_s = self.info.duration_s + TOLERANCE_S
        return [self.timetable.index_at(time_s) if -TOLERANCE_S <= time_s <= end_s else None for time_s in times_s]

    def _is_taken(self, shown: Shown, until_s: float, start_s: float, wanted: Collection[int]) -> bool:
        return shown.frame_index in wanted or self._is_sampled(shown.timestamp_s, until_s, start_s)

    def _is_sampled(self, time_s: float, until_s: float, start_s: float) -> bool:
        """Whether a frame on the screen from `time_s` to `until_s` is there at start_s + n / fps for some n."""
        fps = self._options.fps
        if fps is None:
            return True
        instant = math.ceil((time_s - TOLERANCE_S - start_s) * fps)
        return start_s + max(instant, 0) / fps < until_s - TOLERANCE_S

    # --- position ------------------------------------------------------------------------------------------------------------

    def _go_to(self, wanted: int) -> None:
        table = self.timetable
        keys = table.keys_until(table.times[wanted], _KEYS_TRIED)
        here = self._ahead.frame_index if self._ahead is not None else self._last_index + 1
        if here <= wanted and (not keys or table.index_of(keys[-1]) <= here):
            return
        for key in reversed(keys):
            if self._start_at(key) and (ahead := self._peek()) is not None and ahead.frame_index <= wanted:
                return
        self._restart()

    def _start_at(self, key: int) -> bool:
        """Move to a key frame. Some demuxers look for decoding times and land elsewhere, which the caller sees by the next frame."""
        try:
            self._container.seek(key, stream=self._stream)
        except av.FFmpegError:
            return False
        self._decoder = self._decoded()
        self._ahead, self._last_index = None, self.timetable.index_of(key) - 1
        return True

    def _restart(self) -> None:
        self._container.close()
        self._container, self._stream = self._opened()
        self._decoder = self._decoded()
        self._ahead, self._last_index = None, -1

    def _peek(self) -> Shown | None:
        self._ahead = self._next()
        return self._ahead

    def _next(self) -> Shown | None:
        if self._ahead is not None:
            shown, self._ahead = self._ahead, None
            return shown
        table = self.timetable
        for picture in self._decoder:
            time = picture.dts if picture.pts is None else picture.pts
            index = self._last_index + 1 if time is None or self._by_order else table.index_of(time)
            if self._last_index < index < len(table.times):
                self._last_index = index
                return Shown(index, table.seconds(table.times[index]), picture)
        self._last_index = len(table.times)
        return None

    def _decoded(self) -> Iterator[VideoFrame]:
        """Frames from the current position to the end; packets that do not decode are counted and skipped."""
        try:
            for packet in self._container.demux(self._stream):
                self._alive()
                if packet.is_corrupt:
                    self.num_corrupt += 1
                    continue
                try:
                    for picture in packet.decode():
                        # Given all the same: the decoder has filled the hole from what it knew.
                        self.num_corrupt += picture.is_corrupt
                        yield picture
                except av.FFmpegError:
                    self.num_corrupt += 1
        except av.FFmpegError:
            # The file cannot be read on; what the decoder still holds is good.
            try:
                yield from self._stream.codec_context.decode(None)
            except av.FFmpegError:
                self.num_corrupt += 1

    # --- opening -------------------------------------------------------------------------------------------------------------

    def _opened(self) -> tuple[InputContainer, VideoStream]:
        try:
            container = av.open("file:" + self._path, container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
        except MemoryError as error:
            raise DecodeError("opening the video needs more memory than there is", code="out_of_memory") from error
        except (av.FFmpegError, ValueError, OSError) as error:
            raise self._broken(error) from error
        try:
            return container, self._selected(container)
        except BaseException:
            container.close()
            raise

    def _selected(self, container: InputContainer) -> VideoStream:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
            raise self._unusable("no_video_stream", f"it has no video stream, but {kinds}")
        best = container.streams.best("video")
        stream = best if isinstance(best, VideoStream) and best in streams else streams[0]
        context = stream.codec_context
        if context is None:
            raise self._unusable("unsupported_codec", "this build of FFmpeg has no decoder for its video stream; transcode it to H.264")
        self._refuse_bomb(context.width, context.height)
        context.options = {"max_pixels": str(self._options.max_pixels)}
        context.thread_type = "AUTO"
        context.thread_count = self._options.video_threads
        self._by_order = has_no_presentation_times(container)
        return stream

    def _measured(self) -> VideoInfo:
        first = self._peek()
        if first is None:
            raise self._unusable("corrupt", f"none of its {len(self.timetable.times)} frames can be decoded")
        turned = orientation_of(first.picture)
        self._refuse_bomb(first.picture.width, first.picture.height)
        size = first.picture.width, first.picture.height
        width, height = reversed(size) if turned.swaps_sides else size
        num_frames, duration_s = len(self.timetable.times), self.timetable.duration_s
        return VideoInfo(
            width=width,
            height=height,
            fps=num_frames / duration_s if duration_s > 0 else 0.0,
            duration_s=duration_s,
            num_frames=num_frames,
            rotation=turned.degrees,
            codec=self._stream.codec_context.codec.canonical_name,
            truncated=self._is_cut or not self.timetable.is_whole,
        )

    def _refuse_bomb(self, width: int, height: int) -> None:
        if width * height > self._options.max_pixels:
            found = f"its frames are {width} x {height}, more than decode.max_pixels ({self._options.max_pixels})"
            raise DecodeError(f"{found}; raise it if the file is honest", code="bomb")

    def _broken(self, error: Exception) -> DecodeError:
        if self._claimed is None:
            return DecodeError(f"the content is no video in a known container ({error})", code="not_a_video")
        if isinstance(error, av.EOFError):
            return self._unusable("no_frames", f"its {self._claimed} structure ends before the first frame")
        return self._unusable("corrupt", f"its {self._claimed} structure cannot be read ({type(error).__name__}: {error})")

    def _unusable(self, code: str, what: str) -> DecodeError:
        if self._is_cut:
            return DecodeError(f"the video ends too early, and nothing of it can be read: {what}", code="truncated")
        return DecodeError(f"the video cannot be used: {what}", code=code)
