"""The whole way: scenes, a student trained from them, `datagen run` with it, and `datagen eval` of what it says."""

import json

import pytest
from distill_student import pocket

from datagen.distill.config import parse_config
from datagen.distill.train import distill
from datagen.evaluate import evaluate
from datagen.job import ModelOptions, parse_job
from datagen.pam.inspection import inspect_checkpoint
from datagen.run import run_job
from datagen.scenes import write_scenes


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A student that has learned two pictures by heart."""
    folder = tmp_path_factory.mktemp("learned")
    write_scenes(folder / "data", num_images=2, seed=11)
    segment = {"kind": "segment", "steps": 110, "batch_size": 2, "prompts_per_image": 6, "learning_rate": 2e-3, "flip": False}
    describe = {"kind": "describe", "steps": 160, "batch_size": 6, "learning_rate": 3e-3, "tasks_per_region": 8}
    config = pocket({**segment, "warmup_steps": 20}, {**describe, "warmup_steps": 20}, steps_per_epoch=55)
    metrics = []
    student = distill(config, str(folder / "data"), folder / "student", metrics.append)
    return folder, student, metrics


@pytest.mark.slow
def test_a_student_segments_and_tells_what_it_has_learned(learned, tmp_path):
    folder, student, _ = learned
    job = {
        "source": {"input": str(folder / "data" / "manifest-box.jsonl")},
        "output": str(tmp_path / "found"),
        "model": {"checkpoint": str(student)},
        "perceive": {"device": "cpu"},
        "describe": {"engine": "transformers", "languages": ["en", "zh"], "device": "cpu"},
        "run": {"executor": "inprocess"},
    }
    run_job(parse_job(job))
    report = evaluate(str(tmp_path / "found"), str(folder / "data"))
    assert report["masks"]["mean_iou"] > 0.85
    assert {column: scores["exact_match"] for column, scores in report["texts"].items()} == dict.fromkeys(report["texts"], 1.0)
    assert len(report["texts"]) == 8


@pytest.mark.slow
def test_metrics_are_written_per_epoch_and_get_better(learned):
    folder, _, metrics = learned
    lines = [json.loads(line) for line in (folder / "student.work/metrics.jsonl").read_text().splitlines()]
    assert lines == metrics
    assert [(line["kind"], line["step"]) for line in lines] == [
        *(("segment", step) for step in (55, 110)),
        *(("describe", step) for step in (55, 110, 160)),
    ]
    assert lines[1]["loss"] < lines[0]["loss"] / 2
    assert lines[4]["exact_label_en"] == 1


@pytest.mark.slow
def test_the_checkpoint_has_the_layout_of_the_real_ones(learned):
    _, student, _ = learned
    assert inspect_checkpoint(ModelOptions(checkpoint=str(student))).ok
    assert sum(path.stat().st_size for path in student.rglob("*") if path.is_file()) < 5_000_000


@pytest.mark.slow
def test_training_can_start_from_a_checkpoint(learned, tmp_path):
    folder, student, metrics = learned
    stage = {"kind": "describe", "steps": 2, "batch_size": 4, "learning_rate": 1e-5, "warmup_steps": 0}
    config = parse_config({"student": {"init": str(student)}, "stages": [stage], "device": "cpu"})
    found = []
    distill(config, str(folder / "data"), tmp_path / "again", found.append)
    assert found[0]["tokens_right"] > 0.95
    assert found[0]["next_token"] < metrics[2]["next_token"]
