"""The way of text from data to a terminal or a text log: nothing in it may move the cursor, turn the reading direction, or forge a line."""

from __future__ import annotations

import re

# Control characters of both sets, format characters that turn the direction of text or are not seen, separators of lines, half pairs.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_BREAKS = re.compile("[\t\n]")
_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_WORDS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str, *, lines: bool = False) -> str:
    """The text with an escape, such as `\\x1b`, in place of every character that does something else than show.

    lines: line breaks and tabs stay, for text of our own that has several lines; a line break in data is one more escape.
    """
    text = _UNSAFE.sub(_escaped, text)
    return text if lines else _BREAKS.sub(_escaped, text)


def printable_json(text: str) -> str:
    """A line of JSON with JSON's own escapes in place of such characters, so that it says the same."""
    return _UNSAFE.sub(lambda match: "".join(f"\\u{unit:04x}" for unit in _utf16(match[0])), text)


def without_colour(text: str) -> str:
    """A line of a log without the codes of colours that libraries write."""
    return _COLOUR.sub("", text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return _WORDS.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def _utf16(character: str) -> list[int]:
    data = character.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
