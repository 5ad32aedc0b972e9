"""What the option groups of a job are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from datagen.errors import JobError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]

_MAX_NODES = 100_000
_MAX_DEPTH = 64


class _Loader(yaml.SafeLoader):
    """Plain data only, read as YAML 1.2 does: `1e-6` is a number, 22:30, no, off, yes and 2026-11-26 are text as they stand.

    YAML 1.1, which PyYAML follows, makes 1350, false and a date of them. A field that is yes or no takes these words all the same.
    """


_TAG = "tag:yaml.org,2002:"
_OCTAL = "!leading-zero"
_DIGIT = list("-+0123456789")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in ("bool", "int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _first in (
    (f"{_TAG}bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (f"{_TAG}int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)", _DIGIT),
    (_OCTAL, r"[-+]?0(?:[0-9_]+|o[0-7_]+)", _DIGIT),
    (f"{_TAG}float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?", [*_DIGIT, "."]),
    (f"{_TAG}float", r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+", _DIGIT),
    (f"{_TAG}float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(_kind, re.compile(f"(?:{_pattern})$"), _first)


def _refuse_octal(loader: _Loader, node: yaml.ScalarNode) -> None:
    line, text = node.start_mark.line + 1, node.value
    message = f"{text} begins with a zero, which is octal to some readers of YAML and not to others; leave the zero out, or quote a text"
    raise _RefusedError(line, message)


class _RefusedError(Exception):
    """What is YAML, and is not taken. line: from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


_Loader.add_constructor(_OCTAL, _refuse_octal)


class Options(BaseModel):
    """Base of all option groups: frozen, unknown keys are errors, and true and false are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_flag_as_a_number(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items():
            value = values.get(name) if isinstance(values, dict) else None
            some = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else (value,)
            kinds = _kinds(field.annotation)
            if bool not in kinds and kinds & {int, float} and any(isinstance(one, bool) for one in some):
                raise ValueError(f"`{name}`: a number is expected, and true or false is none")
        return values


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field takes, also those inside of unions, lists and mappings."""
    inner = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return set().union(*map(_kinds, inner)) if inner else {annotation}


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
        _refuse_repeated(node)
        return None if node is None else loader.construct_document(node)
    except _RefusedError as error:
        raise JobError(f"{where}, {error}") from error
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


def _refuse_repeated(root: Any) -> None:
    """Raises _RefusedError where a mapping has one key twice: YAML would take the last and say nothing."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        lines: dict[Any, int] = {}
        for key, value in node.value:
            waiting.append(value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                message = f"the key `{key.value}` stands there for the second time, first in line {lines[key.value]}; put both together"
                raise _RefusedError(line, message)
            lines[key.value] = line
