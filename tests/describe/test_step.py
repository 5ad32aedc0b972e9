"""The describe step around an engine that the test controls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest
from describe_helpers import golden_job, sample_with_tokens

from datagen.describe import Completion, Request, make_describe_step
from datagen.describe.slots import Slots
from datagen.describe.step import DescribeStep
from datagen.errors import ClusterError, JobError
from datagen.job import parse_job
from datagen.records import Text


class ScriptedEngine:
    """Answers with the request's name, unless `before` raises; counts how many requests are open at once."""

    def __init__(self, before: Callable[[Request], None] = lambda request: None, delay_s: float = 0.0) -> None:
        self.before, self.delay_s = before, delay_s
        self.open = self.most_open = 0
        self.names: list[str] = []

    async def generate(self, request: Request) -> Completion:
        self.names.append(request.request_id)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.delay_s)
            self.before(request)
        finally:
            self.open -= 1
        return Completion(request.request_id, (1, 2), -0.5, "stop", len(request.embeds), 3)

    def close(self) -> None:
        pass


@pytest.fixture
def make_step(monkeypatch):
    """A step with fake prompts and the given engine; torn down afterwards."""
    steps: list[DescribeStep] = []

    def make(engine: ScriptedEngine, **options: object) -> DescribeStep:
        step = make_describe_step(parse_job({"describe": {"engine": "fake", **options}}))
        step.setup()
        step.engine = engine
        steps.append(step)
        return step

    yield make
    for step in steps:
        step.teardown()


def test_every_region_gets_every_text_asked_for(make_step):
    engine = ScriptedEngine()
    samples = [sample_with_tokens(9, name="one", image_tokens=4), sample_with_tokens(2, name="two", image_tokens=4)]
    make_step(engine, tasks=["label", "caption"], languages=["zh", "en"]).process(samples)
    for sample in samples:
        for region in sample.regions:
            name = f"{sample.asset.asset_id}-{region.region_index:04d}"
            keys = [(task, language) for language in ("zh", "en") for task in ("label", "caption")]
            assert region.texts == {(t, lang): Text(f"{name}-{t}_{lang}", -0.5, "stop", 2) for t, lang in keys}
    assert samples[0].usage == {"requests": 36, "prompt_tokens": 576, "cached_tokens": 108, "output_tokens": 72, "shareable_tokens": 0}
    assert [sample.tokens for sample in samples] == [None, None]


def test_requests_of_a_region_are_made_together(make_step):
    engine = ScriptedEngine()
    make_step(engine).process([sample_with_tokens(20, name=name, image_tokens=4) for name in "abc"])
    regions = [name.rsplit("-", 1)[0] for name in engine.names]
    assert [regions[n] for n in range(0, len(regions), 4)] == [regions[n + 3] for n in range(0, len(regions), 4)]


def test_no_more_requests_are_open_than_the_engine_can_use(make_step):
    engine = ScriptedEngine(delay_s=0.002)
    make_step(engine, max_num_seqs=20).process([sample_with_tokens(30, name=name, image_tokens=4) for name in "ab"])
    assert engine.most_open <= 22
    assert engine.most_open > 16  # and the engine is kept full


def test_an_error_fails_its_own_sample(make_step):
    def before(request: Request) -> None:
        if request.request_id.startswith("bad-0003"):
            raise ValueError("no such thing")

    engine = ScriptedEngine(before, delay_s=0.001)
    step = make_step(engine, max_num_seqs=8)
    for _ in range(5):  # slots of cancelled requests come back, or this would hang
        good, bad = sample_with_tokens(6, name="good", image_tokens=4), sample_with_tokens(6, name="bad", image_tokens=4)
        step.process([bad, good])
        assert (bad.failure.code, bad.failure.message) == ("describe_error", "ValueError: no such thing")
        assert bad.regions == []
        assert all(len(region.texts) == 4 for region in good.regions)
        assert engine.open == 0


@pytest.mark.parametrize("error", [ClusterError("the engine died"), JobError("wrong job")])
def test_an_error_of_the_machine_or_the_job_stops_the_step(make_step, error):
    def before(request: Request) -> None:
        raise error

    with pytest.raises(type(error), match=error.message):
        make_step(ScriptedEngine(before)).process([sample_with_tokens(1, image_tokens=4)])


def test_failed_and_empty_samples_pass_through(make_step):
    engine = ScriptedEngine()
    failed, empty = sample_with_tokens(1, image_tokens=4), sample_with_tokens(0, image_tokens=4)
    failed.fail("decode", "no picture")
    assert make_step(engine).process([failed, empty]) == [failed, empty]
    assert (failed.failure.code, empty.status, engine.names) == ("decode", "empty", [])


def test_the_fake_engine_says_the_same_again(make_step):
    step = make_describe_step(parse_job({"describe": {"engine": "fake", "fake_delay_s": 0.05}}))
    step.setup()
    started = time.monotonic()
    first, second = (step.process([sample_with_tokens(3, image_tokens=4)])[0] for _ in range(2))
    assert time.monotonic() - started >= 0.1
    step.teardown()
    assert [r.texts for r in first.regions] == [r.texts for r in second.regions]
    assert ": " in first.regions[0].texts["definition", "en"].text


def test_missing_tokens_are_that_samples_failure(golden, model_cache):
    step = DescribeStep(golden_job(golden, engine="transformers", tasks=["label"]))
    step.setup()
    torn, whole, lost = (sample_with_tokens(2, name=name) for name in ("torn", "whole", "lost"))
    torn.tokens.image = torn.tokens.image[:1]
    lost.tokens = None
    step.process([torn, whole, lost])
    step.teardown()
    assert torn.failure.code == lost.failure.code == "model_output"
    assert "2 regions need as many" in torn.failure.message
    assert all(region.texts["label", "en"].num_tokens > 0 for region in whole.regions)


def test_a_model_length_too_short_stops_the_job_and_says_what_to_raise(golden, model_cache):
    step = DescribeStep(golden_job(golden, engine="transformers", max_model_len=1080))
    step.setup()
    with pytest.raises(JobError, match=r"max_model_len is 1080, but \w+ \(en\) needs 1[01]\d\d tokens"):
        step.process([sample_with_tokens(1)])
    step.teardown()


def test_slots_are_given_in_order_and_survive_a_cancelled_wait():
    async def scenario() -> list[str]:
        slots, order = Slots(4), []

        async def take(name: str, count: int) -> None:
            await slots.acquire(count)
            order.append(name)

        await take("first", 3)
        many, one = asyncio.create_task(take("many", 4)), asyncio.create_task(take("one", 1))
        await asyncio.sleep(0)
        many.cancel()
        await asyncio.gather(many, return_exceptions=True)
        await asyncio.wait_for(one, 1)
        slots.release(4)
        await asyncio.wait_for(take("all", 4), 1)
        return order

    assert asyncio.run(scenario()) == ["first", "one", "all"]
    with pytest.raises(ValueError, match="5 slots asked for, 4 exist"):
        asyncio.run(Slots(4).acquire(5))


def test_bfloat16_bits_are_read_as_such(golden, model_cache):
    import torch

    from datagen.describe.prompter import _region_tokens

    sample = sample_with_tokens(2, image_tokens=4)
    expected = torch.from_numpy(sample.tokens.image).bfloat16()
    sample.tokens.image = expected.view(torch.int16).numpy()
    sample.tokens.semantic = np.zeros((2, 16, 256), np.int16)
    sample.tokens.is_bfloat16 = True
    assert torch.equal(_region_tokens(sample, 1, 2)[0], expected[1:])
