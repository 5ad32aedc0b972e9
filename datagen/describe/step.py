"""The describe step: keeps an engine full with the requests of many samples, and turns an error into that sample's failure."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from datagen.describe import Completion, Engine, OnDeath, exit_process
from datagen.describe.loop import LoopThread
from datagen.describe.prompter import Key, Prompter, RegionRequests, asked_keys, groups
from datagen.describe.slots import Slots
from datagen.errors import ClusterError, DatagenError, JobError, ModelLoadError
from datagen.job import Job
from datagen.records import Region, Sample, Text

_HEADROOM = 1.1  # a little more than the engine decodes together, so that it always has the next request at hand
_FATAL = (ModelLoadError, JobError, ClusterError)  # no other sample would escape these
_REGIONS_PER_PROJECTION = 8  # enough to fill a GPU's matrix units; bounds the embeddings that wait


class DescribeStep:
    """Region tokens of samples to texts. One engine per step; `process` may be called from many threads at once.

    All requests of a region are made together: its first one computes the long visual prefix, the others find it in the
    engine's prefix cache (vLLM serves them from it even when all are scheduled in one step).
    """

    def __init__(self, job: Job, on_engine_death: OnDeath = exit_process) -> None:
        self._job = job
        self._on_engine_death = on_engine_death
        self._keys = asked_keys(job.describe)

    def setup(self) -> None:
        """Load the model and start the engine. Raises ModelLoadError or JobError."""
        self.prompter, self.engine = _make_parts(self._job, self._on_engine_death)
        self._slots = Slots(max(math.ceil(_HEADROOM * self._job.describe.max_num_seqs), len(self._keys)))
        self._loop = LoopThread("describe")
        # One thread: projections of several samples would only fight for the same device.
        self._projecting = ThreadPoolExecutor(1, thread_name_prefix="project")

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Fill in `texts` of every region, add to `usage`, and drop the tokens. Failed and empty samples pass through.

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
        await _all(self._group(sample, start, stop) for start, stop in groups(len(sample.regions), group_size))

    async def _group(self, sample: Sample, start: int, stop: int) -> None:
        await self._slots.acquire((stop - start) * len(self._keys))
        try:
            loop = asyncio.get_running_loop()
            asked = await loop.run_in_executor(self._projecting, self.prompter.requests, sample, start, stop)
        except BaseException:
            self._slots.release((stop - start) * len(self._keys))
            raise
        await _all((self._answer(sample, region, key) for region in asked for key in region.requests), each=self._slots.release)
        for region in asked:
            _count(sample, "shareable_tokens", region.shared_tokens * (len(region.requests) - 1))

    async def _answer(self, sample: Sample, asked: RegionRequests, key: Key) -> None:
        completion = await self.engine.generate(asked.requests[key])
        _record(sample, sample.regions[asked.region], key, completion)


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


def _record(sample: Sample, region: Region, key: Key, completion: Completion) -> None:
    num_tokens = len(completion.token_ids)
    region.texts[key] = Text(completion.text, completion.logprob, completion.finish_reason, num_tokens)
    _count(sample, "requests", 1)
    _count(sample, "prompt_tokens", completion.prompt_tokens)
    _count(sample, "cached_tokens", completion.cached_tokens)
    _count(sample, "output_tokens", num_tokens)


def _count(sample: Sample, name: str, amount: int) -> None:
    sample.usage[name] = sample.usage.get(name, 0) + amount


def _make_parts(job: Job, on_engine_death: OnDeath) -> tuple[Prompter, Engine]:
    if job.describe.engine == "fake":
        from datagen.describe.fake import FakeEngine, FakePrompter

        return FakePrompter(job.describe), FakeEngine(job.describe)
    from datagen.describe.load import load_parts

    return load_parts(job, on_engine_death)
