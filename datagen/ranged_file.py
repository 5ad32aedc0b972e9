"""A file elsewhere as Python's own readers want one: random access over reads of ranges."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from typing import Any


class RangedFile(io.RawIOBase):
    """For random access. A subclass says how long the file is, in `size`, bytes, and reads ranges of it."""

    size: int

    def __init__(self) -> None:
        super().__init__()
        self._position = 0

    @abstractmethod
    def range(self, start: int, size: int) -> bytes:
        """The bytes from `start` on; never asked for any behind the end."""

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position; 0 at the end."""
        view = memoryview(buffer).cast("B")
        size = min(len(view), max(self.size - self._position, 0))
        if not size:
            return 0
        data = self.range(self._position, size)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        self._position = max(0, offset + (0, self._position, self.size)[whence])
        return self._position

    def tell(self) -> int:
        """The current position."""
        return self._position

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True
