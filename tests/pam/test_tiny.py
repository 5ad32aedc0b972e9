"""The embedded checkpoint: the same bytes from a seed, whole, and good for every step."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from describe_helpers import golden_job
from PIL import Image

from datagen.assemble import assemble
from datagen.describe.step import DescribeStep
from datagen.job import AssembleOptions, ModelOptions, PerceiveOptions, parse_job
from datagen.pam.checkpoint import Checkpoint, checkpoint_folder, resolve_model
from datagen.pam.llm import load_tokenizer
from datagen.pam.prompts import IMAGE_PROMPTS, image_prompt, tokenize
from datagen.pam.tiny import IMAGE_SIZE, build_tiny
from datagen.perceive.pam import PamPerceiveStep
from datagen.records import Asset, Prompt, Sample


@pytest.fixture(scope="module")
def tiny(model_cache: Path) -> Path:
    return checkpoint_folder(ModelOptions(checkpoint="tiny"))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_seed_gives_the_same_bytes(tiny, tmp_path):
    assert hashes(build_tiny(tmp_path / "again")) == hashes(tiny)
    other = hashes(build_tiny(tmp_path / "other", seed=1))
    assert {name for name, digest in hashes(tiny).items() if other[name] != digest} == {"model.safetensors", "sam2/model.safetensors"}


def test_it_has_what_a_real_checkpoint_has(tiny, golden):
    ours, reference = Checkpoint(tiny), Checkpoint(golden / "pam_tiny")
    tower = "model.vision_tower."
    assert set(ours.shapes) == {key for key in reference.shapes if not key.startswith(tower)}
    tokenizer = load_tokenizer(tiny)
    assert len(tokenizer) < ours.shapes["model.embed_tokens.weight"][0]
    for key in IMAGE_PROMPTS:
        ids = tokenize(image_prompt(*key), tokenizer)
        assert tokenizer.decode([*ids.before]) + "<image>" + tokenizer.decode([*ids.after]) == image_prompt(*key)
        assert len(ids) < 40


def test_it_goes_through_the_model_steps(tiny, golden, model_cache):
    files = resolve_model(ModelOptions(checkpoint="tiny"))
    assert files.checkpoint == tiny
    everything = {"points_per_side": 8}
    perceive = PamPerceiveStep(ModelOptions(checkpoint="tiny"), PerceiveOptions(device="cpu", dtype="float32", everything=everything))
    perceive.setup()
    prompts = [Prompt(box=(40.0, 40.0, 300.0, 200.0)), Prompt(points=[(100.0, 90.0)], labels=[1])]
    samples = [picture(golden, "image_0.png", None), picture(golden, "image_1.png", None), picture(golden, "image_1.png", prompts)]
    perceive.process(samples)
    assert [sample.failure for sample in samples] == [None, None, None]
    assert min(len(sample.regions) for sample in samples) >= 2
    assert samples[0].tokens.image.shape[1:] == (64, 1024)

    job = parse_job({"model": {"checkpoint": "tiny"}, "describe": golden_job(tiny, engine="transformers").describe.model_dump()})
    describe = DescribeStep(job)
    describe.setup()
    describe.process(samples)
    describe.teardown()
    rows = [assemble(sample, AssembleOptions()) for sample in samples]
    assert [row.status for row in rows] == ["ok", "ok", "ok"]
    texts = [text for row in rows for region in row.regions for text in region.texts.values()]
    assert len(texts) == 4 * sum(len(row.regions) for row in rows)
    assert len({text.text for text in texts}) > len(texts) / 2
    assert all(text.logprob < 0 for text in texts)


def picture(golden: Path, name: str, prompts: list[Prompt] | None) -> Sample:
    with Image.open(golden / "images" / name) as image:
        pixels = np.array(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE)))
        return Sample(0, Asset(name, name, prompts=prompts), image.width, image.height, pixels=pixels)
