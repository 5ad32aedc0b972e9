"""What a person sees of text from data: one line, without markup, without secrets, and printable (printable.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from datagen.printable import printable
from datagen.redaction import redact


def shown(value: Any) -> str:
    """A value from data as rich shows it on one line: no markup, no secret, nothing that is not printable."""
    return escape(printable(redact(str(value))))


class Screen(Console):
    """A console that shows text and obeys none: whatever reaches it, only rich's own styles become codes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As Console.render, with printable text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)
