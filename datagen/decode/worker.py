"""The decoding child process: serves one request after the other (see wire.py) until its standard input closes."""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import threading
from typing import Any

from datagen.decode.files import read_file
from datagen.decode.image import Decoded, decode_image
from datagen.decode.limits import limit_memory, out_of_memory
from datagen.decode.wire import Answers, receive_requests
from datagen.errors import DecodeError
from datagen.faults import fault_point
from datagen.job import DecodeOptions


def main(options_json: str, image_size: int) -> None:
    """Serve requests on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = DecodeOptions.model_validate_json(options_json)
    # Whatever a library prints must not end up in the answers.
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=receive_requests, args=(requests,), daemon=True).start()
    worker = Worker(Answers(pipe, options), options, image_size)
    limit_memory(options.memory_gib)
    worker.answers.send({"kind": "ready"})
    worker.answers.stop_clock()
    while True:
        worker.serve(requests.get())


class Worker:
    """Answers requests, one at a time; what videos need is loaded with the first of them."""

    def __init__(self, answers: Answers, options: DecodeOptions, image_size: int) -> None:
        self.answers = answers
        self._options = options
        self._image_size = image_size
        self._videos: Any = None

    def serve(self, request: dict[str, Any]) -> None:
        """Answer one request; a DecodeError is an answer, as is a lack of memory; anything else ends the process."""
        self.answers.start_clock()
        failed: DecodeError | None = None
        try:
            if request["kind"] == "image":
                self._image(request["path"], request["uri"])
            elif request["kind"] == "masks":
                self._masks(request["path"])
            else:
                self._video(request)
        except DecodeError as error:
            failed = error
        except MemoryError:
            self._videos = None  # a decoder that got no memory is not gone on with
            failed = out_of_memory(self._options)
        if failed is not None:
            self.answers.send({"kind": "failed", "code": failed.code, "message": failed.message})
        self.answers.stop_clock()

    def _image(self, path: str, uri: str) -> None:
        data = read_file(path, self._options.max_pixels)
        self.answers.send({"kind": "read", "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
        fault_point("decode", uri)
        decoded: Decoded = decode_image(data, self._options, self._image_size)
        about = {name: getattr(decoded, name) for name in ("width", "height", "num_frames", "is_turned")}
        self.answers.send({"kind": "decoded", **about}, decoded.pixels.tobytes())

    def _masks(self, path: str) -> None:
        from datagen.decode.object_masks import object_masks

        self.answers.send({"kind": "masks", "masks": object_masks(path, self._options.max_pixels)})

    def _video(self, request: dict[str, Any]) -> None:
        if self._videos is None:
            from datagen.decode.video_worker import VideoWorker

            self._videos = VideoWorker(self.answers, self._options, self._image_size)
        self._videos.serve(request)
