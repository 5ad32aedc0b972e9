"""Prompt texts, their token ids, and the places of everything in the embedding sequence, exactly as the reference's."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from datagen.pam.checkpoint import Checkpoint
from datagen.pam.llm import load_tokenizer
from datagen.pam.projector import Projector, load_projector
from datagen.pam.prompts import IMAGE_PROMPTS, NO_HISTORY, SYSTEM, VIDEO_PROMPTS, image_prompt, tokenize, video_prompt
from datagen.records import LANGUAGES, TASKS

REFERENCE_TASKS = {"recognize": "label", "explain": "definition", "brief_cap": "caption", "detail_cap": "description"}
REFERENCE_LANGUAGES = {"en": "en", "ch": "zh"}


@pytest.fixture(scope="module")
def all_cases(golden: Path) -> dict:
    return json.loads((golden / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(golden: Path):
    return load_tokenizer(golden / "pam_tiny")


@pytest.fixture(scope="module")
def projector(golden: Path, tokenizer) -> Projector:
    return load_projector(Checkpoint(golden / "pam_tiny"), len(tokenizer))


def test_wording_is_the_references(golden):
    prompts = json.loads((golden / "prompts.json").read_text(encoding="utf-8"))
    assert prompts["system"] == SYSTEM
    assert prompts["image"] == {f"{task}_{language}": text for (task, language), text in IMAGE_PROMPTS.items()}
    assert prompts["video"] == {f"caption_{language}": text for language, text in VIDEO_PROMPTS.items()}
    assert prompts["video_history_when_none"] == NO_HISTORY
    assert set(IMAGE_PROMPTS) == {(task, language) for task in TASKS for language in LANGUAGES}


def test_image_prompts_and_their_ids(all_cases, tokenizer):
    for case in all_cases["image"]:
        task, _, language = case["task"].rpartition("_")
        text = image_prompt(REFERENCE_TASKS[task], REFERENCE_LANGUAGES[language])
        assert text == case["prompt"]
        assert with_slot(tokenize(text, tokenizer)) == case["prompt_ids"]


def test_video_prompts_and_their_ids(all_cases, tokenizer):
    assert with_slot(tokenize(video_prompt("en"), tokenizer)) == all_cases["video"]["prompt_ids"]
    for case in all_cases["stream"]:
        text = video_prompt("en", history=case["history_in"])
        assert text == case["prompt"]
        assert with_slot(tokenize(text, tokenizer)) == case["prompt_ids"]


def test_an_image_slot_inside_the_history_is_text(tokenizer):
    ids = tokenize(video_prompt("en", history="a picture of <image> tags"), tokenizer)
    assert "<image> tags" in tokenizer.decode(ids.after)


def test_layout_of_a_region(golden, all_cases, tokenizer, projector):
    """In the golden embeddings, words and newlines stand where ours do, bit for bit."""
    case = next(case for case in all_cases["image"] if case["name"] == "image_0_box")
    expected = load_file(golden / "outputs" / "image_0_box.safetensors")["inputs_embeds_full"]
    image, semantic = torch.full((1, 1024, 1024), torch.nan), torch.full((1, 16, 256), torch.nan)
    ours = projector.prompt(projector.regions(image, semantic)[0], tokenize(case["prompt"], tokenizer))
    assert ours.shape == expected.shape
    known = ~ours.isnan().any(1)
    assert int(known.sum()) == len(expected) - 1024 - 16
    assert torch.equal(ours[known], expected[known])
    assert runs(known) == [(span["start"], span["end"]) for span in merged_words(case["layout"]) if span["known"]]


def test_layout_of_a_clip(all_cases, tokenizer, projector):
    case = all_cases["video"]
    first, others = torch.full((1024, 1024), torch.nan), torch.full((15, 256, 1024), torch.nan)
    visual = projector.clip(first, others, torch.full((16, 16, 256), torch.nan))
    ours = projector.prompt(visual, tokenize(case["prompt"], tokenizer))
    assert len(ours) == case["embeds_len"] == case["layout"][-1]["end"]
    assert runs(~ours.isnan().any(1)) == [(span["start"], span["end"]) for span in merged_words(case["layout"]) if span["known"]]
    for span in case["layout"]:
        if span["kind"].endswith("newline"):
            assert torch.equal(ours[span["start"]], getattr(projector, span["kind"]))


def with_slot(ids) -> list[int]:
    return [*ids.before, -200, *ids.after]


def runs(mask: torch.Tensor) -> list[tuple[int, int]]:
    """[start, end) of each run of True."""
    padded = torch.cat([torch.tensor([False]), mask, torch.tensor([False])])
    edges = [n for n, (before, after) in enumerate(pairwise(padded.tolist())) if before != after]
    return list(zip(edges[::2], edges[1::2], strict=True))


def merged_words(layout: list[dict]) -> list[dict]:
    """Neighbouring spans whose values come from the checkpoint alone, as one."""
    merged: list[dict] = []
    for span in layout:
        known = span["kind"] not in ("image_tokens", "sem_tokens")
        if merged and merged[-1]["known"] == known:
            merged[-1]["end"] = span["end"]
        else:
            merged.append({"known": known, "start": span["start"], "end": span["end"]})
    return merged
