"""The language model of a PAM checkpoint, as a plain Qwen2 folder that every engine can load."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from datagen.errors import ModelLoadError
from datagen.pam.checkpoint import AGAIN, Checkpoint
from datagen.share import cache_folder

_FORMAT = "1"  # raise it when what is written changes, so that old cache entries are not used
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_CONFIG_KEYS = (
    "attention_dropout",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
)
_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_LLM_PREFIXES = ("model.layers.", "model.norm.", _EMBEDDING, _HEAD)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a checkpoint folder. Raises ModelLoadError when its files are missing or broken."""
    from transformers import Qwen2Tokenizer

    if not any(all((Path(folder) / name).is_file() for name in names) for names in (("tokenizer.json",), ("vocab.json", "merges.txt"))):
        # transformers would make an empty one.
        raise ModelLoadError(f"{folder} has no tokenizer (tokenizer.json, or vocab.json with merges.txt). Download the checkpoint again")
    try:
        return Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ModelLoadError(f"{folder} has no usable tokenizer ({error}). {AGAIN}") from error


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hex digits of the SHA-256 of what every id of a tokenizer stands for, special tokens included.

    Two tokenizers with the same one may cut a text differently, but mean the same by a sequence of ids.
    """
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def stop_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Ids that end an answer: `eos_token_id` of generation_config.json, or else of config.json.

    Raises ModelLoadError when neither has one.
    """
    generation = checkpoint.folder / "generation_config.json"
    configs = [json.loads(generation.read_text(encoding="utf-8"))] if generation.is_file() else []
    for config in (*configs, checkpoint.config):
        ids = config.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    raise ModelLoadError(f"{checkpoint.folder}: no eos_token_id in generation_config.json or config.json, so no answer would ever end")


def prepare_llm(checkpoint: Checkpoint, cache_dir: Path | None = None) -> Path:
    """A folder with the checkpoint's LLM alone as `Qwen2ForCausalLM`, written once and then found again by content.

    Embedding table and head are cut to the tokenizer's length, as the reference does after loading, so that no engine can
    produce an id without a text. Works shard by shard: memory for one shard is enough. Safe with several processes at once.
    Raises ModelLoadError when LLM weights are missing or the vocabulary is longer than the embedding table.
    """
    vocabulary = len(load_tokenizer(checkpoint.folder))
    _check(checkpoint, vocabulary)
    root = (cache_dir or cache_folder()) / "llm"
    root.mkdir(parents=True, exist_ok=True)
    target = root / _content_hash(checkpoint)
    with _locked(target.with_suffix(".lock")):
        if not target.is_dir():
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=root))
            try:
                _write(checkpoint, vocabulary, staging)
                staging.chmod(0o755)
                staging.rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    return target


def _is_tied(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.config.get("tie_word_embeddings", False))


def _check(checkpoint: Checkpoint, vocabulary: int) -> None:
    where = checkpoint.folder
    wanted = [_EMBEDDING, "model.norm.weight", *(() if _is_tied(checkpoint) else (_HEAD,))]
    layers = range(checkpoint.config["num_hidden_layers"])
    missing = [key for key in wanted if key not in checkpoint.shapes]
    missing += [f"model.layers.{n}.*" for n in layers if f"model.layers.{n}.input_layernorm.weight" not in checkpoint.shapes]
    if missing:
        raise ModelLoadError(f"{where} lacks weights of the language model: {', '.join(missing)}. Download the checkpoint again")
    rows = checkpoint.shapes[_EMBEDDING][0]
    if vocabulary > rows:
        raise ModelLoadError(
            f"{where}: the tokenizer has {vocabulary} entries, the embedding table only {rows} rows; they do not belong together"
        )


def _content_hash(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(_FORMAT.encode())
    names = ("config.json", "generation_config.json", *_TOKENIZER_FILES)
    for path in (*(checkpoint.folder / name for name in names), *checkpoint.weight_files()):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name}\n".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(checkpoint: Checkpoint, vocabulary: int, folder: Path) -> None:
    config = {key: checkpoint.config[key] for key in _CONFIG_KEYS if key in checkpoint.config}
    eos = list(stop_token_ids(checkpoint))
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": vocabulary, "eos_token_id": eos[0]}
    config["torch_dtype"] = checkpoint.config.get("torch_dtype", "bfloat16")
    _write_json(folder / "config.json", config)
    # Only the ends of an answer: the sampling values that checkpoints carry would silently change ours.
    _write_json(folder / "generation_config.json", {"eos_token_id": eos})
    for name in _TOKENIZER_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    _write_weights(checkpoint, vocabulary, folder)


def _write_weights(checkpoint: Checkpoint, vocabulary: int, folder: Path) -> None:
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for path in checkpoint.weight_files():
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if _is_llm(name, checkpoint)]  # noqa: SIM118 (not a dict)
            tensors = {name: file.get_tensor(name) for name in names}
        for name in {_EMBEDDING, _HEAD} & tensors.keys():
            tensors[name] = tensors[name][:vocabulary].clone()
        if tensors:
            shard = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
            save_file(tensors, folder / shard, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, shard)
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def _is_llm(name: str, checkpoint: Checkpoint) -> bool:
    return name.startswith(_LLM_PREFIXES) and not (name == _HEAD and _is_tied(checkpoint))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
