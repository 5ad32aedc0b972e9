"""The command line, in this process: its own start would be most of the time of the tests that use it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from datagen.cli import main


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


Datagen = Callable[..., Result]


def call_with(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Datagen:
    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["datagen", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Result(int(ended.value.code or 0), *capfd.readouterr())

    return call
