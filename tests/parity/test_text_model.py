"""From a picture to text: embeddings, logits and greedy tokens against numbers recorded from the PAM reference."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from describe_helpers import golden_job
from PIL import Image
from safetensors.torch import load_file

from datagen.describe import Request, Sampling
from datagen.describe.load import make_engine
from datagen.describe.transformers import TransformersEngine
from datagen.job import ModelOptions, PerceiveOptions
from datagen.pam.checkpoint import Checkpoint
from datagen.pam.llm import load_tokenizer, prepare_llm
from datagen.pam.projector import Projector, load_projector
from datagen.pam.prompts import tokenize
from datagen.perceive.pam import PamPerceiveStep
from datagen.records import Asset, Prompt, Sample

NAMES = ["image_0_box", "image_0_points", "image_1_box", "image_1_points", "image_1_absent", "image_2_box", "image_2_points"]


@pytest.fixture(scope="module")
def checkpoint(golden: Path) -> Checkpoint:
    return Checkpoint(golden / "pam_tiny")


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, golden: Path, model_cache: Path) -> TransformersEngine:
    return make_engine(prepare_llm(checkpoint), golden_job(golden, engine="transformers").describe, pytest.fail)


@pytest.fixture(scope="module")
def projector(checkpoint: Checkpoint) -> Projector:
    return load_projector(checkpoint, len(load_tokenizer(checkpoint.folder)))


@pytest.fixture(scope="module")
def visual(golden: Path, cases: dict, projector: Projector) -> dict[str, torch.Tensor]:
    """Visual embeddings (1042, H) of every case, through the perceive step."""
    model = ModelOptions(checkpoint=str(golden / "pam_tiny"), sam2_config=str(golden / "sam2_tiny_config.json"))
    step = PamPerceiveStep(model, PerceiveOptions(device="cpu", dtype="float32", drop_absent=False))
    step.setup()
    samples = {name: undescribed(golden, case) for name, case in cases.items()}
    step.process(list(samples.values()))
    assert [sample.failure for sample in samples.values()] == [None] * len(samples)
    tokens = {name: sample.tokens for name, sample in samples.items()}
    return {name: projector.regions(torch.from_numpy(t.image), torch.from_numpy(t.semantic))[0] for name, t in tokens.items()}


@pytest.fixture(scope="module")
def embeds(checkpoint: Checkpoint, cases: dict, projector: Projector, visual: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole input of the LLM for every case, (L, H)."""
    tokenizer = load_tokenizer(checkpoint.folder)
    return {name: projector.prompt(visual[name], tokenize(case["prompt"], tokenizer)) for name, case in cases.items()}


def undescribed(golden: Path, case: dict) -> Sample:
    """A sample as the decode step leaves it."""
    given, labels = case["box_or_points"], case["labels"]
    prompt = Prompt(box=tuple(given)) if labels is None else Prompt(points=[tuple(point) for point in given], labels=labels)
    with Image.open(golden / "images" / case["image"]) as image:
        pixels = np.asarray(image.convert("RGB").resize((1024, 1024)))
        return Sample(0, Asset(case["name"], case["image"], prompts=[prompt]), image.width, image.height, pixels=pixels)


def outputs(golden: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(golden / "outputs" / f"{name}.safetensors")


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def logits_after(engine: TransformersEngine, prompt: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Next-token logits after the prompt and after each of `ids` but the last, (len(ids), V)."""
    with torch.inference_mode():
        words = engine.model.get_input_embeddings()(torch.tensor(ids[:-1]))
        return engine.model(inputs_embeds=torch.cat([prompt, words])[None], logits_to_keep=len(ids)).logits[0]


def say(engine, prompt: torch.Tensor, **sampling: float):
    return asyncio.run(engine.generate(Request("parity", prompt, Sampling(16, ignore_eos=True, **sampling))))


def test_every_golden_case_is_tested(cases):
    assert set(cases) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_semantic_projector_alone(golden, projector, name):
    expected = outputs(golden, name)
    assert difference(projector.mm_projector_semT(expected["sem_tokens"]), expected["proj_sem"]) <= 5e-4


@pytest.mark.parametrize("name", NAMES)
def test_embeddings(golden, visual, embeds, name):
    expected = outputs(golden, name)
    assert difference(visual[name][:1024][::32], expected["proj_img_s32"]) <= 5e-4
    assert difference(visual[name][1025:1041], expected["proj_sem"]) <= 5e-4
    assert difference(embeds[name][::32], expected["inputs_embeds_s32"]) <= 5e-4
    # A row of 128 values, each off by 5e-4, is off by sqrt(128) times that in its norm at most.
    assert difference(embeds[name].norm(dim=1), expected["inputs_embeds_row_norm"]) <= 5e-4 * embeds[name].shape[1] ** 0.5
    if "inputs_embeds_full" in expected:
        assert difference(embeds[name], expected["inputs_embeds_full"]) <= 5e-4


def test_logits_from_golden_embeddings(golden, cases, engine):
    expected = outputs(golden, "image_0_box")
    found = logits_after(engine, expected["inputs_embeds_full"], cases["image_0_box"]["tokens"])
    assert difference(found, expected["logits"]) <= 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_logits_end_to_end(golden, cases, engine, embeds, name):
    assert difference(logits_after(engine, embeds[name], cases[name]["tokens"]), outputs(golden, name)["logits"]) <= 5e-3


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_with_transformers(cases, engine, embeds, name):
    check_greedy(say(engine, embeds[name]), cases[name])


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_with_vllm(cases, vllm_step, embeds, name):
    check_greedy(say(vllm_step.engine, embeds[name]), cases[name])


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("logprobs", [1, 30])
def test_both_engines_tell_the_same_log_probabilities(cases, engine, vllm_step, embeds, logprobs):
    prompt, safe = embeds["image_0_box"], cases["image_0_box"]["safe_token_count"]
    ours, other = (say(some, prompt, logprobs=logprobs).token_logprobs for some in (engine, vllm_step.engine))
    assert ours.tokenizer == other.tokenizer
    assert ours.top_ids.shape == other.top_ids.shape == (16, logprobs)
    assert np.array_equal(ours.token_ids[:safe], other.token_ids[:safe])
    assert np.allclose(ours.logprobs[:safe], other.logprobs[:safe], atol=5e-3)
    assert np.allclose(ours.top_logprobs[:safe], other.top_logprobs[:safe], atol=5e-3)
    # Near ties may come in another order.
    assert (ours.top_ids[:safe] == other.top_ids[:safe]).mean() > 0.9
    for told in (ours, other):
        assert [told.dtype for told in (told.token_ids, told.logprobs, told.top_ids, told.top_logprobs)] == ["i4", "f4"] * 2


def check_greedy(completion, case: dict) -> None:
    safe = case["safe_token_count"]
    assert list(completion.token_ids[:safe]) == case["tokens"][:safe]
    assert completion.finish_reason == "length"
    if safe == len(case["tokens"]):
        assert completion.text == case["text"]


def test_repetition_penalty_sees_generated_ids_only(golden, cases, engine):
    prompt = outputs(golden, "image_0_box")["inputs_embeds_full"]
    assert list(say(engine, prompt, repetition_penalty=1.05).token_ids) == cases["image_0_box"]["tokens_rp105"]


def test_mean_logprob_is_that_of_the_logits(golden, cases, engine):
    case, expected = cases["image_0_box"], outputs(golden, "image_0_box")
    safe = case["safe_token_count"]
    prompt = Request("logprob", expected["inputs_embeds_full"], Sampling(safe, ignore_eos=True))
    ids = torch.tensor(case["tokens"][:safe])
    logprobs = expected["logits"][:safe].log_softmax(-1).gather(1, ids[:, None])
    assert abs(asyncio.run(engine.generate(prompt)).logprob - float(logprobs.mean())) <= 1e-3
