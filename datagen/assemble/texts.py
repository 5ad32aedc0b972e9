"""Reading the model's answers. Pure functions of one text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from datagen.records import Text

_QUOTES = "\"'“”‘’「」『』《》`*"
_STOPS = ".。．"
# The definition task answers "label: definition"; the weights also write a dash or a line break between the two.
_SEPARATOR = re.compile(r":\s|：|\s[-–—]\s|\n")
_LONGEST_LABEL = 80  # characters; what is longer is a sentence that happens to hold a separator
_SENTENCE_END = re.compile(r"[.!?]\s|[。！？]")
_CJK = re.compile(r"[㐀-䶿一-鿿豈-﫿]")
_LOOP = re.compile(r"(.{2,60}?)\1{3,}", re.DOTALL)
_SHORTEST_LOOP = 16  # characters; below, a repetition is a word (`hahahaha`) or a rule (`--------`)


def clean_label(text: str) -> str:
    """The first line of a label, without quotes around it and without a full stop."""
    line = next((line.strip() for line in text.split("\n") if line.strip()), "")
    return line.strip(_QUOTES).rstrip(_STOPS).strip(_QUOTES).strip()


def split_definition(text: str) -> tuple[str | None, str]:
    """(label, definition) of an answer to the definition task.

    Split at the first of `: `, `：`, ` - ` (or an en or em dash) and a line break. When there is none, or when what stands
    before it is no label (empty, a sentence, or very long), the label is None and the definition is the whole text.
    """
    text = text.strip()
    match = _SEPARATOR.search(text)
    if match is None:
        return None, text
    head, rest = text[: match.start()], text[match.end() :].strip()
    label = clean_label(head)
    if not label or not rest or len(label) > _LONGEST_LABEL or _SENTENCE_END.search(head):
        return None, text
    return label, rest


def text_flags(text: Text, language: str) -> list[str]:
    """What is wrong with a text: `truncated`, `repetition`, `empty_text`, `other_language`; in this order, mostly nothing."""
    loop = _LOOP.search(text.text)
    found = {
        "truncated": text.finish_reason == "length",
        "repetition": loop is not None and len(loop.group(0)) >= _SHORTEST_LOOP,
        "empty_text": not has_letter(text.text),
        "other_language": has_letter(text.text) and not _is_in(language, text.text),
    }
    return [flag for flag, is_set in found.items() if is_set]


def has_letter(text: str) -> bool:
    """Whether anything in the text is a letter of any script."""
    return any(character.isalpha() for character in text)


def label_logprob(texts: Mapping[tuple[str, str], Text]) -> float | None:
    """Mean log-probability of the labels over languages, or of the definitions where no label was asked for; None without either."""
    for task in ("label", "definition"):
        values = [text.logprob for (asked, _), text in texts.items() if asked == task and text.logprob is not None]
        if values:
            return sum(values) / len(values)
    return None


def _is_in(language: str, text: str) -> bool:
    num_cjk = len(_CJK.findall(text))
    if language == "zh":
        return num_cjk > 0
    return 2 * num_cjk <= sum(character.isalpha() for character in text)
