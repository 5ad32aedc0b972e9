"""The embedded checkpoint: a PAM of a few megabytes with random weights, in the layout of the real ones; other sizes on demand.

It lets every path run on any machine, offline, in seconds. Its masks follow the picture only loosely and its words mean
nothing. Images are 256 x 256 pixels, a region has 64 image tokens, and the language model is a Qwen2 of two layers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from datagen.pam.prompts import IMAGE_PROMPTS, SYSTEM, VIDEO_PROMPTS

IMAGE_SIZE = 256
HIDDEN = 128
_VOCABULARY = 480  # what the tokenizer can say; the prompts have enough pairs for this many merges
_STORED_ROWS = 640  # as in the real checkpoints, the table has more rows than the tokenizer has entries
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PRE_TOKENIZER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SEGMENTER: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "num_maskmem": 3,
    "image_encoder.trunk.embed_dim": 16,
    "image_encoder.trunk.num_heads": 1,
    "image_encoder.trunk.stages": [1, 1, 2, 1],
    "image_encoder.trunk.global_att_blocks": [3],
    "image_encoder.neck.backbone_channel_list": [128, 64, 32, 16],
    "memory_attention.num_layers": 1,
    "memory_attention.layer.dim_feedforward": 64,
    "memory_attention.layer.self_attention.downsample_rate": 2,
    "memory_attention.layer.cross_attention.downsample_rate": 2,
    "memory_encoder.fuser.num_layers": 1,
}


def build_tiny(folder: str | Path, seed: int = 0) -> Path:
    """Write the embedded checkpoint into `folder`, which is made; the same seed gives the same bytes. Returns the folder."""
    return build_random(folder, seed=seed)


def build_random(
    folder: str | Path, *, llm: Mapping[str, Any] | None = None, segmenter: Mapping[str, Any] | None = None, seed: int = 0
) -> Path:
    """Write a checkpoint with random weights of any size into `folder`, which is made.

    llm: entries of `config.json` to change, such as `{"hidden_size": 512}`. segmenter: entries of the SAM 2 config, by dotted
    path, such as `{"image_size": 512}`. Both change the embedded checkpoint's; the same arguments give the same bytes.
    """
    folder = Path(folder)
    (folder / "sam2").mkdir(parents=True)
    config = checkpoint_config() | dict(llm or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _write_segmenter(folder / "sam2", _SEGMENTER | dict(segmenter or {}))
        write_tokenizer(folder)
        _write_json(folder / "config.json", config)
        _write_json(folder / "generation_config.json", {"eos_token_id": [_special_id("<|im_end|>"), _special_id("<|endoftext|>")]})
        save_file(_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _write_segmenter(folder: Path, changes: Mapping[str, Any]) -> None:
    from datagen.pam.segmenter import HIERA_LARGE, build_segmenter, model_config

    config = model_config(HIERA_LARGE)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    model = build_segmenter(config, None)
    _make_decisive(model.sam_mask_decoder)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    _write_json(folder / "config.json", {"model": config})


def _make_decisive(decoder: nn.Module) -> None:
    """Random masks are faint, alike for all prompts, and cover half the picture; segment-everything would find nothing in them."""
    parts: Any = decoder
    with torch.no_grad():
        for name, weight in parts.transformer.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight *= 4  # sharper attention: the answer depends on where the prompt is
        parts.output_upscaling[3].bias[0] = 4.0  # a channel that is nearly constant ...
        for hypernetwork in parts.output_hypernetworks_mlps:
            last = hypernetwork.layers[-1]
            last.weight *= 1600  # large logits: masks that are stable
            last.bias *= 20
            last.weight[0], last.bias[0] = 0.0, -25.0  # ... so that this lowers all logits, and only peaks stay
        parts.iou_prediction_head.layers[-1].bias += 2.0
        parts.pred_obj_score_head.layers[-1].bias += 3.0


def checkpoint_config() -> dict[str, Any]:
    """`config.json` of the embedded checkpoint."""
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "mm_projector_type": "mlp2x_gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": _STORED_ROWS,
        "eos_token_id": _special_id("<|im_end|>"),
    }


def _weights(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Everything of PAM but SAM 2, bfloat16."""
    tensors = (*_llm_weights(config), *_vision_weights(config["hidden_size"], config["vocab_size"]))
    return {name: tensor.detach().bfloat16().contiguous() for name, tensor in tensors}


def _llm_weights(config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    options = {name: value for name, value in config.items() if name not in ("architectures", "model_type", "torch_dtype")}
    # Wide enough that one token does not simply call for itself again.
    model = Qwen2ForCausalLM(Qwen2Config(**options, initializer_range=0.15))
    with torch.no_grad():
        # Louder than the others, so that answers end now and then.
        model.model.embed_tokens.weight[_special_id("<|im_end|>")] *= 1.5
    yield from ((name, tensor) for name, tensor in model.state_dict().items() if name != "lm_head.weight")


def _vision_weights(hidden: int, stored_rows: int) -> Iterator[tuple[str, Tensor]]:
    from datagen.pam.projector import Projector
    from datagen.pam.semantic_perceiver import SemanticPerceiver

    perceiver = SemanticPerceiver()
    yield from ((f"model.vision_resampler.{name}", tensor) for name, tensor in perceiver.state_dict().items())
    projector = Projector((1024, hidden, hidden), (256, hidden, hidden), stored_rows)
    for name, tensor in projector.state_dict().items():
        if name.endswith("newline"):
            yield f"model.{name}", torch.randn(hidden) * 0.15
        elif not name.startswith("embed_tokens"):
            yield f"model.{name}", tensor


def write_tokenizer(folder: Path, texts: Iterable[str] = (), vocabulary: int = _VOCABULARY) -> None:
    """A byte-level BPE with Qwen2's pre-tokenizer, trained on the prompts and on `texts`, so that those become few tokens.

    vocabulary: entries at most, special ones included, which come last.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(_SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    prompts = (SYSTEM, "system user assistant", *IMAGE_PROMPTS.values(), *VIDEO_PROMPTS.values())
    tokenizer.train_from_iterator([*prompts, *texts], trainer)
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "errors": "replace"}
    _write_json(folder / "tokenizer_config.json", settings | {"additional_special_tokens": ["<|im_start|>"]})


def _special_id(token: str) -> int:
    return _VOCABULARY - len(_SPECIAL) + _SPECIAL.index(token)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
