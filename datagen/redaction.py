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

HIDDEN = "***"

_SHORTEST = 8  # a shorter value of a variable would hide ordinary words
_SECRET_NAME = re.compile(r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|CREDENTIALS|API_?KEY|ACCESS_KEY)(?:$|_)", re.IGNORECASE)
_NAMES = (
    r"(?:aws_?)?secret_?(?:access_?)?key|(?:aws_?)?(?:session|security)_?token|(?:access|refresh|auth|id)_?token|api_?key|account_?key"
    r"|pass(?:word|wd|phrase)|client_?secret|private_?key|sig(?:nature)?|x-(?:amz|goog)-(?:signature|credential|security-token)"
)
# (what is found, what it becomes), applied in this order.
_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"(?<=://)[^\s/'\"<>]+@"), HIDDEN + "@"),
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
    """Redact a text file line by line; where there is nothing to hide it is not touched. temp: a path beside it, used meanwhile."""
    found, secrets = False, _environment_secrets()
    as_is: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with path.open(**as_is) as lines, temp.open("w", **as_is) as kept:
        for line in lines:
            clean = _clean(line, secrets)
            found |= clean != line
            kept.write(clean)
    if found:
        temp.replace(path)
    else:
        temp.unlink()


def _clean(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _environment_secrets() -> list[str]:
    """Longest first, so that one that begins with another goes as a whole. Names of files are no secrets."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and not name.endswith(("_FILE", "_PATH"))}
    return sorted((value for value in values if len(value) >= _SHORTEST and not value.startswith("/")), key=len, reverse=True)
