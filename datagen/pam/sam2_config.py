"""Configs of SAM 2: read as plain data, held against an exact list of what may be built, and built without hydra.

A config may come with a downloaded checkpoint. hydra and OmegaConf call whatever a `_target_` or an interpolation names, so neither of
them sees one: a text with `${` is refused, a target that is not listed is refused, and so is an argument that its class does not take.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from datagen.errors import JobError, ModelLoadError
from datagen.options import parse_yaml
from datagen.plain_json import read_json

HIERA_LARGE = "configs/sam2.1/sam2.1_hiera_l.yaml"

_TARGET = "_target_"
_DECODER = "sam_mask_decoder_extra_args"
_CLASSES: dict[str, type] = {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (
        *(Hiera, FpnNeck, ImageEncoder, MemoryAttention, MemoryAttentionLayer, CXBlock, Fuser, MaskDownSampler, MemoryEncoder),
        *(PositionEmbeddingSine, RoPEAttention, SAM2Base, SAM2VideoPredictor),
    )
}
# Arguments that read a file or start a compiler. They may be there with the value that does nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {"weights_path": (None,), "compile_image_encoder": (False, None)}
_TEXTS = {
    "activation": ("relu", "gelu", "glu"),
    "fpn_interp_model": ("nearest", "bilinear", "bicubic", "area"),
    "fuse_type": ("sum", "avg"),
}
_MAX_BYTES = 2**20
_MAX_DEPTH = 32
_MAX_ENTRIES = 10_000
_MAX_NUMBER = 2**24
_MAX_LAYERS = 1024


def read_config(name: str) -> Any:
    """What a config file holds, as plain data. name: of one in the sam2 package, or a YAML or JSON file. Raises ModelLoadError."""
    path = Path(name) if Path(name).is_file() else Path(str(files("sam2").joinpath(name)))
    if not path.is_file():
        raise ModelLoadError(f"no SAM 2 config named {name}: it is neither a file nor a config of the sam2 package, such as {HIERA_LARGE}")
    if name.endswith(".json"):
        return read_json(path, "the SAM 2 config", _MAX_BYTES)
    if path.stat().st_size > _MAX_BYTES:
        raise ModelLoadError(f"the SAM 2 config {name} has {path.stat().st_size} bytes; at most {_MAX_BYTES} are read")
    try:
        return parse_yaml(path.read_bytes(), f"the SAM 2 config {name}")
    except (OSError, JobError) as error:
        raise ModelLoadError(str(error)) from error


def model_node(data: Any) -> dict[str, Any]:
    """A copy of a config's model node, which is the config itself or stands under `model` or `resolved_model_config`.

    Raises ModelLoadError naming the key for whatever is no plain data, or may not be built.
    """
    for key in ("resolved_model_config", "model"):
        data = data.get(key, data) if isinstance(data, Mapping) else data
    if not isinstance(data, Mapping) or _TARGET not in data:
        raise ModelLoadError(
            "this is no SAM 2 config: found no model node with a `_target_`. Use a config of the sam2 package, such as " + HIERA_LARGE
        )
    node = _Checker().mapping(data, "", 0)
    if not issubclass(_CLASSES[node[_TARGET]], SAM2Base):
        raise ModelLoadError(f"the SAM 2 config builds {node[_TARGET]}; its model node must be a SAM2Base or SAM2VideoPredictor")
    return node


def build(node: Mapping[str, Any]) -> SAM2Base:
    """The model of a node that `model_node` returned. Raises ModelLoadError when its numbers do not fit together."""
    try:
        model: SAM2Base = _built(node)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise ModelLoadError(f"SAM 2 cannot be built from its config: {type(error).__name__}: {error}") from error
    return model


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        parts = {key: _built(item) for key, item in value.items() if key != _TARGET}
        return _CLASSES[value[_TARGET]](**parts) if _TARGET in value else parts
    return [_built(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Checker:
    """Copies plain data, or raises ModelLoadError with the key."""

    def __init__(self) -> None:
        self._left = _MAX_ENTRIES

    def mapping(self, value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
        names = self._names(value, where)
        copied: dict[str, Any] = {}
        for key, item in value.items():
            here = f"{where}.{key}" if where else str(key)
            if not isinstance(key, str) or key not in names:
                raise self._error(here[:200], "is no argument that may be given here", f"allowed: {', '.join(sorted(names))}")
            if key == _DECODER and item is not None and not isinstance(item, Mapping):
                raise self._error(here, f"is {item!r:.80}", "expected a mapping of the mask decoder's options")
            if key in _WITHOUT_EFFECT and not any(item is allowed for allowed in _WITHOUT_EFFECT[key]):
                raise self._error(here, f"is {item!r:.80}", "it would read a file or start a compiler; leave it out")
            copied[key] = item if key == _TARGET else self._value(item, here, key, depth + 1)
        return copied

    def _names(self, value: Mapping[Any, Any], where: str) -> frozenset[str]:
        if where == _DECODER:
            return _decoder_arguments()
        target = value.get(_TARGET)
        kind = _CLASSES.get(target) if isinstance(target, str) else None
        if kind is None:
            found = "has no `_target_`" if _TARGET not in value else f"wants to build {target!r:.200}"
            raise self._error(where or _TARGET, found, f"only modules of the sam2 package are allowed: {', '.join(sorted(_CLASSES))}")
        return _arguments(kind) | {_TARGET}

    def _value(self, value: Any, where: str, key: str, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise self._error(where, "is too much", f"a config has at most {_MAX_ENTRIES} entries, {_MAX_DEPTH} deep")
        if isinstance(value, str):
            if "${" in value:
                raise self._error(where, f"is {value!r:.80}", "an interpolation is never filled in; write the value itself")
            if value not in _TEXTS.get(key, ()):
                allowed = f"allowed: {', '.join(_TEXTS[key])}" if key in _TEXTS else "expected a number, not a text"
                raise self._error(where, f"is {value!r:.80}", allowed)
            return value
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, (int, float)):
            most = _MAX_LAYERS if key in ("num_layers", "stages") else _MAX_NUMBER
            if not math.isfinite(value) or abs(value) > most:
                raise self._error(where, f"is {value!r:.80}", f"expected a number of at most {most}")
            return value
        if isinstance(value, Mapping):
            return self.mapping(value, where, depth)
        if isinstance(value, (list, tuple)):
            return [self._value(item, f"{where}[{number}]", key, depth + 1) for number, item in enumerate(value)]
        raise self._error(where, f"is a {type(value).__name__}", "expected plain data: numbers, true or false, lists and mappings")

    @staticmethod
    def _error(where: str, found: str, instead: str) -> ModelLoadError:
        return ModelLoadError(f"the SAM 2 config: {where} {found}; {instead}")


@cache
def _arguments(kind: type) -> frozenset[str]:
    """Names that a class's constructor takes, also those that it hands to its parents'."""
    names: set[str] = set()
    for one in _constructors(kind):
        parameters = inspect.signature(one.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return frozenset(names)


def _constructors(kind: type) -> Iterator[Any]:
    yield from (one for one in kind.__mro__ if "__init__" in one.__dict__ and one is not object)


@cache
def _decoder_arguments() -> frozenset[str]:
    # What SAM2Base gives the decoder itself cannot be given a second time, and `activation` is a class.
    given = {"transformer", "transformer_dim", "activation"}
    return _arguments(MaskDecoder) - given
