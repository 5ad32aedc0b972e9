"""What the processes of an engine say while it starts: handed on to where it would have gone, and its end kept, to quote the cause."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_KEPT_LINES = 400
_SHOWN_CHARS = 500
_ENDED_S = 5.0
# What vLLM puts before what its processes say: who, when and where.
_PREFIX = re.compile(r"^(?:\x1b\[[0-9;]*m)*(?:\([^)]*pid=\d+\))?(?:\x1b\[[0-9;]*m|\s)*(?:[A-Z]+ \d\d-\d\d [\d:]+ \[[^\]]*\]\s?)?")
_ERROR = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Failure|Dead)\b(?::|$)")
# It says no more than that something was wrong.
_EMPTY_WORDS = ("Engine core initialization failed", "EngineCore failed to start")


class Overheard:
    """The last lines of what was said."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._thread: threading.Thread | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the standard streams of this process and of those that it starts meanwhile; to theirs for as long as they live."""
        sys.stdout.flush()
        sys.stderr.flush()
        reader, writer = os.pipe()
        before = os.dup(1), os.dup(2)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(writer)
        self._thread = threading.Thread(target=self._hand_on, args=(reader, os.dup(before[1])), name="overhear", daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in zip((1, 2), before, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)

    def _hand_on(self, reader: int, target: int) -> None:
        rest = b""
        while data := os.read(reader, 65536):
            with suppress(OSError):  # nobody reads it, and the engine is not to end of that
                view = memoryview(data)
                while view:
                    view = view[os.write(target, view) :]
            *lines, rest = (rest + data).split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace") for line in lines)
        self._lines.append(rest.decode("utf-8", "replace"))
        os.close(reader)
        os.close(target)

    def last_error(self) -> str:
        """The last error that was said, in its own words; else the last line; empty where there was none."""
        if self._thread is not None:
            self._thread.join(_ENDED_S)  # until those that speak have ended
        lines = [_PREFIX.sub("", line).strip() for line in list(self._lines)]
        errors = [line for line in lines if _ERROR.match(line) and not any(words in line for words in _EMPTY_WORDS)]
        return next(reversed(errors or [line for line in lines if line]), "")[:_SHOWN_CHARS]
