"""What the option groups of a job are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from datagen.errors import JobError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class Options(BaseModel):
    """Base of all option groups: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def read_yaml(path: str | Path, kind: str, hint: str = "") -> Any:
    """What a YAML file holds. Raises JobError, which calls the file `kind` where it cannot be read, and then gives the hint."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise JobError(f"cannot read the {kind} {path}: {error.strerror}.{hint and ' '}{hint}") from error
    return parse_yaml(data, str(path))


def parse_yaml(text: str | bytes, where: str) -> Any:
    """The value that a YAML text stands for. Raises JobError."""
    try:
        return yaml.safe_load(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except Exception as error:  # beside its own errors PyYAML raises those of whatever a tag or a number was given to
        raise JobError(f"{where} is not YAML: {error}") from error
