"""The embedded trained checkpoint is right about scenes that it was not trained on, through the public door."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datagen.evaluate import evaluate
from datagen.job import ModelOptions, load_job
from datagen.pam.checkpoint import checkpoint_folder
from datagen.run import run_job
from datagen.scenes.check import attributes_right

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"

pytestmark = pytest.mark.slow


def found(tmp_path: Path, kind: str) -> dict:
    values = {"source.input": str(SAMPLES / f"manifest-{kind}.jsonl"), "output": str(tmp_path / kind), "model.checkpoint": "tiny-shapes"}
    run_job(load_job(ROOT / "examples" / "tiny-shapes" / "job.yaml", values=values))
    return evaluate(str(tmp_path / kind), str(SAMPLES))


def test_it_is_small_and_whole() -> None:
    folder = checkpoint_folder(ModelOptions(checkpoint="tiny-shapes"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20_000_000
    assert "apache-2.0" in (folder / "README.md").read_text()


def test_boxes_become_masks_and_texts(tmp_path: Path) -> None:
    report = found(tmp_path, "box")
    assert report["masks"]["mean_iou"] > 0.9
    exact = {column: scores["exact_match"] for column, scores in report["texts"].items()}
    assert min(exact[f"{task}_{language}"] for task in ("label", "definition") for language in ("en", "zh")) > 0.9, exact
    assert min(exact["caption_en"], exact["caption_zh"]) > 0.85, exact
    assert pq.read_table(tmp_path / "box" / "regions").num_rows == pq.read_table(SAMPLES / "regions").num_rows
    for language in ("en", "zh"):
        assert attributes_right(tmp_path / "box", SAMPLES, language) > 0.8


def test_everything_is_found(tmp_path: Path) -> None:
    assert found(tmp_path, "everything")["masks"]["recall_75"] > 0.85


def test_objects_of_clips_are_followed_and_told_of(tmp_path: Path) -> None:
    clips = found(tmp_path, "clips")["clips"]
    assert clips["mean_j"] > 0.8
    assert clips["texts"]["caption_en"]["exact_match"] >= 0.5  # of six objects
