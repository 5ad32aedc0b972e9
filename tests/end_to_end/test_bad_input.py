"""Every odd file succeeds, every bad one is one failed row with its own code, and the job goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import bad_media
import pyarrow.parquet as pq
import pytest
from kills import Run

from datagen.check import check_dataset

JOB = """
version: 1
name: bad-input
model: {checkpoint: tiny}
decode: {timeout_s: 20}
perceive:
  batch_size: 4
  everything: {points_per_side: 4, predicted_iou_min: 0.0, stability_min: 0.0, max_regions: 3}
describe: {engine: fake}
write: {assets_per_part: 16}
run: {crash_tries: 2, object_store_gib: 0.2}
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_bad_files_cost_themselves_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray believes in a GPU, of which perceive then takes its share; the arithmetic is the CPU's.
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
    media = bad_media.make_media(tmp_path / "in")
    manifest = bad_media.write_manifest(tmp_path / "in", media)
    job, output = tmp_path / "job.yaml", tmp_path / "corpus"
    job.write_text(JOB)
    faults = {**bad_media.FAULTS_BY_PLACE, "worker.perceive": {"kill_if_uri": "cmyk"}}

    summary = Run(job, manifest, output, faults=faults).finish(timeout=500)

    rows = {row["uri"].rpartition("/in/")[2]: row for row in pq.read_table(output / "assets").to_pylist()}
    found = {name: (row["status"], row["error_code"]) for name, row in rows.items()}
    for item in media:
        if item.name == "cmyk.jpg":
            assert found[item.name] == ("failed", "perceive_crashed")
            assert rows[item.name]["attempts"] == 2
        elif item.code == "manifest_no_uri":
            assert ("failed", "manifest_no_uri") in found.values()
        elif item.fate == "decoded":
            assert found[item.name] in {("ok", None), ("empty", None)}, item.name
            assert (rows[item.name]["width"], rows[item.name]["height"]) == item.size
        else:
            assert found[item.name] == (item.fate, item.code)
    assert len(rows) == len(media)
    assert all(row["error_message"] for row in rows.values() if row["status"] == "failed")
    assert Counter(summary["failures"]) == Counter(row["error_code"] for row in rows.values() if row["status"] == "failed")
    report = check_dataset(str(output))
    assert report.ok, report.violations[:5]
