"""The reference engine: Hugging Face transformers, one request at a time."""

from __future__ import annotations

import asyncio
import math
import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datagen.describe import Completion, Request, Sampling
from datagen.errors import ModelOutputError
from datagen.pam.checkpoint import Checkpoint
from datagen.pam.llm import load_tokenizer, stop_token_ids, tokenizer_fingerprint
from datagen.records import TokenLogprobs


class TransformersEngine:
    """Decodes from `inputs_embeds` with a KV cache. A repetition penalty sees generated ids only, as the reference's does."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        from transformers import Qwen2ForCausalLM

        self._tokenizer = load_tokenizer(folder)
        self._fingerprint = tokenizer_fingerprint(self._tokenizer)
        self.stop_ids = frozenset(stop_token_ids(Checkpoint(folder)))
        self.model = Qwen2ForCausalLM.from_pretrained(str(folder), dtype=dtype, local_files_only=True).to(device).eval()
        self._one_at_a_time = threading.Lock()

    async def generate(self, request: Request) -> Completion:
        """Decode one request, in a thread."""
        return await asyncio.to_thread(self._generate, request)

    def close(self) -> None:
        """Let go of the weights."""
        self.model = None

    @torch.inference_mode()
    def _generate(self, request: Request) -> Completion:
        sampling = request.sampling
        generator = torch.Generator().manual_seed(sampling.seed)
        embeds = torch.as_tensor(request.embeds).to(self.model.device, self.model.dtype)[None]
        ids: list[int] = []
        logprobs: list[float] = []
        top: list[tuple[Tensor, Tensor]] = []
        cache = None
        stopped = False
        with self._one_at_a_time:
            while len(ids) < sampling.max_tokens and not stopped:
                output = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
                logits, cache = output.logits[0, -1].float().cpu(), output.past_key_values
                ids.append(_choose(logits, ids, sampling, generator))
                all_logprobs = logits.log_softmax(-1)
                logprobs.append(float(all_logprobs[ids[-1]]))
                if sampling.logprobs:
                    top.append(all_logprobs.topk(min(sampling.logprobs, len(all_logprobs))))
                stopped = ids[-1] in self.stop_ids and not sampling.ignore_eos
                embeds = self.model.get_input_embeddings()(torch.tensor([ids[-1:]], device=self.model.device))
        told = self._token_logprobs(ids, logprobs, top) if top else None
        return self._completion(request, ids, logprobs, "stop" if stopped else "length", told)

    def _token_logprobs(self, ids: list[int], logprobs: list[float], top: list[tuple[Tensor, Tensor]]) -> TokenLogprobs:
        top_logprobs, top_ids = (torch.stack(some).numpy() for some in zip(*top, strict=True))
        return TokenLogprobs(
            self._fingerprint, np.asarray(ids, np.int32), np.asarray(logprobs, np.float32), top_ids.astype(np.int32), top_logprobs
        )

    def _completion(
        self, request: Request, ids: list[int], logprobs: list[float], finish_reason: str, told: TokenLogprobs | None
    ) -> Completion:
        logprob = sum(logprobs) / len(logprobs)
        if not math.isfinite(logprob):
            raise ModelOutputError(f"{request.request_id}: the model's logits are not finite")
        text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Completion(text, tuple(ids), logprob, finish_reason, len(request.embeds), 0, told)


def _choose(logits: Tensor, previous: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    """The next id from logits (V,) float32 on the CPU."""
    if sampling.repetition_penalty != 1.0 and previous:
        seen = torch.tensor(sorted(set(previous)))
        penalised = torch.where(logits[seen] > 0, logits[seen] / sampling.repetition_penalty, logits[seen] * sampling.repetition_penalty)
        logits = logits.index_copy(0, seen, penalised)
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    # The first token always stays, then those before whom less than top_p is reached.
    probabilities[probabilities.cumsum(-1) - probabilities >= sampling.top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
