"""Annotations that are pictures: each value of an indexed or grey picture is an object, 0 is none of them.

They come with somebody's data, so they are decoded in the child, as the frames are.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from datagen.decode.child import TRIES, crashed, timed_out
from datagen.decode.files import read_file
from datagen.decode.image import displayed
from datagen.decode.process import Child, ChildOwner
from datagen.errors import DecodeError
from datagen.job import DecodeOptions
from datagen.masks import encode_mask
from datagen.records import RLE

MAX_OBJECTS = 1024
"""More values than this in one picture are a photograph's, not an annotation's."""

_INDEXED = ("1", "L", "P", "I", "I;16")


def object_masks(path: str, max_pixels: int) -> dict[int, RLE]:
    """Value -> mask of every object in an annotation picture.

    Raises DecodeError as decode_image does, and `no_annotation` for a picture whose pixels are no numbers of objects.
    """
    image = displayed(read_file(path, max_pixels), max_pixels, turned=False)
    if image.mode not in _INDEXED:
        raise DecodeError(f"a picture of the kind {image.mode} has colours, and no numbers of objects", code="no_annotation")
    values = np.asarray(image).astype(np.int64)
    found = np.unique(values)
    if len(found) > MAX_OBJECTS:
        raise DecodeError(f"it has {len(found)} different values; an annotation has at most {MAX_OBJECTS}", code="no_annotation")
    return {int(value): encode_mask(values == value) for value in found if value > 0}


class MaskReader(ChildOwner):
    """Reads annotation pictures in a child process (see ChildOwner), which ends with `close`."""

    def __init__(self, options: DecodeOptions | None = None) -> None:
        super().__init__(options or DecodeOptions(), 1)

    def read(self, path: str) -> dict[int, RLE]:
        """Value -> mask (see object_masks). Raises DecodeError, also `decoder_crashed` and `decode_timeout`."""
        for left in reversed(range(TRIES)):
            child = self._running()
            try:
                answer = self._ask(child, path)
            except EOFError as error:
                failed = crashed(child, self._options)
                self._discard()
                if not left:
                    raise failed from error
            except TimeoutError as error:
                self._discard()
                raise timed_out(self._options.timeout_s) from error
            except BaseException:
                self._discard()
                raise
            else:
                break
        if answer["kind"] == "failed":
            raise DecodeError(answer["message"], code=answer["code"])
        return {int(value): mask for value, mask in answer["masks"].items()}

    def _ask(self, child: Child, path: str) -> dict[str, Any]:
        child.send({"kind": "masks", "path": path})
        return child.receive(time.monotonic() + self._options.timeout_s)
