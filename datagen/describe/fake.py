"""An engine that invents text: for tests, and to measure everything but the model."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np

from datagen.describe import Completion, Request
from datagen.describe.events import EventRequests, Said, event_request_id
from datagen.describe.prompter import RegionRequests, asked_keys, request_id, sampling_for
from datagen.job import DescribeOptions
from datagen.records import Sample, TokenLogprobs, Track

_PROMPT_TOKENS = 16
_NOUNS = ("bowl", "chair", "lamp", "cup", "clock", "shoe", "plant", "wheel")


class FakePrompter:
    """Requests whose embeddings are zeros."""

    def __init__(self, options: DescribeOptions) -> None:
        self._options = options
        self._embeds = np.zeros((_PROMPT_TOKENS, 1), np.float32)

    def requests(self, sample: Sample, start: int, stop: int) -> list[RegionRequests]:
        """Requests for the regions [start, stop)."""
        return [self._of_region(sample, index) for index in range(start, stop)]

    def _of_region(self, sample: Sample, index: int) -> RegionRequests:
        requests = {}
        for key in asked_keys(self._options):
            name = request_id(sample, sample.regions[index], key)
            requests[key] = Request(name, self._embeds, sampling_for(self._options, key[0], name))
        return RegionRequests(index, requests, 0)


class FakeEventPrompter(FakePrompter):
    """The same for events; their tokens are not looked at."""

    def event(self, sample: Sample, track: Track, number: int, said: Said) -> EventRequests:
        """Requests for one event in every language."""
        requests: dict[str, Request] = {}
        for language in self._options.languages:
            name = event_request_id(sample, track, number, language)
            requests[language] = Request(name, self._embeds, sampling_for(self._options, "event", name))
        return EventRequests(requests, {language: said.get(language) for language in requests}, (), 0)


class FakeEngine:
    """The same text for the same request, after `fake_delay_s`."""

    def __init__(self, options: DescribeOptions) -> None:
        self._delay_s = options.fake_delay_s

    async def generate(self, request: Request) -> Completion:
        """Invent a text from the request's name."""
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        digest = hashlib.sha256(request.request_id.encode()).digest()
        noun = _NOUNS[digest[0] % len(_NOUNS)]
        text = f"{noun}: an invented {noun}" if "-definition_" in request.request_id else noun
        ids = tuple(text.encode())[: request.sampling.max_tokens]
        logprob = -digest[1] / 64
        told = _token_logprobs(ids, logprob, request.sampling.logprobs) if request.sampling.logprobs else None
        return Completion(bytes(ids).decode(), ids, logprob, "stop", len(request.embeds), 0, told)

    def close(self) -> None:
        """Nothing to let go of."""


def _token_logprobs(ids: tuple[int, ...], logprob: float, count: int) -> TokenLogprobs:
    """Bytes for tokens: the one that was said comes first, and those that follow it in value are far less likely."""
    ranks = np.arange(count)
    top_ids = (np.asarray(ids, np.int32)[:, None] + ranks.astype(np.int32)) % 256
    top_logprobs = np.tile(np.where(ranks > 0, logprob - 20.0 - ranks, logprob).astype(np.float32), (len(ids), 1))
    return TokenLogprobs("bytes", top_ids[:, 0].copy(), top_logprobs[:, 0].copy(), top_ids, top_logprobs)
