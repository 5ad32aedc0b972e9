"""Captions of events: chains that wait for their own history and for nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from describe_helpers import clip_with_tracks, golden_job
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.describe import Completion, Request, make_describe_step
from datagen.describe.events import PamEventPrompter
from datagen.describe.prompter import common_words, sampling_for
from datagen.describe.step import DescribeStep
from datagen.errors import ClusterError, JobError, ModelOutputError
from datagen.job import parse_job
from datagen.pam.checkpoint import Checkpoint
from datagen.pam.llm import load_tokenizer
from datagen.pam.projector import Projector, load_projector
from datagen.pam.prompts import PromptIds, tokenize, video_prompt
from datagen.records import Sample

VISUAL = 4 + 19 + 15 * (2 + 19)  # embeddings of a clip with 4 image tokens in the first frame and 2 in each later one


class DemandingEngine:
    """Answers nobody until `full` requests are open, or one of every chain that is left; a step that lets it run dry times out.

    Whose turn it is then is drawn by lot. answer: the text for a request, or an error to raise.
    """

    def __init__(
        self, chains: dict[str, int], full: int = 1, answer: Callable[[str], str | Exception] = lambda name: f"says {name}"
    ) -> None:
        self.left, self.full, self.answer = dict(chains), full, answer
        self.open: dict[str, tuple[Request, asyncio.Future]] = {}
        self.names: list[str] = []
        self.most_open = 0
        self.random = random.Random(0)

    async def generate(self, request: Request) -> Completion:
        self.names.append(request.request_id)
        self.open[request.request_id] = request, asyncio.get_running_loop().create_future()
        self.most_open = max(self.most_open, len(self.open))
        future = self.open[request.request_id][1]
        try:
            self._serve()
            return await asyncio.wait_for(future, 10)
        finally:
            self.open.pop(request.request_id, None)

    def _serve(self) -> None:
        while self.open and len(self.open) >= min(self.full, sum(count > 0 for count in self.left.values())):
            request, future = self.open.pop(self.random.choice(list(self.open)))
            self.left[chain_of(request.request_id)] -= 1
            answer = self.answer(request.request_id)
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(Completion(answer, (1, 2, 3), -0.5, "stop", len(request.embeds), 3))

    def close(self) -> None:
        pass


def chain_of(name: str) -> str:
    """asset, clip and object of `asset-clip-object-event-event_language`, and the language."""
    asset_id, clip, track, _, language = name.rsplit("-", 4)
    return f"{asset_id}-{clip}-{track}-{language}"


def chains_of(*samples: Sample, language: str = "en") -> dict[str, int]:
    return {f"{s.asset.asset_id}-00000-{t.object_index:04d}-event_{language}": len(t.events) for s in samples for t in s.tracks}


@pytest.fixture
def make_step():
    """A step with fake prompts and the given engine; torn down afterwards."""
    steps: list[DescribeStep] = []

    def make(engine: DemandingEngine, **options: object) -> DescribeStep:
        step = make_describe_step(parse_job({"describe": {"engine": "fake", **options}}))
        step.setup()
        step.engine = engine
        steps.append(step)
        return step

    yield make
    for step in steps:
        step.teardown()


def test_the_engine_stays_full_while_32_chains_wait_for_their_histories(make_step):
    """32 chains of 1 to 6 events in 5 samples; 8 requests fill the engine, and it never gets fewer while so many chains are left."""
    counts = random.Random(1)
    samples = [clip_with_tracks([counts.randint(1, 6) for _ in range(size)], f"clip{n}") for n, size in enumerate((1, 4, 7, 8, 12))]
    chains = chains_of(*samples)
    assert len(chains) == 32
    engine = DemandingEngine(chains, full=8)
    make_step(engine, max_num_seqs=8).process(samples)
    assert [sample.failure for sample in samples] == [None] * 5
    assert set(engine.left.values()) == {0}
    assert 8 <= engine.most_open <= 9


def test_each_event_is_told_the_one_before(make_step):
    samples = [clip_with_tracks([4, 1, 3], name) for name in ("one", "two")]
    engine = DemandingEngine(chains_of(*samples), full=3)
    make_step(engine).process(samples)
    for sample in samples:
        for track in sample.tracks:
            names = [f"{sample.asset.asset_id}-00000-{track.object_index:04d}-{n:04d}-event_en" for n in range(len(track.events))]
            assert [event.texts["en"].text for event in track.events] == [f"says {name}" for name in names]
            assert [event.history["en"] for event in track.events] == [None, *(f"says {name}" for name in names[:-1])]
            assert [name for name in engine.names if name in names] == names
            assert [event.tokens for event in track.events] == [None] * len(names)
            assert track.flags == []
    assert samples[0].usage == {"requests": 8, "prompt_tokens": 128, "cached_tokens": 24, "output_tokens": 24, "shareable_tokens": 0}


def test_clips_of_one_video_do_not_share_a_name(make_step):
    first, second = (clip_with_tracks([1], "video", clip_index) for clip_index in (0, 1))
    engine = DemandingEngine({"video-00000-0000-event_en": 1, "video-00001-0000-event_en": 1}, full=2)
    make_step(engine).process([first, second])
    assert len(set(engine.names)) == 2


def test_the_languages_of_an_event_are_asked_together_and_keep_to_themselves(make_step):
    sample = clip_with_tracks([3, 3])
    engine = DemandingEngine(chains_of(sample) | chains_of(sample, language="zh"))
    make_step(engine, languages=["en", "zh"]).process([sample])
    pairs = list(zip(engine.names[::2], engine.names[1::2], strict=True))
    assert len(pairs) == 6
    assert all(english.removesuffix("en") == chinese.removesuffix("zh") for english, chinese in pairs)
    for track in sample.tracks:
        for before, event in zip(track.events, track.events[1:], strict=False):
            assert event.history == {language: before.texts[language].text for language in ("en", "zh")}


def test_after_an_empty_text_the_last_words_there_were_count(make_step):
    sample = clip_with_tracks([5])
    said = {"0000": "", "0001": "a cat sits", "0002": "", "0003": "", "0004": "it runs"}
    engine = DemandingEngine(chains_of(sample), answer=lambda name: said[name.split("-")[-2]])
    make_step(engine).process([sample])
    [track] = sample.tracks
    assert [event.history["en"] for event in track.events] == [None, None, "a cat sits", "a cat sits", "a cat sits"]
    assert [event.texts["en"].text for event in track.events] == list(said.values())


def test_a_failing_event_fails_its_clip_and_no_other(make_step):
    def answer(name: str) -> str | Exception:
        return ModelOutputError("nonsense") if name == "bad-00000-0001-0002-event_en" else "a cat"

    step = make_step(DemandingEngine({}), max_num_seqs=4)
    for _ in range(5):  # slots of cancelled requests come back, or this would hang
        bad, good = clip_with_tracks([4, 4, 4, 4], "bad"), clip_with_tracks([4, 4], "good")
        step.engine = engine = DemandingEngine(chains_of(bad, good), answer=answer)
        step.process([bad, good])
        assert (bad.failure.code, bad.failure.message, bad.tracks) == ("model_output", "nonsense", [])
        assert all(event.texts["en"].text == "a cat" for track in good.tracks for event in track.events)
        assert not engine.open
        assert "bad-00000-0001-0003-event_en" not in engine.names


def test_a_broken_machine_stops_the_step(make_step):
    sample = clip_with_tracks([2])
    engine = DemandingEngine(chains_of(sample), answer=lambda name: ClusterError("the engine died"))
    with pytest.raises(ClusterError, match="the engine died"):
        make_step(engine).process([sample])


def test_clips_without_tracks_and_tracks_without_events_pass_through(make_step):
    empty, quiet, failed = clip_with_tracks([], "empty"), clip_with_tracks([0], "quiet"), clip_with_tracks([1], "failed")
    failed.fail("decode", "no picture")
    engine = DemandingEngine({})
    make_step(engine).process([empty, quiet, failed])
    assert [sample.status for sample in (empty, quiet, failed)] == ["empty", "ok", "failed"]
    assert engine.names == []


def test_the_fake_engine_captions_events(make_step):
    first, second = clip_with_tracks([3]), clip_with_tracks([3])
    for sample in (first, second):
        step = make_describe_step(parse_job({"describe": {"engine": "fake"}}))
        step.setup()
        step.process([sample])
        step.teardown()
    assert [event.texts for event in first.tracks[0].events] == [event.texts for event in second.tracks[0].events]
    texts = [event.texts["en"].text for event in first.tracks[0].events]
    assert all(texts)
    assert [event.history["en"] for event in first.tracks[0].events] == [None, *texts[:-1]]


# --- the prompts of events --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(golden: Path):
    return load_tokenizer(golden / "pam_tiny")


@pytest.fixture(scope="module")
def projector(golden: Path, tokenizer) -> Projector:
    return load_projector(Checkpoint(golden / "pam_tiny"), len(tokenizer))


@pytest.fixture(scope="module")
def make_prompter(golden: Path, tokenizer, projector):
    def make(**options: object) -> PamEventPrompter:
        options = {"max_tokens": {"event": 12}, **options}
        return PamEventPrompter(projector, tokenizer, golden_job(golden, engine="transformers", **options).describe)

    return make


def test_a_prompt_is_the_clip_between_its_words(make_prompter, projector, tokenizer):
    sample = clip_with_tracks([2])
    track = sample.tracks[0]
    tokens = track.events[1].tokens
    asked = make_prompter(languages=["en", "zh"]).event(sample, track, 1, {"zh": "一只猫"})
    visual = projector.clip(*map(torch.from_numpy, (tokens.image_first, tokens.image_later, tokens.semantic)))
    assert len(visual) == VISUAL
    assert asked.history == {"en": None, "zh": "一只猫"}
    assert asked.cut == ()
    for language, request in asked.requests.items():
        ids = tokenize(video_prompt(language, asked.history[language]), tokenizer)
        assert torch.equal(request.embeds, projector.prompt(visual, ids))
        assert request.sampling.max_tokens == 12
    english, chinese = (request.embeds for request in asked.requests.values())
    assert torch.equal(english[: asked.shared_tokens], chinese[: asked.shared_tokens])
    assert not torch.equal(english[asked.shared_tokens], chinese[asked.shared_tokens])


def test_bfloat16_bits_are_read_as_such(make_prompter):
    sample = clip_with_tracks([1])
    [track] = sample.tracks
    tokens = track.events[0].tokens
    for name in ("image_first", "image_later", "semantic"):
        setattr(tokens, name, torch.from_numpy(getattr(tokens, name)).bfloat16().float().numpy())
    rounded = make_prompter().event(sample, track, 0, {}).requests["en"].embeds
    for name in ("image_first", "image_later", "semantic"):
        bits = torch.from_numpy(getattr(tokens, name)).bfloat16().view(torch.int16).numpy()
        bits.setflags(write=False)
        setattr(tokens, name, bits)
    tokens.is_bfloat16 = True
    assert torch.equal(make_prompter().event(sample, track, 0, {}).requests["en"].embeds, rounded)


def room_for(tokenizer, history_tokens: int, language: str = "en") -> int:
    """A max_model_len that leaves so many tokens to a history, over those of `None`."""
    return VISUAL + len(tokenize(video_prompt(language), tokenizer)) + 12 + history_tokens


SENTENCES = st.lists(
    st.sampled_from(["a cat", " runs", "，一只猫跑", "很快", " \N{GRINNING FACE}", "\n", "  ", "<image>", "\ufffd"]), max_size=60
)


@settings(max_examples=60, deadline=None)
@given(said=SENTENCES.map(lambda parts: "".join(parts).strip()), space=st.integers(0, 40))
def test_a_history_too_long_keeps_its_end(make_prompter, tokenizer, said, space):
    sample = clip_with_tracks([1])
    limit = room_for(tokenizer, space)
    asked = make_prompter(max_model_len=limit).event(sample, sample.tracks[0], 0, {"en": said} if said else {})
    needed = len(asked.requests["en"].embeds) + 12
    whole = VISUAL + len(tokenize(video_prompt("en", said or None), tokenizer)) + 12
    left = asked.history["en"] or ""
    assert needed <= limit
    assert needed == VISUAL + len(tokenize(video_prompt("en", left or None), tokenizer)) + 12
    assert said.endswith(left)
    assert (asked.cut == ("en",)) == (left != said) == (whole > limit)
    if asked.cut and space > 12:
        assert left.strip("\ufffd")
        assert limit - needed <= 12  # what is cut off beyond need is less than a character and the white space around it


def test_no_half_of_a_character_is_kept_in_a_history(make_prompter, tokenizer):
    sample = clip_with_tracks([1])
    said = "\N{GRINNING FACE}" * 8
    pieces = len(tokenizer.encode(said, add_special_tokens=False)) // 8
    assert pieces > 1  # so that a cut may fall inside one
    kept = set()
    for space in range(2, 8 * pieces):
        asked = make_prompter(max_model_len=room_for(tokenizer, space)).event(sample, sample.tracks[0], 0, {"en": said})
        left = asked.history["en"] or ""
        assert left == said[: len(left)]
        kept.add(len(left))
    assert len(kept) > 4


@pytest.mark.parametrize(
    ("before", "after", "shared"),
    [
        (["12", "12"], ["345", "346"], 4),
        (["12", "12"], ["34", "345"], 4),
        (["12", "12"], ["34", "34"], 4),
        (["12", "13"], ["34", "34"], 1),
        (["12", "123"], ["345", "345"], 2),  # the clip comes earlier in one of them, so nothing behind it is shared
        (["123", "12"], ["3", "3"], 2),
        (["12", "12", "12"], ["34", "345", "44"], 2),
        (["", ""], ["1", "2"], 0),
    ],
)
def test_prompts_share_what_they_have_in_common_from_the_start_on(before, after, shared):
    prompts = [PromptIds(tuple(map(int, one)), tuple(map(int, other))) for one, other in zip(before, after, strict=True)]
    assert common_words(prompts) == shared


def test_a_requests_seed_is_of_the_jobs_seed_and_its_name():
    first, second = (parse_job({"describe": {"seed": seed}}).describe for seed in (1, 2))
    seeds = {sampling_for(options, "label", name).seed for options in (first, second) for name in ("a-label_en", "b-label_en")}
    assert len(seeds) == 4
    assert sampling_for(first, "label", "a-label_en") == sampling_for(first, "label", "a-label_en")


def test_a_cut_history_flags_its_track(golden, tokenizer, projector, make_step):
    options = {"max_model_len": room_for(tokenizer, 10), "max_tokens": {"event": 12}, "tasks": ["label"]}
    sample = clip_with_tracks([3, 1])
    long = "a small cat runs over the grass and then it jumps on the table and looks around"
    step = make_step(DemandingEngine(chains_of(sample), answer=lambda name: long), **options)
    step.event_prompter = PamEventPrompter(projector, tokenizer, step._job.describe)
    step.process([sample])
    streamed, single = sample.tracks
    assert (streamed.flags, single.flags) == (["history_cut:event_en"], [])
    histories = [event.history["en"] for event in streamed.events]
    assert histories[0] is None
    assert histories[1] == histories[2]
    assert long.endswith(histories[1])
    assert 0 < len(histories[1]) < len(long)


def test_a_context_without_room_for_the_clip_stops_the_job_and_says_how_much_is_needed(make_prompter, tokenizer):
    sample = clip_with_tracks([1])
    enough = room_for(tokenizer, 0)
    with pytest.raises(
        JobError, match=rf"max_model_len is {enough - 1}, but event \(en\) needs {enough} tokens.*Raise max_model_len to {enough + 12}"
    ):
        make_prompter(max_model_len=enough - 1).event(sample, sample.tracks[0], 0, {})
    assert make_prompter(max_model_len=enough).event(sample, sample.tracks[0], 0, {}).requests


def test_tokens_that_do_not_fit_are_that_clips_failure(make_prompter, make_step):
    lost, torn, infinite, whole = (clip_with_tracks([2], name) for name in ("lost", "torn", "infinite", "whole"))
    lost.tracks[0].events[1].tokens = None
    torn.tracks[0].events[0].tokens.semantic = np.zeros((15, 16, 256), np.float32)
    infinite.tracks[0].events[0].tokens.image_first[0, 0] = np.inf
    step = make_step(DemandingEngine(chains_of(lost, torn, infinite, whole)))
    step.event_prompter = make_prompter()
    step.process([lost, torn, infinite, whole])
    assert [sample.failure and sample.failure.code for sample in (lost, torn, infinite, whole)] == [*["model_output"] * 3, None]
    assert "object 0, event 1: every frame needs its image and its semantic tokens, found none" in lost.failure.message
