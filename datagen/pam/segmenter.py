"""SAM 2 from the official package, unpatched, configured to behave as PAM's reference does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook

from datagen.errors import ModelLoadError
from datagen.pam.sam2_config import HIERA_LARGE, build, model_node, read_config

__all__ = ["HIERA_LARGE", "build_segmenter", "check_state_dict", "model_config", "without_values"]

# PAM was trained on the single-mask output; the fall-back to the best of three chooses its semantic token, never its mask.
_REFERENCE_BEHAVIOUR: dict[str, Any] = {"multimask_output_in_sam": False, "binarize_mask_from_pts_for_mem_enc": True}
_REFERENCE_DECODER: dict[str, Any] = {
    "dynamic_multimask_via_stability": False,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}


def build_segmenter(
    config: Mapping[str, Any] | str, state_dict: Mapping[str, Tensor] | None, device: str | torch.device = "cpu"
) -> SAM2Base:
    """SAM 2.1 in evaluation mode, float32, gradients off.

    config: the name of a config in the sam2 package (`configs/sam2.1/sam2.1_hiera_l.yaml`), the path of a YAML or JSON file, or
    the mapping itself: the model node, or it under `model` or `resolved_model_config`. state_dict: official key names, any float
    dtype; None leaves the random initialisation (or no values at all, on the `meta` device).
    Raises ModelLoadError for an unknown config, an image size that PAM cannot work at, and for missing, unexpected or wrong-shaped
    weights, naming them.
    """
    node = model_config(config)
    if state_dict is None and torch.device(device).type != "meta":
        return _ready(_instantiate(node).to(device))
    with without_values():
        model = _instantiate(node)
    if state_dict is not None:
        check_state_dict(model, state_dict, what="the SAM 2 weights")
        model.load_state_dict({key: tensor.to(torch.float32) for key, tensor in state_dict.items()}, assign=True)
        model.to(device)
    return _ready(model)


def model_config(config: Mapping[str, Any] | str) -> dict[str, Any]:
    """The model node of a SAM 2 config in any form that `build_segmenter` takes, with the reference's behaviour set.

    Plain data that names nothing but parts of SAM 2; anything else is a ModelLoadError (see sam2_config.py).
    """
    node = model_node(read_config(config) if isinstance(config, str) else config)
    node.update(_REFERENCE_BEHAVIOUR)
    node["sam_mask_decoder_extra_args"] = {**(node.get("sam_mask_decoder_extra_args") or {}), **_REFERENCE_DECODER}
    return node


@contextmanager
def without_values() -> Iterator[None]:
    """Modules built inside have parameters and buffers on the meta device: names, shapes and dtypes, but no memory.

    `torch.device("meta")` cannot do this for SAM 2, whose constructors compute with small tensors.
    """

    def parameter_to_meta(_module: nn.Module, _name: str, value: nn.Parameter | None) -> Any:
        return None if value is None else nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)

    def buffer_to_meta(_module: nn.Module, _name: str, value: Tensor | None) -> Any:
        return None if value is None else value.to("meta")

    handles = (register_module_parameter_registration_hook(parameter_to_meta), register_module_buffer_registration_hook(buffer_to_meta))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Raise ModelLoadError naming the keys unless `state_dict` has exactly the names and shapes of `model`."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state_dict.items()}
    wrong = [
        f"{key} is {list(found[key])}, expected {list(expected[key])}"
        for key in expected.keys() & found.keys()
        if found[key] != expected[key]
    ]
    problems = [
        *(f"missing: {key}" for key in sorted(expected.keys() - found.keys())),
        *(f"unexpected: {key}" for key in sorted(found.keys() - expected.keys())),
        *sorted(wrong),
    ]
    if problems:
        raise ModelLoadError(f"{what} do not fit the model ({len(problems)} keys): " + "; ".join(problems[:20]))


def _instantiate(node: Mapping[str, Any]) -> SAM2Base:
    size, stride = node.get("image_size", 512), node.get("backbone_stride", 16)  # SAM2Base's own defaults
    if not isinstance(stride, int) or stride <= 0:
        raise ModelLoadError(f"backbone_stride of the SAM 2 config is {stride!r}; expected a number of px, such as 16")
    cell = 4 * stride
    if not isinstance(size, int) or size <= 0 or size % cell:
        raise ModelLoadError(
            f"image_size of the SAM 2 config is {size!r}; the perceiver merges four by four cells of the feature grid, "
            f"so it must be a multiple of {cell} px, such as {2 * cell} or {3 * cell}"
        )
    return build(node)


def _ready(model: SAM2Base) -> SAM2Base:
    return model.eval().requires_grad_(False)
