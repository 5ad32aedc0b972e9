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
from datagen.plain_json import read_json
from datagen.share import cache_folder

_FORMAT = "2"  # raise it when what is written changes, so that old cache entries are not used
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_DTYPES = ("bfloat16", "float16", "float32")
_TOKENIZER_CONFIG = "tokenizer_config.json"
LLM_CONFIG_KEYS = (
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
"""What of a checkpoint's config a language model is made of. The rest stays out: some of its entries name code that is fetched and run."""

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
        with _plain_tokenizer(Path(folder)) as plain:
            return Qwen2Tokenizer.from_pretrained(str(plain), local_files_only=True)
    except ModelLoadError:
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        raise ModelLoadError(f"{folder} has no usable tokenizer ({error}). {AGAIN}") from error


@contextmanager
def _plain_tokenizer(folder: Path) -> Iterator[Path]:
    """The folder, or one beside it for a while with the same tokenizer, where its own config names code or other files."""
    path = folder / _TOKENIZER_CONFIG
    settings = tokenizer_settings(folder)
    if not path.is_file() or settings == read_json(path, "the tokenizer's config"):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="datagen-tokenizer-") as plain:
        _write_tokenizer(folder, Path(plain))
        yield Path(plain)


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` of a checkpoint without its entries that name code, or files elsewhere: neither is ever asked for."""
    path = folder / _TOKENIZER_CONFIG
    settings = read_json(path, "the tokenizer's config") if path.is_file() else {}
    return {key: value for key, value in settings.items() if key != "auto_map" and not key.endswith(("_file", "_files"))}


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
    configs = [read_json(generation, "the generation config")] if generation.is_file() else []
    for config in (*configs, checkpoint.config):
        ids = config.get("eos_token_id")
        if ids is not None:
            found = tuple(ids) if isinstance(ids, list) else (ids,)
            if not found or not all(isinstance(one, int) and 0 <= one < 2**31 for one in found):
                raise ModelLoadError(f"{checkpoint.folder}: eos_token_id is {ids!r:.80}, expected ids of tokens. {AGAIN}")
            return found
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
    lacks = [key for key in ("hidden_size", "num_hidden_layers") if key not in checkpoint.config]
    if lacks:
        raise ModelLoadError(f"{where}/config.json has no {', '.join(lacks)}. {AGAIN}")
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
    config = {key: checkpoint.config[key] for key in LLM_CONFIG_KEYS if key in checkpoint.config}
    eos = list(stop_token_ids(checkpoint))
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": vocabulary, "eos_token_id": eos[0]}
    dtype = checkpoint.config.get("torch_dtype")
    config["torch_dtype"] = dtype if dtype in _DTYPES else "bfloat16"
    _write_json(folder / "config.json", config)
    # Only the ends of an answer: the sampling values that checkpoints carry would silently change ours.
    _write_json(folder / "generation_config.json", {"eos_token_id": eos})
    _write_tokenizer(checkpoint.folder, folder)
    _write_weights(checkpoint, vocabulary, folder)


def _write_tokenizer(source: Path, folder: Path) -> None:
    for name in _TOKENIZER_FILES:
        if (source / name).is_file() and name != _TOKENIZER_CONFIG:
            shutil.copyfile(source / name, folder / name)
    if (source / _TOKENIZER_CONFIG).is_file():
        _write_json(folder / _TOKENIZER_CONFIG, tokenizer_settings(source))


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
