"""Learning what a teacher held likely: from its log-probabilities in the dataset to the loss."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_student import STUDENT, metrics_of, pocket

from datagen.check import check_dataset
from datagen.distill.config import DescribeStage, StudentOptions
from datagen.distill.student import new_student
from datagen.distill.tasks import Data, make_task, require
from datagen.distill.teacher import Taught, divergence, stacked
from datagen.distill.train import distill
from datagen.errors import SourceError
from datagen.job import parse_job
from datagen.pam.llm import load_tokenizer
from datagen.run import run_job

K = 5
STAGE = {"kind": "describe", "batch_size": 4, "clip_share": 0.4, "warmup_steps": 1, "learning_rate": 3e-3, "tasks": ["label", "caption"]}
TAUGHT = {**STAGE, "distill_weight": 0.75, "temperature": 2.0}


@pytest.fixture(scope="module")
def teacher(scenes, tmp_path_factory):
    """A checkpoint whose masks are never empty and whose words are random."""
    folder = tmp_path_factory.mktemp("teacher")
    student = new_student(StudentOptions(**STUDENT), folder / "tokenizer", Data(scenes, folder / "cache", 64).texts(), seed=4)
    decoder = student.segmenter.sam_mask_decoder
    with torch.no_grad():
        decoder.pred_obj_score_head.layers[-1].bias += 5
        decoder.output_upscaling[3].bias[0] = 4.0
        for network in decoder.output_hypernetworks_mlps:
            network.layers[-1].bias[0] = 5.0
        for weight in student.llm.parameters():  # else a token only calls for itself again
            weight.mul_(8 if weight.dim() > 1 else 1)
    return str(student.export(folder / "checkpoint"))


@pytest.fixture(scope="module")
def corpus(scenes, teacher, tmp_path_factory):
    """What that checkpoint says of the scenes."""
    folder = tmp_path_factory.mktemp("corpus")
    output, manifest = folder / "data", folder / "manifest.jsonl"
    asked = [line for kind in ("box", "clips") for line in Path(scenes, f"manifest-{kind}.jsonl").read_text().splitlines()[:2]]
    manifest.write_text("\n".join(asked[:3]))
    describe = {"engine": "transformers", "tasks": STAGE["tasks"], "languages": ["en", "zh"], "device": "cpu", "logprobs": K}
    job = {
        "source": {"input": str(manifest), "media_root": scenes},
        "output": str(output),
        "model": {"checkpoint": teacher},
        "perceive": {"device": "cpu"},
        "describe": {**describe, "max_tokens": {"label": 3, "caption": 4, "event": 4}},
        "run": {"executor": "inprocess"},
    }
    run_job(parse_job(job))
    assert check_dataset(str(output)).ok
    return str(output)


@pytest.fixture(scope="module")
def task(corpus, teacher, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    data = Data(corpus, work / "cache", 64)
    student = new_student(StudentOptions(**STUDENT | {"tokenizer": teacher}), work / "tokenizer", [], seed=5)
    stage = DescribeStage(**TAUGHT, steps=1)
    require(stage, student, data)
    return make_task(stage, student, data, (0, 0), work / "cache")


def distilled(teacher, *stages, **options):
    return pocket(*stages, student=STUDENT | {"tokenizer": teacher}, **options)


def test_the_divergence_is_that_of_the_distributions():
    random = np.random.default_rng(0)
    logits, other = torch.from_numpy(random.normal(size=(2, 4, 7)) * 2)
    every, order = other.log_softmax(-1).sort(descending=True)
    for temperature in (1.0, 3.0):
        p, q = (some.div(temperature).softmax(-1) for some in (other, logits))
        expected = (p * (p / q).log()).sum(-1)
        assert torch.allclose(divergence(logits, order, every, temperature), expected)
        assert divergence(other, order, every, temperature).abs().max() < 1e-9
    # Of three tokens with 0.5, 0.3 and 0.2 the two likeliest are known, and count as 0.625 and 0.375.
    known = torch.tensor([[0.5, 0.3]]).log()
    student = torch.tensor([[0.2, 0.2, 0.6]]).log()
    expected = 0.625 * math.log(0.625 / 0.2) + 0.375 * math.log(0.375 / 0.6)
    assert float(divergence(student, torch.tensor([[0, 2]]), known, 1.0)) == pytest.approx(expected)


def test_lists_of_different_lengths_do_not_mix():
    one = Taught((4, 5), np.array([[4, 1, 2], [5, 1, 2]], np.int32), np.log(np.array([[0.5, 0.3, 0.1]] * 2, np.float32)))
    two = Taught((3,), np.array([[3]], np.int32), np.log(np.array([[0.9]], np.float32)))
    ids, logprobs = stacked([one, two])
    logits = torch.randn(3, 8, requires_grad=True)
    found = divergence(logits, ids, logprobs, 1.0)
    assert found[2].item() == pytest.approx(-logits[2].log_softmax(-1)[3].item(), abs=1e-5)
    found.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_texts_are_learned_as_the_teacher_wrote_them(task):
    tokenizer = task.student.tokenizer
    seen = set()
    for step in range(12):
        batch = task.batch(step)
        for answer in (answer for of_row in batch.answers for answer in of_row):
            seen.add(answer.key)
            assert answer.ids == answer.taught.ids == tuple(answer.taught.top_ids[:, 0])
            assert answer.taught.top_logprobs.shape == (len(answer.ids), K)
    assert seen == {(name, language) for name in ("label", "caption", "event") for language in ("en", "zh")}
    region = task.regions[0].regions[0]
    taught = task._teachers["regions"].of(region.row, "caption", "en")
    assert tokenizer.decode(taught.ids, skip_special_tokens=True).strip() == region.texts["caption", "en"]


def test_the_loss_is_the_weighted_mean_of_both(task):
    batch = task.batch(0)
    with torch.no_grad():
        loss, report = task.loss(batch)
    weight, temperature = TAUGHT["distill_weight"], TAUGHT["temperature"]
    taught = (1 - weight) * report["next_token"] + weight * temperature**2 * report["divergence"]
    assert float(loss) == pytest.approx(taught + task.stage.guide_weight * report["guide"], rel=1e-5)


def test_a_student_comes_closer_to_its_teacher_and_an_interrupted_one_on_the_same_curve(corpus, teacher, tmp_path):
    class Stop(Exception):
        pass

    def stop(_line):
        raise Stop

    stage = {**TAUGHT, "steps": 15, "batch_size": 2, "clip_share": 0.0, "distill_weight": 1.0, "learning_rate": 6e-3}
    config = distilled(teacher, stage, steps_per_epoch=5, save_every_s=1e-6)
    distill(config, corpus, tmp_path / "whole")
    with pytest.raises(Stop):
        distill(config, corpus, tmp_path / "stopped", stop)
    distill(config, corpus, tmp_path / "stopped")
    lines = metrics_of(tmp_path / "whole")
    assert metrics_of(tmp_path / "stopped") == lines
    assert lines[-1]["divergence"] < 0.85 * lines[0]["divergence"]
    found, expected = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("whole", "stopped"))
    assert found == expected
    assert load_tokenizer(tmp_path / "whole").get_vocab() == load_tokenizer(teacher).get_vocab()


@pytest.mark.parametrize(("clip_share", "table"), [(0.0, "regions"), (1.0, "tracks")])
def test_a_dataset_without_the_column_is_refused_before_anything_is_trained(scenes, tmp_path, clip_share, table):
    stages = {"kind": "segment", "steps": 1}, {**TAUGHT, "steps": 1, "clip_share": clip_share}
    with pytest.raises(SourceError, match=f"no column token_logprobs in `{table}`.*describe.logprobs"):
        distill(pocket(*stages), scenes, tmp_path / "student")
    assert not (tmp_path / "student.work/metrics.jsonl").exists()


def test_another_tokenizer_is_refused(corpus, tmp_path):
    with pytest.raises(SourceError, match=r"the student's is [0-9a-f]{16}: .*Set student\.tokenizer"):
        distill(pocket({**TAUGHT, "steps": 1}), corpus, tmp_path / "student")


def test_a_text_that_the_teacher_did_not_write_is_named(corpus, teacher, tmp_path):
    with pytest.raises(SourceError, match="no description_en to learn from"):
        distill(distilled(teacher, {**TAUGHT, "steps": 1, "tasks": ["label", "description"]}), corpus, tmp_path / "student")
