"""What the option groups of a job are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from datagen.errors import JobError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]

_MAX_NODES = 100_000
_MAX_DEPTH = 64


class _Loader(yaml.SafeLoader):
    """Plain data only, and `1e-6` is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


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
    loader: Any = None
    try:
        loader = _Loader(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
        node = loader.get_single_node()
        _bound(node, {}, 0)
        return None if node is None else loader.construct_document(node)
    except Exception as error:  # beside its own errors PyYAML raises those of whatever a tag or a number was given to
        raise JobError(f"{where} is not YAML: {error or type(error).__name__}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _bound(node: Any, sizes: dict[int, int], depth: int) -> int:
    """How many nodes a YAML node is with its aliases filled in. Raises ValueError for too many, too deep, or one that holds itself."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}, or an anchor holds itself")
    if id(node) not in sizes:
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = (one for child in children for one in (child if isinstance(child, tuple) else (child,)))
        sizes[id(node)] = 1 + sum(_bound(one, sizes, depth + 1) for one in pairs)
    if sizes[id(node)] > _MAX_NODES:
        raise ValueError(f"with its aliases filled in it has more than {_MAX_NODES} entries")
    return sizes[id(node)]
