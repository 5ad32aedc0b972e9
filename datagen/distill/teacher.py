"""What a teacher held likely at every token of the texts that it wrote: the column `token_logprobs` of a dataset.

The numbers lie in flat memory-mapped files beside the output; in memory is where each text begins and ends in them.
Letters of shapes: T tokens of a text, k most likely ones at each, N tokens of a batch, V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from datagen.distill.corpus import table_parts
from datagen.errors import SourceError
from datagen.write import open_dataset
from datagen.write.marker import TOKEN_LOGPROBS

_ROW = {"regions": ("region_id",), "tracks": ("track_id", "clip_index")}
_TEXT = {"regions": "task", "tracks": "event"}
_FILES = {"token_ids": "int32", "top_ids": "int32", "top_logprobs": "float32"}


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """One text as its teacher wrote it. ids: T tokens. top_ids: (T, k) int32, most likely first. top_logprobs: (T, k) float32, nats."""

    ids: tuple[int, ...]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]


class Teacher:
    """The texts of one table, `regions` or `tracks`, with their tokens. tokenizers: fingerprints of those that the ids belong to."""

    def __init__(self, dataset: str, table: str, cache: Path) -> None:
        """Raises SourceError when the table has no column `token_logprobs`."""
        self.tokenizers: set[str] = set()
        # (row, (task or event, language)) -> (first token, first of the most likely, T, k)
        self._places: dict[tuple[Any, ...], tuple[int, int, int, int]] = {}
        cache.mkdir(parents=True, exist_ok=True)
        paths = {name: cache / f"teacher_{table}_{name}.bin" for name in _FILES}
        with ExitStack() as stack:
            files = {name: stack.enter_context(path.open("wb")) for name, path in paths.items()}
            for entries, keys in _entries(dataset, table):
                self._add(entries, keys, files)
        self._numbers = {
            name: np.memmap(path, _FILES[name], "r") if path.stat().st_size else np.empty(0, _FILES[name]) for name, path in paths.items()
        }

    def texts(self) -> set[tuple[Any, str]]:
        """Every (task or event, language) that any row has."""
        return {key[-2:] for key in self._places}

    def of(self, row: tuple[Any, ...], name: str | int, language: str) -> Taught | None:
        """A text by its row, (region_id,) or (track_id, clip_index), its task or the number of its event, and its language."""
        place = self._places.get((*row, name, language))
        if place is None:
            return None
        first, first_top, count, width = place
        tops = (self._numbers[each][first_top : first_top + count * width].reshape(count, width) for each in ("top_ids", "top_logprobs"))
        return Taught(tuple(self._numbers["token_ids"][first : first + count].tolist()), *tops)

    def _add(self, entries: pa.StructArray, keys: list[tuple[Any, ...]], files: Mapping[str, BinaryIO]) -> None:
        lengths = {name: entries.field(name).value_lengths().to_numpy() for name in _FILES}
        starts = {name: files[name].tell() // 4 + np.cumsum(lengths[name]) - lengths[name] for name in _FILES}
        for number, key in enumerate(keys):
            count = int(lengths["token_ids"][number])
            place = int(starts["token_ids"][number]), int(starts["top_ids"][number])
            self._places[key] = (*place, count, int(lengths["top_ids"][number]) // max(count, 1))
        for name, file in files.items():
            file.write(entries.field(name).flatten().to_numpy().tobytes())
        self.tokenizers.update(entries.field("tokenizer").unique().to_pylist())


def require_teacher(teacher: Teacher, asked: Sequence[tuple[Any, str]], tokenizer: str, dataset: str) -> None:
    """Raise SourceError when the ids belong to another tokenizer than that of this fingerprint, or a text that is asked for has none.

    asked: (task, language) of regions; empty: any text will do.
    """
    found = teacher.texts()
    missing = [f"{name}_{language}" for name, language in asked if (name, language) not in found]
    if missing or not found:
        raise SourceError(
            f"{dataset}: the column {TOKEN_LOGPROBS} has nothing about {', '.join(missing) or 'any event'}, which a distill_weight above 0 "
            "learns from. Leave these texts out of the describe stage's tasks and languages, or make the dataset again with them"
        )
    if teacher.tokenizers != {tokenizer}:
        raise SourceError(
            f"{dataset} has token ids of the tokenizer {' and '.join(sorted(teacher.tokenizers))}, the student's is {tokenizer}: the same "
            "ids mean other words. Set student.tokenizer to the checkpoint that wrote the texts, which the records in _datagen/runs/ name"
        )


def _entries(dataset: str, table: str) -> Iterator[tuple[pa.StructArray, list[tuple[Any, ...]]]]:
    """The entries of each part's column, flat, and for each the row it is of with its task or event and its language."""
    store = open_dataset(dataset)
    for part in table_parts(store, table, list(_ROW[table]), TOKEN_LOGPROBS):
        if TOKEN_LOGPROBS not in part.column_names:
            raise SourceError(
                f"{store.uri} has no column {TOKEN_LOGPROBS} in `{table}`, which a distill_weight above 0 learns from. Make the dataset "
                "with describe.logprobs in its job, 8 for example, or set distill_weight to 0"
            )
        column = part[TOKEN_LOGPROBS].combine_chunks()
        entries, rows = column.flatten(), part.select(_ROW[table]).to_pylist()
        of_row = np.repeat(np.arange(len(rows)), column.value_lengths().to_numpy())
        names, languages = (entries.field(name).to_pylist() for name in (_TEXT[table], "language"))
        yield (
            entries,
            [(*rows[row].values(), name, language) for row, name, language in zip(of_row, names, languages, strict=True)],
        )


def divergence(logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, temperature: float) -> Tensor:
    """(N,) how far the student is from its teacher at each token: KL(teacher || student) at the temperature, nats.

    logits: (N, V) of the student. top_ids, top_logprobs: (N, k) of the teacher; -inf fills up the shorter lists of a batch. Of the
    teacher only its k most likely tokens are known; they are renormalised, so that all others count as impossible, and the student is
    at 0 when it has the teacher's distribution cut to these tokens, at every temperature. A loss takes it times the temperature
    squared, which makes up for the size of its gradients. Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
    Network", 2015, section 2.
    """
    teacher = (top_logprobs / temperature).softmax(-1)
    student = (logits / temperature).log_softmax(-1).gather(-1, top_ids)
    return F.kl_div(student, teacher, reduction="none").sum(-1)


def stacked(taught: list[Taught]) -> tuple[Tensor, Tensor]:
    """top_ids and top_logprobs of several texts in a row, (N, k) for the largest k of any, filled up with 0 and -inf."""
    width = max(text.top_ids.shape[1] for text in taught)
    ids, logprobs = [], []
    for text in taught:
        missing = [(0, 0), (0, width - text.top_ids.shape[1])]
        ids.append(np.pad(text.top_ids, missing))
        logprobs.append(np.pad(text.top_logprobs, missing, constant_values=-np.inf))
    return torch.from_numpy(np.concatenate(ids)).long(), torch.from_numpy(np.concatenate(logprobs))
