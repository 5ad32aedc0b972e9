"""Secrets in text: taken out of logs, run records, heartbeats and messages, wherever they came from.

What is recognised: values of environment variables whose names say that they are secret, user names and passwords in URIs, keys and
tokens by the form that their makers gave them, and whatever follows a name such as `password=` or `X-Amz-Signature=`. A secret that
looks like nothing (a bare AWS secret key of a profile, say) is not, so nothing here is a reason to log one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from datagen.printable import printable, without_colour

HIDDEN = "***"

_SHORTEST = 8  # a shorter value of a variable would hide ordinary words
_SECRET_NAME = re.compile(r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|CREDENTIALS|API_?KEY|ACCESS_KEY)(?:$|_)", re.IGNORECASE)
_NAMES = (
    r"(?:aws_?)?secret_?(?:access_?)?key|(?:aws_?)?(?:session|security)_?token|(?:access|refresh|auth|id)_?token|api_?key|account_?key"
    r"|pass(?:word|wd|phrase)|client_?secret|private_?key|sig(?:nature)?|x-(?:amz|goog)-(?:signature|credential|security-token)"
)
# Parameters of URLs that let whoever has them in: signatures, keys, tokens of all stores, and what goes with them.
_PARAMETERS = (
    r"x-(?:amz|goog|oss|cos|ms|bce|tos|obs)-(?:signature|credential|security-token|session-token|token)|(?:q-)?sig(?:nature)?|sign|hmac|policy"
    r"|key-pair-id|(?:aws|google|oss)?access_?(?:key_?)?id|(?:[a-z]+[_-])*(?:token|jwt|secret|password|passwd|pwd|credentials?)"
    r"|(?:[a-z]+[_-]?)*api_?key|auth(?:_?key|orization)?|key|hdn(?:ea|ts)|ticket"
)
_QUERY = re.compile(
    rf"(?i)(?P<name>(?:[?&;]|%3F|%26|#(?=[a-z]+_token))(?:{_PARAMETERS}))(?P<is>=|%3D)(?!\*\*\*)(?P<value>(?:(?!%26|%23)[^\s\"'<>&;#])+)"
)
_ESCAPED_NAME = re.compile(r"(?<=[?&;#])[A-Za-z]+(?:(?:%2D|%5F|[-_])[A-Za-z]+)+(?==)", re.IGNORECASE)
_NO_TEXT = re.compile("([\udc80-\udcff]+)")
_HIDDEN_VALUE = rf"\g<name>\g<is>{HIDDEN}"
_USER = re.compile(r"(?<=://)[^\s/'\"<>]+@")
# (what is found, what it becomes), applied in this order.
_PATTERNS = (
    (_QUERY, _HIDDEN_VALUE),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    (_USER, HIDDEN + "@"),
    (re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?)[^\r\n\"']+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)((?<![a-z0-9])(?:{_NAMES})[\"']?\s*[:=]\s*[\"']?)[^\s\"'&,;)}}\]]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)((?<![a-z0-9_])token[\"']?\s*[:=]\s*[\"']?)[^\s\"'&,;)}\]]{16,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\b(?:hf_|gh[oprsu]_|github_pat_|glpat-|sk-|xox[abprs]-|ya29\.|AIza)[\w-]{16,}"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"), HIDDEN),
)


def redact(text: str) -> str:
    """The text with `***` in place of what looks like a secret."""
    return _clean(text, _environment_secrets())


def signed_parameter(uri: str) -> str | None:
    """The name of the first parameter of a URI that is a signature, key or token; None where there is none."""
    start = re.search(r"\?|%3F", uri, re.IGNORECASE)
    match = _QUERY.search(_ESCAPED_NAME.sub(lambda found: unquote(found[0]), uri[start.start() :])) if start else None
    return None if match is None else re.sub(r"^(?:[?&;#]|%3F|%26)", "", match["name"], flags=re.IGNORECASE)


def redact_urls(value: Any) -> Any:
    """The same value with `***` in place of secrets of URLs in all of its strings, keys included; other text stays as it is."""
    if isinstance(value, str):
        if "=" not in value and "@" not in value and "%3" not in value:
            return value
        return _USER.sub(HIDDEN + "@", _QUERY.sub(_HIDDEN_VALUE, _ESCAPED_NAME.sub(lambda match: unquote(match[0]), value)))
    if isinstance(value, Mapping):
        return {redact_urls(key): redact_urls(item) for key, item in value.items()}
    return [redact_urls(item) for item in value] if isinstance(value, (list, tuple)) else value


def redact_values(value: Any) -> Any:
    """The same value with all strings in its lists and mappings redacted; keys stay, and so do other types."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_values(item) for item in value]
    return value


def redact_file(path: Path, temp: Path) -> None:
    """Redact a text file line by line, and make it printable; without anything to change it is not touched. temp: a path beside it."""
    secrets = _environment_secrets()
    as_is: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with path.open(**as_is) as lines:
        if all(_clean_line(line, secrets) == line for line in lines):
            return
    with path.open(**as_is) as lines, temp.open("w", **as_is) as kept:
        kept.writelines(_clean_line(line, secrets) for line in lines)
    temp.replace(path)


def _clean_line(line: str, secrets: Sequence[str]) -> str:
    text = line.rstrip("\r\n")
    # Bytes that are no text stay what they are.
    parts = _NO_TEXT.split(without_colour(_clean(text, secrets)))
    return "".join(part if _NO_TEXT.fullmatch(part) else printable(part, lines=True) for part in parts) + line[len(text) :]


def _clean(text: str, secrets: Sequence[str]) -> str:
    if "%2" in text or "%5" in text:  # a name of a parameter may be written with escapes
        text = _ESCAPED_NAME.sub(lambda match: unquote(match[0]), text)
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _environment_secrets() -> list[str]:
    """Longest first, so that one that begins with another goes as a whole. Names of files are no secrets."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and not name.endswith(("_FILE", "_PATH"))}
    return sorted((value for value in values if len(value) >= _SHORTEST and not value.startswith("/")), key=len, reverse=True)
