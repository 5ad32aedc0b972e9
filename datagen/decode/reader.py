"""The parent's side of decoding videos: frames stream in from a child process, a few ahead of their use."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from datagen.decode.child import TRIES, Outcome, crashed, timed_out
from datagen.decode.copies import LocalCopies
from datagen.decode.process import Child, ChildOwner
from datagen.errors import DecodeError
from datagen.job import DecodeOptions, S3Options
from datagen.life import alive, elsewhere
from datagen.records import Span
from datagen.spans import ClipSpan, DecodedFrame, SpanPlan, VideoInfo

Answer = tuple[dict[str, Any], np.ndarray | None]


class VideoReader(ChildOwner):
    """Reads videos in a child process that may die or hang without harm (see ChildOwner). One thing at a time: a new request ends
    the stream before it.

    While the caller works on a frame, the child decodes up to decode.prefetch_frames more and then waits. A file that kills the
    child is tried once more, from the last answer on; a hang is final. Raises DecodeError with the codes of video.VideoFile,
    `decoder_crashed` and `decode_timeout` (no sign of life from the decoder for decode.timeout_s), ClusterError when no child
    can be started.
    """

    _current: Iterator[Answer] | None = None

    def __init__(self, options: DecodeOptions, image_size: int, s3: S3Options | None = None) -> None:
        super().__init__(options, image_size)
        self._copies = LocalCopies(s3 or S3Options(), int(options.max_file_gib * 2**30))
        self._copy = ExitStack()

    def probe(self, path: str, uri: str) -> Outcome:
        """Size, checksum and `info` of a video, or the `error`. Reads the whole file once."""
        outcome = Outcome()
        try:
            for answer, _ in self._ask({"kind": "probe", "path": path, "uri": uri}, last="probed"):
                if answer["kind"] == "read":
                    outcome.size_bytes, outcome.sha256 = answer["size_bytes"], answer["sha256"]
                else:
                    outcome.info = VideoInfo(**answer["info"])
        except DecodeError as error:
            outcome.error = error
        return outcome

    def open_video(self, uri: str, span: Span | None = None) -> OpenVideo:
        """A video to be read clip by clip, until the next one is opened; one in a bucket or archive is fetched.

        span: as in Asset. Raises as LocalCopies does, too.
        """
        self._copy.close()
        with elsewhere():  # a large file from a bucket takes its time
            path = self._copy.enter_context(self._copies.copy(uri, span=span))
        outcome = self.probe(path, uri)
        if outcome.info is None:
            raise outcome.error or DecodeError("the video says nothing about itself", code="corrupt")
        return OpenVideo(self, path, uri, outcome.info, outcome.size_bytes, outcome.sha256)

    def frames_at(self, path: str, uri: str, times_s: Sequence[float]) -> list[int | None]:
        """The number of the frame on the screen at each time (see footage.Footage.frames_at)."""
        request = {"kind": "at", "path": path, "uri": uri, "times_s": list(times_s)}
        [(answer, _)] = self._ask(request, last="frames_at")
        return list(answer["numbers"])

    def clips(
        self,
        path: str,
        uri: str,
        start_s: float = 0.0,
        clip_index: int = 0,
        shot_start_s: float | None = None,
        limit: int | None = None,
    ) -> Iterator[ClipSpan]:
        """The clips of a video, as they are found (see shots.cut_clips); start_s, clip_index and shot_start_s continue after earlier spans.

        limit: at most so many.
        """
        place = {"start_s": start_s, "clip_index": clip_index, "shot_start_s": shot_start_s}
        request = {"kind": "clips", "path": path, "uri": uri, **place, "limit": limit}
        for answer, _ in self._ask(request, last="end"):
            if answer["kind"] == "clip":
                span = ClipSpan(**answer["span"])
                request |= {"start_s": span.end_s, "clip_index": span.clip_index + 1}
                if span.ends_shot or request["shot_start_s"] is None:
                    request["shot_start_s"] = span.end_s if span.ends_shot else span.start_s
                yield span

    def open(self, path: str, uri: str, start_s: float = 0.0, end_s: float | None = None, wanted: Collection[int] = ()) -> FrameStream:
        """The sampled frames that appear in [start_s, end_s), end_s None: to the end, and those `wanted` (see footage.Footage.sampled)."""
        place = {"path": path, "uri": uri, "start_s": start_s, "end_s": end_s}
        request = {"kind": "frames", **place, "after_index": -1, "missing": 0, "wanted": sorted(wanted)}
        return FrameStream(request, self._ask(request, last="end"))

    def close(self) -> None:
        """End the current stream and the child, and remove what was fetched."""
        self._drop_current()
        super().close()
        self._copy.close()
        self._copies.close()

    def _ask(self, request: dict[str, Any], last: str) -> Iterator[Answer]:
        self._drop_current()
        self._current = self._answers(request, last)
        return self._current

    def _drop_current(self) -> None:
        current, self._current = self._current, None
        if current is not None:
            current.close()  # type: ignore[attr-defined]

    def _answers(self, request: dict[str, Any], last: str) -> Iterator[Answer]:
        """The answers to a request. The consumer keeps the request up to date, so that a second try goes on after the last answer."""
        for left in reversed(range(TRIES)):
            child, is_done = self._running(), False
            try:
                yield from self._exchange(child, request, last)
                is_done = True
                return
            except TimeoutError:
                raise timed_out(self._options.timeout_s) from None
            except EOFError:
                if child.ended_by(signal.SIGALRM):
                    raise timed_out(self._options.timeout_s) from None
                if not left:
                    raise crashed(child, self._options) from None
            except DecodeError:
                is_done = True
                raise
            finally:
                # A stream that was left early, too: the rest of its answers is still to come.
                if not is_done:
                    self._discard()

    def _exchange(self, child: Child, request: dict[str, Any], last: str) -> Iterator[Answer]:
        child.send(request)
        while True:
            deadline = time.monotonic() + self._options.timeout_s
            answer = child.receive(deadline)
            alive()
            pixels = None
            if answer["kind"] == "failed":
                raise DecodeError(answer["message"], code=answer["code"])
            if answer["kind"] == "frame":
                pixels = np.empty((self._image_size, self._image_size, 3), dtype=np.uint8)
                child.fill(pixels.data.cast("B"), deadline)
            if answer["kind"] != "busy":
                yield answer, pixels
            if answer["kind"] == last:
                return


class FrameStream:
    """An iterator of frames. `plan` says which will come if all of them decode.

    Once it is exhausted, `truncated` says whether the file ends before what it announces (the frames up to there were given),
    `corrupt_packets` how many packets did not decode, or only in part, `missing_frames` how many frames of the span no picture came of, and
    `flags` what else is to be known of it (see footage.Footage.flags).
    """

    def __init__(self, request: dict[str, Any], answers: Iterator[Answer]) -> None:
        self.truncated = False
        self.corrupt_packets = self.missing_frames = 0
        self.flags: Sequence[str] = ()
        self._request = request
        self._answers = answers
        plan = self._next()[0]["plan"]
        self.plan = SpanPlan(plan["first_frame"], plan["end_frame"], [(index, time_s) for index, time_s in plan["sampled"]])

    def __iter__(self) -> FrameStream:
        return self

    def __next__(self) -> DecodedFrame:
        answer, pixels = self._next()
        while answer["kind"] == "plan":  # said again by the child of a second try
            answer, pixels = self._next()
        if pixels is None:
            self.truncated, self.flags = answer["truncated"], tuple(answer["flags"])
            self.corrupt_packets, self.missing_frames = answer["corrupt_packets"], answer["missing"]
            next(self._answers, None)
            raise StopIteration
        self._request |= {"after_index": answer["frame_index"], "missing": answer["missing"]}
        return DecodedFrame(answer["frame_index"], answer["timestamp_s"], pixels)

    def _next(self) -> Answer:
        return next(self._answers)

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading. Costs a restart of the child when frames are still to come."""
        self._answers.close()  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class OpenVideo:
    """One video as the perceive step reads it: a clip's span, then its frames, then the next clip."""

    reader: VideoReader
    path: str
    uri: str
    info: VideoInfo
    size_bytes: int | None
    sha256: str | None

    def span(self, start_s: float, clip_index: int, shot_start_s: float | None = None) -> ClipSpan | None:
        """The clip that starts at `start_s`, an earlier span's end or 0; None when the video ends there. Raises DecodeError.

        shot_start_s: where its shot began; None: right there.
        """
        spans = list(self.reader.clips(self.path, self.uri, start_s, clip_index, shot_start_s, limit=1))
        return spans[0] if spans else None

    def frames_at(self, times_s: Sequence[float]) -> list[int | None]:
        """The number of the frame on the screen at each time, seconds after the first frame, within 1 ms; None where none is."""
        return self.reader.frames_at(self.path, self.uri, times_s) if times_s else []

    def frames(self, span: ClipSpan, wanted: Collection[int] = ()) -> FrameStream:
        """The sampled frames of a clip, and those of the frames `wanted`, by number in the video, that lie in it, sampled or not.

        Raises DecodeError, also while they are read.
        """
        return self.reader.open(self.path, self.uri, span.start_s, span.end_s, wanted)
