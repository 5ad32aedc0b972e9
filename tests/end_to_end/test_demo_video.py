"""The video job as a new user runs it: the rendered clips, the embedded model, Ray, and vLLM on whatever the machine has."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kills import Run

from datagen.check import check_dataset
from datagen.masklets import masklet

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions per segment, so that chains run too; the rest as in the shipped demo."""
    output = tmp_path_factory.mktemp("demo-video") / "corpus"
    options = ("--set", "decode.max_clip_s=2", "--set", "perceive.track.segment_frames=5", "--set", "describe.max_tokens={event: 8}")
    summary = Run(ROOT / "pipelines" / "demo-video.yaml", ROOT / "samples" / "manifest-clips.jsonl", output, *options).finish(timeout=280)
    assert summary["statuses"] == {"ok": 2}
    return output


def test_the_dataset_holds_every_invariant(corpus: Path) -> None:
    report = check_dataset(str(corpus))
    assert report.ok, report.violations[:5]
    assert report.num_clips >= 4


def test_every_prompted_object_has_its_track_and_captions_in_both_languages(corpus: Path) -> None:
    asked = [json.loads(line) for line in (ROOT / "samples" / "manifest-clips.jsonl").read_text().splitlines()]
    num_objects = sum(len({prompt["object_id"] for prompt in row["prompts"]}) for row in asked)
    rows = pq.read_table(corpus / "tracks").to_pylist()
    assert len({row["track_id"] for row in rows}) == num_objects
    events = [event for row in rows for event in row["events"]]
    assert events
    for event in events:
        for language in ("en", "zh"):
            assert event[f"text_{language}_finish"] in {"stop", "length"}
            assert event[f"text_{language}_logprob"] <= 0


def test_captions_are_told_the_ones_before_them(corpus: Path) -> None:
    chains = [row["events"] for row in pq.read_table(corpus / "tracks").to_pylist() if len(row["events"]) > 1]
    assert chains
    for chain in chains:
        said = None
        for event in chain:
            assert event["history_en"] == said
            said = event["text_en"] or said


def test_masklets_open_at_the_size_of_the_film(corpus: Path) -> None:
    assets = {row["asset_id"]: row for row in pq.read_table(corpus / "assets").to_pylist()}
    for row in pq.read_table(corpus / "tracks").to_pylist():
        asset = assets[row["asset_id"]]
        size = (asset["height"], asset["width"])
        assert masklet(row, size).shape == (len(row["frames"]), *size)
