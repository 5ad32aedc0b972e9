"""A PAM checkpoint on disk (one `config.json`, a tokenizer, one set of safetensors) and the SAM 2.1 weights that go with it."""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from datagen.errors import ModelLoadError
from datagen.job import ModelOptions
from datagen.pam.hub import WITHOUT_DOWNLOAD, card_of, checkpoint_from_hub, checkpoint_in, files_from_hub
from datagen.paths import EMBEDDED
from datagen.plain_json import read_json
from datagen.share import cache_folder

TOWER = "model.vision_tower.sam2_model_predictor."
PERCEIVER = "model.vision_resampler."
DEFAULT_SAM2 = "facebook/sam2.1-hiera-large"
_SAM2_CONFIGS = {size: f"configs/sam2.1/sam2.1_hiera_{size}.yaml" for size in ("t", "s", "b+", "l")}
_SAM2_FILES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
_TINY_SHAPES = Path(__file__).with_name("tiny_shapes")
_SIZES = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "mm_hidden_size"), 2**24),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4096),
    "num_hidden_layers": 1024,
}
"""Numbers of a checkpoint's config that are sizes, and the most that each may be: they decide how much is built."""

AGAIN = "Download the checkpoint again, or use --model tiny-shapes"


class Checkpoint:
    """Lazy view of a checkpoint folder. Opening reads names and shapes only; tensors are read when asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        config = self.folder / "config.json"
        if not config.is_file():
            raise ModelLoadError(f"{self.folder} is no checkpoint: it has no config.json. {WITHOUT_DOWNLOAD}")
        self.config: dict[str, Any] = read_json(config, "the config")
        _check_sizes(self.config, config)
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in self.weight_files():
            self._read_names(path)

    def _read_names(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    self._file_of[key] = path
                    self.shapes[key] = tuple(file.get_slice(key).get_shape())
                    self.dtypes[key] = file.get_slice(key).get_dtype()
        except SafetensorError as error:
            raise ModelLoadError(f"{path} is no readable safetensors file ({error}). {AGAIN}") from error

    def weight_files(self) -> list[Path]:
        """The safetensors files, in order. Raises ModelLoadError when one that the index names is missing, or lies outside the folder."""
        index = self.folder / "model.safetensors.index.json"
        names = _shards(index) if index.is_file() else ["model.safetensors"]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise ModelLoadError(f"{self.folder} lacks {', '.join(missing)}. {AGAIN}")
        return [self.folder / name for name in names]

    def tensors(self, prefix: str, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """(name without the prefix, tensor) for every key that starts with `prefix`, cast to `dtype` where given."""
        by_file: dict[Path, list[str]] = {}
        for key, path in self._file_of.items():
            if key.startswith(prefix):
                by_file.setdefault(path, []).append(key)
        for path, keys in by_file.items():
            with safe_open(path, framework="pt") as file:
                for key in keys:
                    tensor = file.get_tensor(key)
                    yield key[len(prefix) :], tensor if dtype is None else tensor.to(dtype)


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index, "the index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelLoadError(f"{index} has no `weight_map` of tensors to files. {AGAIN}")
    names = sorted(set(weight_map.values()))
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.suffix != ".safetensors" or "\0" in name:
            raise ModelLoadError(f"{index} names {name!r:.200}; expected a .safetensors file of the checkpoint's own folder. {AGAIN}")
    return names


def _check_sizes(config: dict[str, Any], where: Path) -> None:
    for key, most in _SIZES.items():
        value = config.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ModelLoadError(f"{where}: {key} is {value!r:.80}; expected a number from 1 to {most}. {AGAIN}")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the weights of one model lie on this machine.

    checkpoint: the PAM folder. sam2_weights: a .pt or .safetensors file with official key names; None: the copy inside the
    checkpoint. sam2_config: the name of a config in the sam2 package, or the path of a YAML or JSON file.
    """

    checkpoint: Path
    sam2_weights: Path | None
    sam2_config: str

    def weight_files(self) -> list[Path]:
        """Every file that holds weights."""
        return Checkpoint(self.checkpoint).weight_files() + ([] if self.sam2_weights is None else [self.sam2_weights])

    def license(self) -> str:
        """The checkpoint's licence as its model card, in its folder or above it, states it; `unknown` when it has none."""
        card = card_of(self.checkpoint)
        if card is None:
            return "unknown"
        found = re.search(r"^license(?:_name)?:\s*(\S+)\s*$", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        return found[1] if found else "unknown"

    def sam2_state_dict(self) -> dict[str, torch.Tensor]:
        """The SAM 2.1 weights under official key names, as stored. Raises ModelLoadError when the file is not readable."""
        if self.sam2_weights is None:
            return dict(Checkpoint(self.checkpoint).tensors(TOWER))
        return _read_state_dict(self.sam2_weights)


def resolve_model(options: ModelOptions) -> ModelFiles:
    """Find the weights that a job names, downloading what is given by hub id (or taking it from the hub's cache).

    SAM 2.1 weights left out are looked for in the checkpoint's `sam2/` folder, then inside the checkpoint, then taken from
    facebook/sam2.1-hiera-large. Raises ModelLoadError saying what was tried.
    """
    checkpoint = checkpoint_folder(options)
    weights, config = _sam2_files(options, checkpoint)
    return ModelFiles(
        checkpoint=checkpoint, sam2_weights=weights, sam2_config=options.sam2_config or config or _config_by_shape(checkpoint, weights)
    )


def checkpoint_folder(options: ModelOptions) -> Path:
    """The PAM folder that a job names, made (`tiny`) or downloaded where needed. Raises ModelLoadError saying what was tried."""
    if options.checkpoint == "tiny":
        return _tiny_folder()
    if options.checkpoint == "tiny-shapes":
        return _TINY_SHAPES
    folder = Path(options.checkpoint).expanduser()
    if folder.is_dir():
        return checkpoint_in(folder.resolve(), options.checkpoint)
    return checkpoint_from_hub(options.checkpoint, options.revision)


def _tiny_folder() -> Path:
    """The embedded checkpoint, made on first use. Made aside and renamed, since several workers may start at once."""
    from datagen.pam import tiny

    recipe = hashlib.sha256(Path(tiny.__file__).read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"tiny-{recipe}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".tiny-", dir=folder.parent))
    try:
        built = tiny.build_tiny(aside / "tiny")
        built.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(aside)
    return folder


def _sam2_files(options: ModelOptions, checkpoint: Path) -> tuple[Path | None, str | None]:
    """(weights or None for those inside the checkpoint, config or None when only the shapes can tell)."""
    if options.sam2 is not None and options.checkpoint not in EMBEDDED:  # these are whole, whatever else the job names
        path = Path(options.sam2).expanduser()
        return _sam2_at(path.resolve()) if path.exists() else _sam2_from_hub(options.sam2)
    if (checkpoint / "sam2").is_dir():
        return _sam2_at(checkpoint / "sam2")
    if any(key.startswith(TOWER) for key in Checkpoint(checkpoint).shapes):
        return None, None
    return _sam2_from_hub(DEFAULT_SAM2)


def _sam2_at(path: Path, suffixes: tuple[str, ...] = (".pt", ".safetensors")) -> tuple[Path, str | None]:
    if path.is_file():
        return path, _config_by_name(path)
    found = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ModelLoadError(
            f"{path} should hold one file with SAM 2.1 weights ({' or '.join(suffixes)}), found {names}. Name one in model.sam2"
        )
    config = path / "config.json"
    return found[0], _config_by_name(found[0]) or (str(config) if config.is_file() else None)


def _sam2_from_hub(name: str) -> tuple[Path, str | None]:
    # The official repositories also hold the weights under the key names of transformers, as safetensors.
    official = name.startswith("facebook/sam2")
    folder = files_from_hub(name, ["*.pt"] if official else ["*.pt", "*.safetensors", "*.json"])
    return _sam2_at(folder, (".pt",)) if official else _sam2_at(folder)


def _config_by_name(weights: Path) -> str | None:
    match = re.fullmatch(r"sam2\.1_hiera_(tiny|small|base_plus|large)\.(pt|safetensors)", weights.name)
    return _SAM2_CONFIGS[_SAM2_FILES[match[1]]] if match else None


def _config_by_shape(checkpoint: Path, weights: Path | None) -> str:
    """The packaged config whose names and shapes are those of the weights."""
    from datagen.pam.segmenter import build_segmenter

    if weights is None:
        found = {key.removeprefix(TOWER): shape for key, shape in Checkpoint(checkpoint).shapes.items() if key.startswith(TOWER)}
    else:
        found = {key: tuple(tensor.shape) for key, tensor in _read_state_dict(weights).items()}
    for name in _SAM2_CONFIGS.values():
        if found == {key: tuple(tensor.shape) for key, tensor in build_segmenter(name, None, device="meta").state_dict().items()}:
            return name
    where = weights or f"{checkpoint} ({TOWER}*)"
    raise ModelLoadError(
        f"the SAM 2.1 weights {where} fit none of {', '.join(_SAM2_CONFIGS.values())}. Name their config in model.sam2_config"
    )


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ModelLoadError(f"cannot read the SAM 2.1 weights {path}: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise ModelLoadError(f"{path} is no official SAM 2.1 file: expected a dict with the weights under `model`")
    state: dict[str, torch.Tensor] = data["model"]
    strangers = [str(key) for key, value in state.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)]
    if strangers:
        raise ModelLoadError(f"{path} holds under `model` what is no weight: {', '.join(strangers[:5])!r:.200}")
    return state
