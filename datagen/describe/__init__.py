"""Region tokens to text: one protocol for the engines, and the step that keeps one of them busy."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from datagen.errors import EngineDiedError
from datagen.events import Note, log_event

if TYPE_CHECKING:
    import numpy as np
    import torch

    from datagen.describe.step import DescribeStep
    from datagen.job import Job
    from datagen.records import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer is drawn. temperature 0 is greedy; `seed` is used only above it.

    ignore_eos goes on to max_tokens whatever comes (comparisons and measurements of fixed length). logprobs: of so many most likely
    tokens at every place the log-probabilities are told, too.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    ignore_eos: bool = False
    logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One text to generate. embeds: (L, H) floats in the LLM's embedding space, on the CPU."""

    request_id: str
    embeds: torch.Tensor | np.ndarray
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated text.

    text: decoded without special tokens, stripped. logprob: mean log-probability of token_ids (nats), before temperature and
    penalties. finish_reason: `stop` (the end-of-turn token is the last of token_ids) or `length`. cached_tokens: how many of
    the prompt_tokens were not computed again. token_logprobs: None unless the request's sampling asks for them.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    token_logprobs: TokenLogprobs | None = None


class Engine(Protocol):
    """What turns prompt embeddings into text. Requests may be made from any event loop, many at once."""

    async def generate(self, request: Request) -> Completion:
        """Raises ModelOutputError when the model gives something unusable for this request, EngineDiedError when it gives no more."""

    def close(self) -> None:
        """Let go of processes and memory. Safe to call twice."""


OnDeath = Callable[[EngineDiedError], None]


def exit_process(error: EngineDiedError) -> NoReturn:
    """End this worker at once, and so its engine's processes: Ray then starts another one and retries."""
    print(f"datagen: this worker ends: {error.message}", file=sys.stderr, flush=True)
    os._exit(1)


def make_describe_step(job: Job, note: Note = log_event) -> DescribeStep:
    """The describe step of a job (a datagen.guard.Step whose `process` is thread-safe).

    When its engine dies or hangs, that is noted (`engine_died`, `engine_hung`), and a worker of Ray ends; in-process, `process` raises
    EngineDiedError, and the step can be torn down and made anew.
    """
    from datagen.describe.step import DescribeStep

    def on_death(error: EngineDiedError) -> None:
        note(error.code, error.message, level=logging.ERROR)
        if job.run.executor == "ray":
            exit_process(error)

    return DescribeStep(job, on_death)
