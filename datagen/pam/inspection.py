"""What a checkpoint holds, against what its config calls for. Nothing is loaded: names and shapes only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from datagen.errors import ModelLoadError
from datagen.job import ModelOptions
from datagen.pam.checkpoint import PERCEIVER, TOWER, Checkpoint, resolve_model

Shapes = Mapping[str, tuple[int, ...]]

# First match wins; the rest is the language model.
_GROUPS: dict[str, str | tuple[str, ...]] = {
    "segmenter in the checkpoint": TOWER,
    "perceiver": PERCEIVER,
    "image projector": "model.mm_projector_img.",
    "semantic projector": "model.mm_projector_semT.",
    "newlines": ("model.image_newline", "model.semT_newline", "model.frame_newline"),
}
_LLM = "language model"
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(slots=True)
class Group:
    """One part of the model. dtypes: as stored, such as `BF16`, to number of tensors."""

    num_tensors: int = 0
    num_parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class CheckpointReport:
    """What `datagen model show` prints. The problem lists name keys; `ok` when all three are empty."""

    groups: dict[str, Group] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)
    sam2_weights: str = ""
    sam2_config: str = ""

    @property
    def ok(self) -> bool:
        """Whether the checkpoint can be loaded."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def inspect_checkpoint(options: ModelOptions) -> CheckpointReport:
    """Compare a checkpoint and its SAM 2.1 weights with what their configs call for, key by key.

    Strict for the language model, perceiver, projectors, newlines and the SAM 2.1 weights in use. Tolerant where the reference
    is: a second copy of SAM 2.1 inside the checkpoint is only counted, and a tied output head may be absent. Raises
    ModelLoadError when there is nothing to inspect.
    """
    files = resolve_model(options)
    checkpoint = Checkpoint(files.checkpoint)
    report = compare(checkpoint.config, checkpoint.shapes, checkpoint.dtypes)
    state = files.sam2_state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    _compare(report, segmenter_shapes(files.sam2_config), shapes, prefix="" if files.sam2_weights else TOWER)
    if files.sam2_weights is not None:
        _count(report, "segmenter", shapes, {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in state.items()})
    report.sam2_weights, report.sam2_config = str(files.sam2_weights or f"{files.checkpoint} ({TOWER}*)"), files.sam2_config
    return report


def compare(config: Mapping[str, Any], shapes: Shapes, dtypes: Mapping[str, str] | None = None) -> CheckpointReport:
    """Compare the names and shapes of a PAM checkpoint with its config; SAM 2.1 weights inside it are counted, not compared."""
    report = CheckpointReport()
    for key, shape in shapes.items():
        _count(report, _group_of(key), {key: shape}, dtypes or {})
    expected = expected_shapes(config)
    if config.get("tie_word_embeddings", True) and _HEAD not in shapes:
        del expected[_HEAD]
    _compare(report, expected, {key: shape for key, shape in shapes.items() if not key.startswith(TOWER)})
    return report


def expected_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every name and shape that a PAM checkpoint of this config has, without the copy of SAM 2.1 (built on the meta device).

    Raises ModelLoadError for a config that no language model can be made of.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from datagen.pam.llm import LLM_CONFIG_KEYS
    from datagen.pam.segmenter import without_values
    from datagen.pam.semantic_perceiver import SemanticPerceiver

    wanted = {key: config[key] for key in (*LLM_CONFIG_KEYS, "vocab_size") if key in config}
    try:
        with torch.device("meta"):
            llm = Qwen2ForCausalLM(Qwen2Config(**wanted))
    except Exception as error:  # whatever a number or name that fits no model makes transformers raise
        raise ModelLoadError(f"no language model can be made of config.json: {type(error).__name__}: {error}") from error
    with without_values():
        perceiver = SemanticPerceiver(dim=int(config.get("mm_hidden_size", 256)))
    shapes = {key: tuple(tensor.shape) for key, tensor in llm.state_dict().items()}
    shapes |= {PERCEIVER + key: tuple(tensor.shape) for key, tensor in perceiver.state_dict().items()}
    shapes[_HEAD] = shapes[_EMBEDDING]
    return shapes | _projector_shapes(int(config["hidden_size"]), int(config.get("mm_hidden_size", 256)))


def segmenter_shapes(sam2_config: str) -> dict[str, tuple[int, ...]]:
    """Every name and shape of SAM 2.1 weights for this config."""
    from datagen.pam.segmenter import build_segmenter

    return {key: tuple(tensor.shape) for key, tensor in build_segmenter(sam2_config, None, device="meta").state_dict().items()}


def _projector_shapes(hidden: int, dim: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"model.{name}_newline": (hidden,) for name in ("image", "semT", "frame")}
    for name, width in (("img", 4 * dim), ("semT", dim)):
        for layer, inputs in ((0, width), (2, hidden)):
            shapes[f"model.mm_projector_{name}.{layer}.weight"] = (hidden, inputs)
            shapes[f"model.mm_projector_{name}.{layer}.bias"] = (hidden,)
    return shapes


def _compare(report: CheckpointReport, expected: Shapes, found: Shapes, prefix: str = "") -> None:
    report.missing += [prefix + key for key in sorted(expected.keys() - found.keys())]
    report.unexpected += [prefix + key for key in sorted(found.keys() - expected.keys())]
    for key in sorted(expected.keys() & found.keys()):
        if expected[key] != found[key]:
            report.wrong_shape.append(f"{prefix}{key} is {list(found[key])}, not {list(expected[key])}")


def _count(report: CheckpointReport, name: str, shapes: Shapes, dtypes: Mapping[str, str]) -> None:
    group = report.groups.setdefault(name, Group())
    for key, shape in shapes.items():
        group.num_tensors += 1
        group.num_parameters += math.prod(shape)
        dtype = dtypes.get(key, "unknown")
        group.dtypes[dtype] = group.dtypes.get(dtype, 0) + 1


def _group_of(key: str) -> str:
    return next((name for name, prefix in _GROUPS.items() if key.startswith(prefix)), _LLM)
