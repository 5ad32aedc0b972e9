"""The parent's side of decoding images: a broken file may crash or hang the child, and costs only itself."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from datagen.decode.image import Decoded
from datagen.decode.limits import out_of_memory
from datagen.decode.process import Child, ChildOwner
from datagen.errors import DecodeError
from datagen.job import DecodeOptions
from datagen.spans import VideoInfo

# How often a file may kill its process: the first death need not be its fault.
TRIES = 2


@dataclass(slots=True)
class Outcome:
    """What is known after one file: size and checksum once it was read, then either `decoded` (image), `info` (video) or `error`."""

    size_bytes: int | None = None
    sha256: str | None = None
    decoded: Decoded | None = None
    info: VideoInfo | None = None
    error: DecodeError | None = None


def crashed(child: Child, options: DecodeOptions) -> DecodeError:
    """The error for a file that killed its process as often as it may."""
    epitaph = child.epitaph()
    if child.ran_out_of_memory():
        return out_of_memory(options, epitaph)
    limit = f"decode.memory_gib is {options.memory_gib:g}"
    return DecodeError(f"decoding killed its process, {TRIES} times in a row: {epitaph} ({limit})", code="decoder_crashed")


def timed_out(timeout_s: float) -> DecodeError:
    """The error for a file that hangs its process."""
    return DecodeError(f"decoding took longer than decode.timeout_s ({timeout_s:g} s)", code="decode_timeout")


class DecoderProcess(ChildOwner):
    """One long-lived child that reads and decodes image files one at a time (see ChildOwner)."""

    def decode(self, path: str, uri: str) -> Outcome:
        """Read and decode one file. When the child dies the file is tried once more, as it need not be the cause; a hang is final.

        The outcome's error codes are those of `decode_image` and `read_file`, `decoder_crashed` and `decode_timeout`.
        """
        for _ in range(TRIES):
            outcome = self._try(path, uri)
            if outcome.error is None or outcome.error.code != "decoder_crashed":
                break
        return outcome

    def _try(self, path: str, uri: str) -> Outcome:
        outcome, child = Outcome(), self._running()
        try:
            self._exchange(child, path, uri, outcome)
        except TimeoutError:
            outcome.error = timed_out(self._options.timeout_s)
        except EOFError:
            outcome.error = crashed(child, self._options)
        except BaseException:
            # Such as Ctrl-C: an answer may be half read, so this child cannot be asked again.
            self._discard()
            raise
        else:
            return outcome
        self._discard()
        return outcome

    def _exchange(self, child: Child, path: str, uri: str, outcome: Outcome) -> None:
        deadline = time.monotonic() + self._options.timeout_s
        child.send({"kind": "image", "path": path, "uri": uri})
        answer = child.receive(deadline)
        if answer["kind"] == "read":
            outcome.size_bytes, outcome.sha256 = answer["size_bytes"], answer["sha256"]
            answer = child.receive(deadline)
        if answer["kind"] == "failed":
            outcome.error = DecodeError(answer["message"], code=answer["code"])
            return
        pixels = np.empty((self._image_size, self._image_size, 3), dtype=np.uint8)
        child.fill(pixels.data.cast("B"), deadline)
        outcome.decoded = Decoded(answer["width"], answer["height"], pixels, answer["num_frames"], answer["is_turned"])
