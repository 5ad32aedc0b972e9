"""From a sample's region tokens to the requests that ask for its texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from datagen.describe import Request, Sampling
from datagen.errors import JobError, ModelOutputError
from datagen.job import DescribeOptions
from datagen.records import Region, Sample

if TYPE_CHECKING:
    import torch

    from datagen.pam.projector import Projector
    from datagen.pam.prompts import PromptIds

Key = tuple[str, str]
"""(task, language)"""


@dataclass(frozen=True, slots=True)
class RegionRequests:
    """All requests of one region. shared_tokens: length of the prefix that their prompts have in common."""

    region: int
    requests: dict[Key, Request]
    shared_tokens: int


class Prompter(Protocol):
    """What makes the requests of some regions of a sample; runs in a thread of its own."""

    def requests(self, sample: Sample, start: int, stop: int) -> list[RegionRequests]:
        """Requests for the regions [start, stop). Raises ModelOutputError when their tokens do not fit the model."""


def asked_keys(options: DescribeOptions) -> list[Key]:
    """Every (task, language) of a job, in the order of the job file."""
    return [(task, language) for language in options.languages for task in options.tasks]


class PamPrompter:
    """Projects region tokens and puts them into the task prompts of PAM."""

    def __init__(self, projector: Projector, prompts: dict[Key, PromptIds], options: DescribeOptions) -> None:
        self._projector = projector
        self._options = options
        self._words = {key: (projector.words(ids.before).cpu(), projector.words(ids.after).cpu()) for key, ids in prompts.items()}
        self._shared_words = common_words(list(prompts.values()))

    def requests(self, sample: Sample, start: int, stop: int) -> list[RegionRequests]:
        """Requests for the regions [start, stop) of a sample, projected together on the device."""
        import torch

        image, semantic = _region_tokens(sample, start, stop)
        device = self._projector.image_newline.device
        visual = self._projector.regions(image.to(device), semantic.to(device)).cpu()
        if not torch.isfinite(visual).all():
            raise ModelOutputError(f"regions {start}..{stop - 1}: their embeddings are not finite", code="model_output")
        return [self._of_region(sample, start + row, visual[row]) for row in range(stop - start)]

    def _of_region(self, sample: Sample, index: int, visual: torch.Tensor) -> RegionRequests:
        import torch

        requests = {}
        for key, (before, after) in self._words.items():
            name = request_id(sample, sample.regions[index], key)
            embeds = torch.cat([before, visual, after])
            self._check_length(key, len(embeds))
            requests[key] = Request(name, embeds, sampling_for(self._options, key[0], name))
        return RegionRequests(index, requests, len(visual) + self._shared_words)

    def _check_length(self, key: Key, length: int) -> None:
        needed = length + getattr(self._options.max_tokens, key[0])
        if needed > self._options.max_model_len:
            raise JobError(
                f"describe.max_model_len is {self._options.max_model_len}, but {key[0]} ({key[1]}) needs {needed} tokens: "
                f"a prompt of {length} and an answer of up to {needed - length}. Raise max_model_len or lower describe.max_tokens.{key[0]}"
            )


def request_id(sample: Sample, region: Region, key: Key) -> str:
    """Stable name of one request: no other region of the image has it, in whichever portion."""
    return f"{sample.asset.asset_id}-{region.region_index:04d}-{key[0]}_{key[1]}"


def sampling_for(options: DescribeOptions, task: str, name: str) -> Sampling:
    """A request's sampling. Its seed comes from the job's and from the request's name, so that order and batching do not matter."""
    seed = int.from_bytes(hashlib.sha256(f"{options.seed}\n{name}".encode()).digest()[:4], "big")
    return Sampling(
        max_tokens=getattr(options.max_tokens, task),
        temperature=options.temperature,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        seed=seed,
        logprobs=options.logprobs,
    )


def groups(num_regions: int, size: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of consecutive groups of at most `size` regions."""
    for start in range(0, num_regions, size):
        yield start, min(start + size, num_regions)


def common_words(prompts: Sequence[PromptIds]) -> int:
    """How many word tokens around the visual part all prompts have in common, from the start of the prompt on."""
    before = _common_length([ids.before for ids in prompts])
    if before < max(len(ids.before) for ids in prompts):
        return before
    return before + _common_length([ids.after for ids in prompts])


def _common_length(sequences: list[tuple[int, ...]]) -> int:
    columns = zip(*sequences, strict=False)
    return next((n for n, column in enumerate(columns) if len(set(column)) > 1), min(map(len, sequences)))


def as_tensor(array: np.ndarray, is_bfloat16: bool) -> torch.Tensor:
    """Tokens as a tensor of their own, in bfloat16 when the array holds its bit pattern as int16."""
    import torch

    # Arrays out of the object store are read-only, and torch takes only writable ones.
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _region_tokens(sample: Sample, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = sample.tokens
    if tokens is None or len(tokens.image) != len(sample.regions) or len(tokens.semantic) != len(sample.regions):
        found = "none" if tokens is None else f"{len(tokens.image)} and {len(tokens.semantic)}"
        raise ModelOutputError(f"{len(sample.regions)} regions need as many image and semantic token rows, found {found}")
    image, semantic = (as_tensor(array[start:stop], tokens.is_bfloat16) for array in (tokens.image, tokens.semantic))
    return image, semantic
