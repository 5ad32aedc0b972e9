"""A PAM checkpoint on disk: one `config.json`, a tokenizer, and one set of safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from datagen.errors import ModelLoadError


class Checkpoint:
    """Lazy view of a checkpoint folder. Opening reads names and shapes only; tensors are read when asked for."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        config = self.folder / "config.json"
        if not config.is_file():
            raise ModelLoadError(f"{self.folder} is no checkpoint: it has no config.json. To try datagen without weights: --model tiny")
        self.config: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in self.weight_files():
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    self._file_of[key] = path
                    self.shapes[key] = tuple(file.get_slice(key).get_shape())

    def weight_files(self) -> list[Path]:
        """The safetensors files, in order. Raises ModelLoadError when one that the index names is missing."""
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = ["model.safetensors"]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise ModelLoadError(f"{self.folder} lacks {', '.join(missing)}. Download the checkpoint again, or use --model tiny")
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
