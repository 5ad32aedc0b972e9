"""From tracked clips to captions: layout, embeddings, logits and greedy tokens against numbers recorded from the PAM reference.

Segments of the stream are tested apart, each told the golden caption before it, and (slow) as one chain that tells itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from describe_helpers import golden_job
from safetensors.torch import load_file
from video_cases import CASES, TrackedCase, read_cases

from datagen.describe import Request
from datagen.describe.events import EventRequests
from datagen.describe.step import DescribeStep
from datagen.pam.checkpoint import Checkpoint
from datagen.pam.llm import load_tokenizer
from datagen.pam.projector import Projector, load_projector
from datagen.records import Asset, Clip, Event, Sample, Track

pytestmark = [pytest.mark.vllm, pytest.mark.slow]  # all in the process of the engine: tracking the clips takes longest

NUM_TOKENS = 16  # the reference's answers are this long; none of them has an end of turn in it


@pytest.fixture(scope="module")
def clips(golden: Path) -> dict[str, dict[str, Any]]:
    return read_cases(golden)


@pytest.fixture(scope="module")
def step(golden: Path, model_cache: Path) -> Iterator[DescribeStep]:
    """A describe step with transformers over the golden checkpoint, in float32."""
    step = DescribeStep(golden_job(golden, engine="transformers", max_model_len=6144, max_tokens={"event": NUM_TOKENS}))
    step.setup()
    yield step
    step.teardown()


@pytest.fixture(scope="module")
def projector(golden: Path) -> Projector:
    checkpoint = Checkpoint(golden / "pam_tiny")
    return load_projector(checkpoint, len(load_tokenizer(checkpoint.folder)))


@pytest.fixture(scope="module")
def asked(clips: dict[str, dict], tracked: Callable[[str], TrackedCase], step: DescribeStep) -> Callable[[str], EventRequests]:
    """The requests for a case, told the golden history."""

    def ask(name: str) -> EventRequests:
        sample = sample_of([tracked(name)])
        return step.event_prompter.event(sample, sample.tracks[0], 0, told(clips[name]))

    return cache(ask)


def told(case: dict[str, Any]) -> dict[str, str]:
    history = case.get("history_in", "None")
    return {} if history == "None" else {"en": history}


def sample_of(segments: list[TrackedCase]) -> Sample:
    """A clip with one object whose events are these segments, one after the other."""
    track = Track(0, {}, [], track_id="golden-t0000")
    for segment in segments:
        start = track.events[-1].end_frame + 1 if track.events else 0
        stop = start + len(segment.track.frames)
        track.events.append(Event(start / 4, stop / 4, start, stop - 1, replace(segment.track.tokens)))
    width, height = segments[0].width, segments[0].height
    return Sample(0, Asset("golden", "golden.mp4", "video"), width, height, clip=Clip(0, 0.0, stop / 4, stop, is_last=True), tracks=[track])


def outputs(golden: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(golden / "outputs" / f"{name}.safetensors")


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_layout(clips, asked, projector, name):
    """Words and newlines stand where the reference has them, bit for bit."""
    case, embeds = clips[name], asked(name).requests["en"].embeds
    assert len(embeds) == case["embeds_len"] == case["layout"][-1]["end"]
    assert asked(name).history == {"en": told(case).get("en")}
    kinds = set()
    for span in case["layout"]:
        kinds.add(span["kind"])
        found = embeds[span["start"] : span["end"]]
        if span["kind"] == "text":
            assert torch.equal(found, projector.words(case["prompt_ids"][slice(*span["token_ids"])]))
        elif span["kind"].endswith("newline"):
            assert torch.equal(found, getattr(projector, span["kind"])[None])
    assert kinds == {"text", "image_tokens", "image_newline", "sem_tokens", "semT_newline", "frame_newline"}


@pytest.mark.parametrize("name", CASES)
def test_embeddings(golden, asked, name):
    embeds, expected = asked(name).requests["en"].embeds, outputs(golden, name)
    assert difference(embeds[::64], expected["inputs_embeds_s64"]) <= 5e-4
    # A row of 128 values, each off by 5e-4, is off by sqrt(128) times that in its norm at most.
    assert difference(embeds.norm(dim=1), expected["inputs_embeds_row_norm"]) <= 5e-4 * embeds.shape[1] ** 0.5


@pytest.mark.parametrize("name", CASES)
def test_logits(golden, clips, asked, step, name):
    """After the prompt, and after each of the reference's tokens but the last."""
    with torch.inference_mode():
        words = step.engine.model.get_input_embeddings()(torch.tensor(clips[name]["tokens"][:-1]))
        whole = torch.cat([asked(name).requests["en"].embeds, words])[None]
        found = step.engine.model(inputs_embeds=whole, logits_to_keep=NUM_TOKENS).logits[0]
    assert difference(found, outputs(golden, name)["logits"]) <= 5e-3


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens(clips, asked, step, name):
    check_greedy(step.engine, asked(name).requests["en"], clips[name])


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_with_vllm(clips, asked, vllm_step, name):
    check_greedy(vllm_step.engine, asked(name).requests["en"], clips[name])


def check_greedy(engine: Any, request: Request, case: dict[str, Any]) -> None:
    completion = asyncio.run(engine.generate(request))
    assert case["safe_token_count"] == NUM_TOKENS
    assert list(completion.token_ids) == case["tokens"]
    assert (completion.text, completion.finish_reason) == (case["text"], "length")


def test_a_clip_becomes_the_references_caption(clips, tracked, step):
    sample = sample_of([tracked("video")])
    step.process([sample])
    [event] = sample.tracks[0].events
    assert (sample.failure, event.texts["en"].text, event.history) == (None, clips["video"]["text"], {"en": None})


@pytest.mark.soak
def test_a_stream_tells_itself_what_the_reference_tells_it(clips, tracked, step):
    names = ["stream_0", "stream_1", "stream_2"]
    sample = sample_of([tracked(name) for name in names])
    step.process([sample])
    events = sample.tracks[0].events
    assert [event.texts["en"].text for event in events] == [clips[name]["text"] for name in names]
    assert [event.history["en"] for event in events] == [told(clips[name]).get("en") for name in names]
