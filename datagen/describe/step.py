"""The describe step: keeps an engine full with the requests of many samples, and turns an error into that sample's failure."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, TypeVarTuple

import numpy as np

from datagen.describe import Completion, Engine, OnDeath, Request, exit_process
from datagen.describe.events import EventPrompter
from datagen.describe.loop import LoopThread
from datagen.describe.prompter import Key, Prompter, RegionRequests, asked_keys, groups
from datagen.describe.slots import Slots
from datagen.errors import ClusterError, DatagenError, JobError, ModelLoadError, ModelOutputError
from datagen.job import Job
from datagen.records import Event, Sample, Text, Track

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_HEADROOM = 1.1  # a little more than the engine decodes together, so that it always has the next request at hand
_FATAL = (ModelLoadError, JobError, ClusterError)  # no other sample would escape these
_REGIONS_PER_PROJECTION = 8  # enough to fill a GPU's matrix units; bounds the embeddings that wait


class DescribeStep:
    """Region tokens of images and event tokens of clips to texts. One engine per step; `process` may be called from many threads.

    All requests of a region or event are made together: the first one computes the long visual prefix, the others find it in the
    engine's prefix cache (vLLM serves them from it even when all are scheduled in one step).

    The events of a track are a chain: each prompt holds the caption before, so it waits for that. The chains of all tracks of all
    samples run side by side, and hold a place in the engine only while they wait for an answer.
    """

    def __init__(self, job: Job, on_engine_death: OnDeath = exit_process) -> None:
        self._job = job
        self._on_engine_death = on_engine_death
        self._keys = asked_keys(job.describe)
        self._languages = job.describe.languages

    def setup(self) -> None:
        """Load the model and start the engine. Raises ModelLoadError or JobError."""
        self.prompter, self.event_prompter, self.engine = _make_parts(self._job, self._on_engine_death)
        self._slots = Slots(max(math.ceil(_HEADROOM * self._job.describe.max_num_seqs), len(self._keys)))
        self._loop = LoopThread("describe")
        # One thread: projections of several samples would only fight for the same device.
        self._projecting = ThreadPoolExecutor(1, thread_name_prefix="project")

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Fill in `texts` of every region, or `texts` and `history` of every event; add to `usage`; drop the tokens.

        Failed and empty samples pass through. A track whose history had to be shortened to fit the context is flagged
        `history_cut:event_<language>`. After an event without text, the next one is told the last caption that there was.

        Blocks until these samples are done; calls from other threads go on meanwhile, so that the engine never drains between
        batches. Raises ModelLoadError, JobError and ClusterError; any other error fails its own sample.
        """
        self._loop.run(self._process(samples))
        return samples

    def teardown(self) -> None:
        """Stop the engine."""
        self._loop.stop()
        self._projecting.shutdown()
        self.engine.close()

    async def _process(self, samples: list[Sample]) -> None:
        await _all(self._attempt(sample) for sample in samples)

    async def _attempt(self, sample: Sample) -> None:
        try:
            if sample.status == "ok":
                await self._describe(sample)
        except _FATAL:
            raise
        except DatagenError as error:
            sample.fail(error.code, error.message)
        except Exception as error:  # noqa: BLE001 (whatever one sample does to the engine must not cost its neighbours)
            sample.fail("describe_error", f"{type(error).__name__}: {error}")
        finally:
            sample.tokens = None

    async def _describe(self, sample: Sample) -> None:
        group_size = max(1, min(_REGIONS_PER_PROJECTION, self._slots.size // len(self._keys)))
        regions = (self._group(sample, start, stop) for start, stop in groups(len(sample.regions), group_size))
        await _all([*regions, *(self._chain(sample, track) for track in sample.tracks)])

    async def _group(self, sample: Sample, start: int, stop: int) -> None:
        asked = await self._prepare((stop - start) * len(self._keys), self.prompter.requests, sample, start, stop)
        await _all((self._answer(sample, region, key) for region in asked for key in region.requests), each=self._slots.release)
        for region in asked:
            _count(sample, "shareable_tokens", region.shared_tokens * (len(region.requests) - 1))

    async def _answer(self, sample: Sample, asked: RegionRequests, key: Key) -> None:
        sample.regions[asked.region].texts[key] = _text(sample, await self.engine.generate(asked.requests[key]))

    async def _chain(self, sample: Sample, track: Track) -> None:
        said: dict[str, str] = {}
        for number, event in enumerate(track.events):
            await self._event(sample, track, number, said)
            said |= {language: text.text for language, text in event.texts.items() if text.text}

    async def _event(self, sample: Sample, track: Track, number: int, said: dict[str, str]) -> None:
        event = track.events[number]
        asked = await self._prepare(len(self._languages), self.event_prompter.event, sample, track, number, said)
        event.tokens, event.history = None, asked.history
        flags = (f"history_cut:event_{language}" for language in asked.cut)
        track.flags += [flag for flag in flags if flag not in track.flags]
        await _all((self._caption(sample, event, language, request) for language, request in asked.requests.items()), self._slots.release)
        _count(sample, "shareable_tokens", asked.shared_tokens * (len(asked.requests) - 1))

    async def _caption(self, sample: Sample, event: Event, language: str, request: Request) -> None:
        event.texts[language] = _text(sample, await self.engine.generate(request))

    async def _prepare(self, slots: int, make: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Make requests in the projecting thread once there are slots for them. Whoever sends them gives the slots back."""
        await self._slots.acquire(slots)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._projecting, make, *arguments)
        except BaseException:
            self._slots.release(slots)
            raise


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]], each: Callable[[], None] | None = None) -> None:
    """Run all; when one fails, cancel the others, wait for them, and raise the error. `each` is called whenever one ends."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    if each is not None:
        for task in tasks:
            task.add_done_callback(lambda _: each())
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _text(sample: Sample, completion: Completion) -> Text:
    """The answer as a text, counted in the sample's usage."""
    num_tokens = len(completion.token_ids)
    _count(sample, "requests", 1)
    _count(sample, "prompt_tokens", completion.prompt_tokens)
    _count(sample, "cached_tokens", completion.cached_tokens)
    _count(sample, "output_tokens", num_tokens)
    tokens = completion.token_logprobs
    if tokens is not None and not np.isfinite(tokens.top_logprobs).all():
        raise ModelOutputError(f"the log-probabilities of the tokens of {completion.text!r} are not finite")
    return Text(completion.text, completion.logprob, completion.finish_reason, num_tokens, tokens)


def _count(sample: Sample, name: str, amount: int) -> None:
    sample.usage[name] = sample.usage.get(name, 0) + amount


def _make_parts(job: Job, on_engine_death: OnDeath) -> tuple[Prompter, EventPrompter, Engine]:
    if job.describe.engine == "fake":
        from datagen.describe.fake import FakeEngine, FakeEventPrompter, FakePrompter

        return FakePrompter(job.describe), FakeEventPrompter(job.describe), FakeEngine(job.describe)
    from datagen.describe.load import load_parts

    return load_parts(job, on_engine_death)
