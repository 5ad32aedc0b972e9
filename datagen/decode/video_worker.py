"""The child's answers about videos, files and folders of frames. The last one stays open, so that the next clip goes on where it ended."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from typing import Any

from datagen.decode.files import check_file, checksum
from datagen.decode.footage import Footage
from datagen.decode.pictures import AnimatedWebp, FrameFolder, check_folder, checksum_of_folder, is_webp
from datagen.decode.shots import clips_of
from datagen.decode.video import VideoFile
from datagen.decode.wire import Answers
from datagen.faults import fault_point
from datagen.frame_names import is_frame_folder
from datagen.job import DecodeOptions


class VideoWorker:
    """Answers `probe`, `at`, `clips` and `frames` requests."""

    def __init__(self, answers: Answers, options: DecodeOptions, image_size: int) -> None:
        self._answers = answers
        self._options = options
        self._image_size = image_size
        self._open: tuple[tuple[object, ...], Footage] | None = None
        gc.freeze()  # what is here now need not be looked at again, so that collecting costs next to nothing

    def serve(self, request: dict[str, Any]) -> None:
        """Answer one request. Raises DecodeError."""
        match request["kind"]:
            case "probe":
                self._probe(request["path"], request["uri"])
            case "at":
                self._answers.send({"kind": "frames_at", "numbers": self._video(request["path"]).frames_at(request["times_s"])})
            case "clips":
                self._clips(request)
            case "frames":
                self._frames(request)

    def _probe(self, path: str, uri: str) -> None:
        size_bytes, sha256 = (checksum_of_folder if is_frame_folder(path) else checksum)(path, self._answers.alive)
        self._answers.send({"kind": "read", "size_bytes": size_bytes, "sha256": sha256})
        fault_point("decode", uri)
        self._answers.send({"kind": "probed", "info": asdict(self._video(path).info)})

    def _clips(self, request: dict[str, Any]) -> None:
        video = self._video(request["path"])
        spans = clips_of(video, self._options, request["start_s"], request["clip_index"], request["shot_start_s"])
        for span in islice(spans, request["limit"]):
            self._answers.send({"kind": "clip", "span": asdict(span)})
        self._answers.send({"kind": "end"})

    def _frames(self, request: dict[str, Any]) -> None:
        video = self._video(request["path"])
        num_corrupt = video.num_corrupt
        self._answers.push({"kind": "plan", "plan": asdict(video.planned(request["start_s"], request["end_s"], request["wanted"]))})
        for shown in video.sampled(request["start_s"], request["end_s"], request["after_index"], request["wanted"]):
            fault_point("decode", f"{request['uri']}#frame={shown.frame_index};")
            frame = video.frame(shown, self._image_size)
            place = {"frame_index": frame.frame_index, "timestamp_s": frame.timestamp_s, "missing": request["missing"] + video.num_missing}
            self._answers.push({"kind": "frame", **place}, frame.pixels.tobytes())
            gc.collect()  # PyAV's frames and their side data hold one another: hundreds of megabytes before Python would notice
        counts = {"corrupt_packets": video.num_corrupt - num_corrupt, "missing": request["missing"] + video.num_missing}
        flags = video.flags(request["start_s"], request["end_s"])
        self._answers.send({"kind": "end", "truncated": video.info.truncated, "flags": flags, **counts})

    def _video(self, path: str) -> Footage:
        status = check_folder(path) if is_frame_folder(path) else check_file(path)
        key = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._open is None or self._open[0] != key:
            if self._open is not None:
                self._open[1].close()
                self._open = None
            self._open = key, open_footage(path, self._options, self._answers.alive)
        return self._open[1]


def open_footage(path: str, options: DecodeOptions, alive: Callable[[], None] = lambda: None) -> Footage:
    """A video of any kind: a file, an animated picture, or a folder of frames. Raises DecodeError as each of them does."""
    if is_frame_folder(path):
        return FrameFolder(path, options, alive)
    if is_webp(path):
        return AnimatedWebp(path, options, alive)
    return VideoFile(path, options, alive)
