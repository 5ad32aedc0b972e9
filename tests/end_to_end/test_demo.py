"""The main job as a new user runs it: the rendered samples, the embedded model, Ray, and vLLM on whatever the machine has."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kills import Run
from pycocotools import mask as coco_mask

from datagen.check import check_dataset
from datagen.evaluate import evaluate

ROOT = Path(__file__).parents[2]
TASKS = ("label", "definition", "caption", "description")

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "corpus"


@pytest.fixture(scope="module")
def summary(corpus: Path) -> dict:
    return Run(ROOT / "pipelines" / "demo.yaml", ROOT / "samples" / "manifest-mixed.jsonl", corpus).finish(timeout=280)


def test_every_sample_is_in_the_corpus(summary: dict, corpus: Path) -> None:
    assert summary["statuses"] == {"ok": 12}
    report = check_dataset(str(corpus))
    assert report.ok, report.violations[:5]
    assert report.num_regions == summary["regions"] >= 12


def test_every_region_has_every_text_in_both_languages(summary: dict, corpus: Path) -> None:
    for row in pq.read_table(corpus / "regions").to_pylist():
        for task in TASKS:
            for language in ("en", "zh"):
                assert row[f"{task}_{language}_finish"] in {"stop", "length"}
                assert row[f"{task}_{language}_logprob"] <= 0


def test_what_it_says_is_true(summary: dict, corpus: Path) -> None:
    report = evaluate(str(corpus), str(ROOT / "samples"))
    exact = {column: scores["exact_match"] for column, scores in report["texts"].items()}
    assert report["masks"]["mean_iou"] > 0.7
    assert min(exact["label_en"], exact["label_zh"], exact["definition_en"], exact["definition_zh"]) > 0.7, exact


def test_a_regions_tasks_share_its_prompt(summary: dict) -> None:
    usage = summary["usage"]
    assert usage["cached_tokens"] / usage["prompt_tokens"] >= 0.3  # the eight prompts of a region are half visual tokens, half question
    assert not summary["warnings"]


def test_the_tables_open_in_the_usual_readers(summary: dict, corpus: Path) -> None:
    import datasets
    import duckdb
    import pandas

    regions = datasets.load_dataset(
        "parquet", data_files=str(corpus / "regions" / "*.parquet"), split="train", cache_dir=corpus.parent / "hf"
    )
    assert len(regions) == summary["regions"]
    first = regions[0]
    height, width = coco_mask.decode(first["mask"]).shape
    asset = pandas.read_parquet(corpus / "assets").set_index("asset_id").loc[first["asset_id"]]
    assert (height, width) == (asset["height"], asset["width"])
    joined = f"SELECT count(*) FROM '{corpus}/assets/*.parquet' JOIN '{corpus}/regions/*.parquet' USING (part_id, asset_id)"
    assert duckdb.sql(joined).fetchall() == [(summary["regions"],)]


def test_the_run_record_says_where_the_rows_come_from(summary: dict, corpus: Path) -> None:
    record = json.loads((corpus / "_datagen" / "runs" / f"{summary['run_id']}.json").read_text())
    assert record["status"] == "finished"
    assert record["model"]["checkpoint"] == "tiny-shapes"
    hashes = record["model"]["sha256"]
    assert set(hashes) == {"model.safetensors", "sam2/model.safetensors"}
    assert len(set(hashes.values())) == 2
    assert all(len(digest) == 64 for digest in hashes.values())
    assert record["prompts"]["label_en"].startswith("<|im_start|>system")
    assert record["summary"]["usage"]["output_tokens"] > 0
    assert {"torch", "sam2", "ray", "transformers"} <= record["packages"].keys()


def test_the_noise_is_in_the_log(summary: dict, corpus: Path) -> None:
    log = (corpus / "_datagen" / "logs" / f"{summary['run_id']}.log").read_text(errors="replace")
    assert "vllm" in log.lower()
    assert "DescribeWorker" in log
