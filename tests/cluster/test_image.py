"""The Dockerfile installs what the Makefile installs, from files that are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_torch_and_build_tools_are_the_makefiles() -> None:
    for pattern in (r"torch==[\d.]+\d", r"setuptools==[\d.]+\d", r"SAM2_BUILD_CUDA=\d", r"--no-deps --no-build-isolation --requirement"):
        assert set(re.findall(pattern, DOCKERFILE)) == set(re.findall(pattern, MAKEFILE)) != set(), pattern


def test_locks_agree_on_torch() -> None:
    (version,) = set(re.findall(r"torch==[\d.]+\d", DOCKERFILE))
    assert f"\n{version} " in (ROOT / "requirements" / "gpu.lock").read_text()


def test_all_that_is_copied_is_there_and_all_that_is_shipped_is_copied() -> None:
    copied = {source for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()}
    assert all((ROOT / source).exists() for source in copied)
    folders = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values())
    assert {f"{folder}/" for folder in folders} <= copied
