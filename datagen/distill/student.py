"""The student: all parts of a PAM in one module, made from a config or read from a checkpoint, and written in the real layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from datagen.distill.config import StudentOptions
from datagen.errors import JobError
from datagen.job import ModelOptions
from datagen.pam.checkpoint import PERCEIVER, Checkpoint, checkpoint_folder, resolve_model
from datagen.pam.front_end import FrontEnd
from datagen.pam.llm import LLM_CONFIG_KEYS, load_tokenizer
from datagen.pam.projector import Projector
from datagen.pam.segmenter import HIERA_LARGE, build_segmenter, model_config
from datagen.pam.semantic_perceiver import SemanticPerceiver
from datagen.pam.tiny import checkpoint_config, write_tokenizer

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


class Student(nn.Module):
    """segmenter, perceiver, projector and language model with a tied word table, float32; `tokenizer` and `config` beside them."""

    def __init__(self, segmenter: nn.Module, segmenter_config: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.tokenizer = load_tokenizer(folder)
        dim, hidden = int(getattr(segmenter, "hidden_dim")), int(config["hidden_size"])  # noqa: B009 (a Module hides it from mypy)
        self.folder, self.segmenter_config = folder, dict(segmenter_config)
        self.config = {**config, "mm_hidden_size": dim}
        wanted = {name: config[name] for name in (*LLM_CONFIG_KEYS, "vocab_size", "eos_token_id") if name in config}
        llm = Qwen2Config(**wanted | {"initializer_range": 0.02})
        self.segmenter = segmenter
        self.perceiver = SemanticPerceiver(dim=dim)
        self.llm = Qwen2ForCausalLM(llm)
        self.projector = Projector((4 * dim, hidden, hidden), (dim, hidden, hidden), len(self.tokenizer))
        for name in ("image_newline", "semT_newline", "frame_newline"):
            nn.init.normal_(getattr(self.projector, name), std=0.02)
        self.projector.embed_tokens = self.llm.model.embed_tokens
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def stop_id(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))

    def front_end(self, training: bool = False) -> FrontEnd:
        """The segmenter and perceiver as the perceive step uses them; made anew, as it caches what depends on the device."""
        return FrontEnd(self.segmenter, self.perceiver, training=training)

    def export(self, folder: str | Path) -> Path:
        """Write it, bfloat16, as a checkpoint folder that `datagen run --model` takes, in place of what was there."""
        target = Path(folder)
        aside = target.with_name(f".{target.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "sam2").mkdir(parents=True)
        for name in _TOKENIZER:
            shutil.copyfile(self.folder / name, aside / name)
        for path, weights in (("sam2/model.safetensors", self.segmenter.state_dict()), ("model.safetensors", self._pam_weights())):
            save_file(_stored(weights), aside / path, metadata={"format": "pt"})
            (aside / path).chmod(0o644)  # safetensors lets nobody else read it
        _write_json(aside / "sam2" / "config.json", {"model": self.segmenter_config})
        _write_json(aside / "config.json", self.config)
        end = [self.stop_id, int(self.tokenizer.convert_tokens_to_ids("<|endoftext|>"))]
        _write_json(aside / "generation_config.json", {"eos_token_id": end})
        (aside / "README.md").write_text("---\nlicense: apache-2.0\n---\nA student trained by `datagen distill`.\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        return target

    def _pam_weights(self) -> dict[str, Tensor]:
        weights = {f"{PERCEIVER}{name}": tensor for name, tensor in self.perceiver.state_dict().items()}
        weights |= {f"model.{name}": tensor for name, tensor in self.projector.state_dict().items() if not name.startswith("embed_tokens")}
        return weights | {name: tensor for name, tensor in self.llm.state_dict().items() if name != "lm_head.weight"}


def new_student(options: StudentOptions, folder: Path, texts: Iterable[str], seed: int) -> Student:
    """A student with random weights, or the one that `options.init` names. folder: where its tokenizer is kept.

    texts: what the tokenizer of a new one is trained on, unless `options.tokenizer` names one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if options.init is not None:
        return load_student(options.init, options.segmenter)
    if options.tokenizer is not None:
        load_tokenizer(checkpoint_folder(ModelOptions(checkpoint=options.tokenizer))).save_pretrained(str(folder))
    else:
        write_tokenizer(folder, texts, options.vocabulary)
    tokenizer = load_tokenizer(folder)
    changes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>")}
    segmenter_config = _segmenter_config(HIERA_LARGE, options.segmenter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        segmenter = build_segmenter(segmenter_config, None)
        _point_at_prompts(segmenter)
        return Student(segmenter, segmenter_config, checkpoint_config() | options.llm | changes, folder)


def image_size_of(options: StudentOptions) -> int:
    """The side of the square pictures that the student sees, px; known before it is made."""
    base = HIERA_LARGE if options.init is None else resolve_model(ModelOptions(checkpoint=options.init)).sam2_config
    return int(_segmenter_config(base, options.segmenter)["image_size"])


def load_student(checkpoint: str, changes: Mapping[str, Any] = MappingProxyType({})) -> Student:
    """A student with the weights of a checkpoint folder or hub id. changes: entries of its SAM 2 config.

    Raises ModelLoadError when it is none, or when its weights do not fit the changed config.
    """
    files = resolve_model(ModelOptions(checkpoint=checkpoint))
    opened = Checkpoint(files.checkpoint)
    config = opened.config | {"vocab_size": len(load_tokenizer(files.checkpoint))}
    if not config.get("tie_word_embeddings"):
        raise JobError(f"{checkpoint} has an output head of its own; a student's is tied to its word table (tie_word_embeddings)")
    segmenter_config = _segmenter_config(files.sam2_config, changes)
    segmenter = build_segmenter(segmenter_config, files.sam2_state_dict())
    student = Student(segmenter, segmenter_config, config, files.checkpoint)
    student.perceiver.load_state_dict(dict(opened.tensors(PERCEIVER, torch.float32)))
    weights = dict(opened.tensors("model.", torch.float32))
    weights["embed_tokens.weight"] = weights["embed_tokens.weight"][: config["vocab_size"]]
    student.llm.model.load_state_dict({name: weights[name] for name in student.llm.model.state_dict()})
    student.projector.load_state_dict({name: weights[name] for name in student.projector.state_dict()})
    return student


def _segmenter_config(base: str | Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A SAM 2 config with entries changed. Raises JobError for a path that it does not have."""
    config = model_config(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node: Any = config
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise JobError(f"student.segmenter: the SAM 2 config has no {path}")
        node[last] = value
    return config


def _point_at_prompts(segmenter: nn.Module) -> None:
    """Let the mask decoder begin with attention between a prompt and the place that it names.

    Queries and keys of its cross attention start out alike, so that equal position codes attract each other, and what is added to
    those codes starts out small. With independent random projections a small model needs thousands of steps to see its prompts.
    """
    encoder, decoder = segmenter.get_submodule("sam_prompt_encoder"), segmenter.get_submodule("sam_mask_decoder")
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "embed" in name:
                weight.mul_(0.1)
        places = segmenter.get_parameter("image_encoder.trunk.pos_embed")  # zeros: features would not know where they are
        nn.init.normal_(places, std=0.5)
        for name in ("iou_token", "mask_tokens", "obj_score_token"):
            decoder.get_parameter(f"{name}.weight").mul_(0.3)
        for name, module in decoder.named_modules():
            if name.endswith(("attn_token_to_image", "attn_image_to_token")):
                query, key = module.get_submodule("q_proj"), module.get_submodule("k_proj")
                query.get_parameter("weight").mul_(3)
                key.load_state_dict(query.state_dict())


def _stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in state.items()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
