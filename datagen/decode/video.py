"""Video files to frames, with PyAV (FFmpeg's libraries), as a stream: memory does not grow with length.

What is shown is what is decoded: rotation and mirroring as the display matrix says; edit lists as the demuxer applies them; transparency
over white, as in pictures. Pixels are those stored: non-square ones are not stretched. Colours become 8-bit RGB by swscale, by the
frame's own matrix and range (BT.601 where it names none); HDR is not tone-mapped. A stream that changes its size is resized frame by frame.

Runs in the decoding child (worker.py): the bytes may be hostile. In other processes use reader.VideoReader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
from av.codec.context import CodecContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from datagen.decode.containers import DEMUXERS, container_of, has_second_movie
from datagen.decode.files import check_file
from datagen.decode.footage import Footage, Shown
from datagen.decode.image import over_white
from datagen.decode.limits import out_of_memory
from datagen.decode.orientation import orientation_of
from datagen.decode.packets import demuxed, is_cut_off, is_never_shown, read_timetable
from datagen.decode.timetable import Key
from datagen.errors import DecodeError
from datagen.job import DecodeOptions
from datagen.spans import DecodedFrame, VideoInfo

_KEYS_TRIED = 3
# The last: in a transport stream whose stream numbers change, as where recordings were joined, the picture goes on as the one it was.
_DEMUXING = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", "merge_pmt_versions": "1"}
# FFmpeg's own decoders of these leave the transparency out.
_DECODERS_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def probe_video(path: str, options: DecodeOptions | None = None) -> VideoInfo:
    """What the video is; reads all packets, decodes one frame. Raises DecodeError as VideoFile does."""
    with VideoFile(path, options or DecodeOptions()) as video:
        return video.info


def read_frames(
    path: str, options: DecodeOptions, image_size: int, start_s: float = 0.0, end_s: float | None = None
) -> Iterator[DecodedFrame]:
    """The sampled frames of a part of a video (see Footage.sampled), as the model wants them. Raises DecodeError as VideoFile does."""
    with VideoFile(path, options) as video:
        for shown in video.sampled(start_s, end_s):
            yield video.frame(shown, image_size)


class VideoFile(Footage):
    """A video file (see Footage).

    Reading goes on where the last read ended when that is the way to the wanted frame, else it starts at a key frame before it, so
    that neither consecutive clips nor a late first one decode anything twice. Where the file's times lead to no places in it, such as
    after a clock that began anew, the packets before that key frame are read, and not decoded.

    path: a local file. alive: called at least once per decoded frame, so that a watchdog can tell slow from hung.
    Raises DecodeError with code `missing_file`, `unreadable`, `empty_file`, `not_a_video`, `truncated` (nothing of it can be read),
    `corrupt`, `no_video_stream`, `no_frames`, `unsupported_codec`, `bomb` (frames of more than max_pixels) or `out_of_memory`.
    """

    def __init__(self, path: str, options: DecodeOptions, alive: Callable[[], None] = lambda: None) -> None:
        super().__init__(options)
        if check_file(path).st_size == 0:
            raise DecodeError("the file is empty (0 bytes)", code="empty_file")
        self._path = path
        self._alive = alive
        self._converter = VideoReformatter()
        self._claimed, self._is_cut = container_of(path)
        if has_second_movie(path):
            self.flags_at_end.append("second_movie_unread")
        self._open()
        try:
            self.timetable = read_timetable(self._container, self._stream, alive)
            if not self.timetable.times:
                raise self._unusable("no_frames", "it holds no frame")
            self._decoder: Iterator[tuple[VideoFrame, int | None]] = iter(())
            self._ahead: Shown | None = None
            self._last_index = -1
            self._awaited: int | None = None
            self._key_packets = frozenset(key.packet for key in self.timetable.keys) if self.timetable.by_order else frozenset()
            self._counted_keys: dict[int, int] = {}
            self._restart()
            self.info = self._measured()
            if self._has_others:
                self.flags_at_end.append("other_video_unread")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def frames_from(self, index: int) -> Iterator[Shown]:
        """See Footage."""
        if index < len(self.timetable.times):
            self._go_to(index)
        while (shown := self._next()) is not None:
            if shown.frame_index >= index:
                yield shown

    def push_back(self, shown: Shown) -> None:
        """See Footage."""
        self._ahead = shown

    def image(self, shown: Shown) -> Image.Image:
        """See Footage."""
        image = self._pixels(shown.picture)
        turn = orientation_of(shown.picture).turn
        return image if turn is None else image.transpose(turn)

    def small(self, shown: Shown, width: int) -> np.ndarray:
        """See Footage."""
        size = self._small_size((shown.picture.width, shown.picture.height), width)
        return np.asarray(self._pixels(shown.picture, size, "AREA"), dtype=np.uint8)[:, :, ::-1]

    def _pixels(self, picture: VideoFrame, size: tuple[int, int] = (0, 0), interpolation: str | None = None) -> Image.Image:
        """A frame in RGB, not turned, of its own size or as given (width, height)."""
        width, height = (side or None for side in size)
        kind = "rgba" if _may_be_transparent(picture) else "rgb24"
        converted = self._converter.reformat(picture, width, height, format=kind, interpolation=interpolation, threads=1).to_ndarray()
        return Image.fromarray(converted) if kind == "rgb24" else over_white(Image.fromarray(converted))

    # --- position ------------------------------------------------------------------------------------------------------------

    def _go_to(self, wanted: int) -> None:
        keys = self._keys_until(wanted)
        here = self._ahead.frame_index if self._ahead is not None else self._last_index + 1
        if here <= wanted and (not keys or keys[-1].number <= here):
            return
        for key in reversed(keys):
            if self._start_at(key) and (ahead := self._peek()) is not None and ahead.frame_index <= wanted:
                return
        self._restart()

    def _keys_until(self, index: int) -> Sequence[Key]:
        """The last keys at or before a frame; where only the order of frames is known, of those that have been counted."""
        if not self.timetable.by_order:
            return self.timetable.keys_until(index, _KEYS_TRIED)
        counted = [(number, packet) for packet, number in self._counted_keys.items() if number <= index]
        return [Key(number, 0, packet) for number, packet in sorted(counted)[-_KEYS_TRIED:]]

    def _start_at(self, key: Key) -> bool:
        """Move to a key frame. Some demuxers look for decoding times and land elsewhere, which the caller sees by the next frame."""
        if not self.timetable.seeks:
            self._restart(key.packet)
        else:
            try:
                self._container.seek(key.time, stream=self._stream)
            except av.FFmpegError:
                return False
            self._decoder = self._decoded()
        self._ahead, self._last_index = None, key.number - 1
        self._awaited = key.packet if self.timetable.by_order else None
        return True

    def _restart(self, packet: int = 0) -> None:
        """Open the file anew, at its beginning or at a packet."""
        self._container.close()
        self._open()
        self._decoder = self._decoded(packet)
        self._ahead, self._last_index, self._awaited = None, -1, None

    def _peek(self) -> Shown | None:
        self._ahead = self._next()
        return self._ahead

    def _next(self) -> Shown | None:
        if self._ahead is not None:
            shown, self._ahead = self._ahead, None
            return shown
        table = self.timetable
        for picture, packet in self._decoder:
            index = self._number(picture, packet)
            if self._last_index < index < len(table.times):
                self._last_index = index
                return Shown(index, table.second_of(index), picture)
        self._last_index = len(table.times)
        return None

    def _number(self, picture: VideoFrame, packet: int | None) -> int:
        """Which frame of the video a decoded one is, by its packet or its time; the next one where neither says it."""
        table, following = self.timetable, self._last_index + 1
        if table.places is not None and packet is not None:
            number = table.places[packet] if packet < len(table.places) else -1
            # Of frames of one time, the decoder knows the order.
            twin = max(table.index_of(table.times[number]), following) if number >= 0 else len(table.times)
            return twin if twin < len(table.times) and table.times[twin] == table.times[number] else number
        if table.by_order:
            return self._counted(packet, following)
        time = picture.dts if picture.pts is None else picture.pts
        return following if time is None or table.places is not None else table.index_of(time)

    def _counted(self, packet: int | None, following: int) -> int:
        """The number of a frame where only their order is known: -1 for those before the key frame where decoding started."""
        if self._awaited is not None and packet != self._awaited:
            return -1
        self._awaited = None
        if packet in self._key_packets:
            self._counted_keys[packet] = following
        return following

    def _decoded(self, first: int = 0) -> Iterator[tuple[VideoFrame, int | None]]:
        """Frames from the current position to the end, each with the place of its packet in the file where that is counted.

        Packets that do not decode are counted and skipped. first: so many packets are passed over before.
        """
        try:
            for number, packet in enumerate(_full(demuxed(self._container, self._stream))):
                self._alive()
                if is_cut_off(packet, self._container):
                    self.num_corrupt += 1
                elif number in self.timetable.late or (self._has_headers and packet.size and is_never_shown("theora", packet)):
                    continue
                elif number >= first or not packet.size:
                    yield from self._frames_of(packet, number)
        except MemoryError as error:
            raise out_of_memory(self._options) from error
        except av.FFmpegError:
            # The file cannot be read on; what the decoder still holds is good.
            yield from self._frames_of(None, None)

    def _frames_of(self, packet: Packet[VideoStream] | None, number: int | None) -> Iterator[tuple[VideoFrame, int | None]]:
        try:
            if packet is not None and packet.size:
                packet.opaque = number
            for picture in self._context.decode(packet):
                # Given all the same: the decoder has filled the hole from what it knew.
                self.num_corrupt += picture.is_corrupt
                yield picture, picture.opaque if isinstance(picture.opaque, int) else None
        except MemoryError as error:
            raise out_of_memory(self._options) from error
        except av.FFmpegError:
            self.num_corrupt += 1

    # --- opening -------------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            container = av.open("file:" + self._path, container_options=_DEMUXING)
        except MemoryError as error:
            raise out_of_memory(self._options) from error
        except (av.FFmpegError, ValueError, OSError) as error:
            raise self._broken(error) from error
        try:
            self._stream = self._selected(container)
            self._context = self._decoding(self._stream)
        except BaseException:
            container.close()
            raise
        self._container = container

    def _selected(self, container: InputContainer) -> VideoStream:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            others = {stream.type for stream in container.streams if stream.type != "video"}
            kinds = ", ".join(sorted(others | ({"a cover picture"} if container.streams.video else set()))) or "no streams"
            raise self._unusable("no_video_stream", f"it has no video stream, but {kinds}")
        self._has_others = len(streams) > 1
        best = container.streams.best("video")
        stream = best if isinstance(best, VideoStream) and best in streams else streams[0]
        if stream.codec_context is None:
            raise self._unusable("unsupported_codec", "this build of FFmpeg has no decoder for its video stream; transcode it to H.264")
        return stream

    def _decoding(self, stream: VideoStream) -> VideoCodecContext:
        """The decoder of a stream, set up."""
        context = stream.codec_context
        self._refuse_bomb(context.width, context.height)
        name = _DECODERS_WITH_ALPHA.get(context.codec.canonical_name)
        if name is not None and stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1":
            seeing = CodecContext.create(name, "r")
            if isinstance(seeing, VideoCodecContext):
                seeing.extradata = context.extradata
                context = seeing
        context.options = {"max_pixels": str(self._options.max_pixels)}
        context.thread_type = "AUTO"
        context.thread_count = self._options.video_threads
        context.copy_opaque = True
        self._has_headers = context.codec.canonical_name == "theora"
        return context

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
            pixel_aspect=float(self._stream.sample_aspect_ratio or 1),
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


def _full(packets: Iterator[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """Packets that hold something, and the one that ends the stream: an empty one in its middle would end the decoder, too."""
    return (packet for packet in packets if packet.size or packet.dts is None)


def _may_be_transparent(picture: VideoFrame) -> bool:
    return picture.format.has_palette or any(part.is_alpha for part in picture.format.components)
