"""The same promises with the real models: SAM 2 and vLLM under SIGKILL."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from kills import Run, parts

from datagen.check import check_dataset

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]


@pytest.mark.timeout(900)
def test_three_runs_with_killed_workers_and_drivers(tmp_path: Path) -> None:
    samples = [json.loads(line) for line in (ROOT / "samples" / "manifest.jsonl").read_text().splitlines()]
    rows = [
        row | {"uri": str(ROOT / "samples" / row["uri"]), "asset_id": f"{copy:02x}{n:02x}"}
        for copy in range(4)
        for n, row in enumerate(samples)
    ]
    manifest, output = tmp_path / "manifest.jsonl", tmp_path / "corpus"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    rng, killed = random.Random(0), []

    for step, chunk in (("perceive", 4), ("describe", 3)):
        run = Run(ROOT / "pipelines" / "demo.yaml", manifest, output, "--set", f"write.assets_per_part={chunk}")
        run.wait_for_parts(len(parts(output)) + 1, timeout=200)
        if run.kill_worker(step, rng):
            killed.append(step)
        run.wait_for_parts(len(parts(output)) + 1, timeout=200)
        run.kill_driver()
    summary = Run(ROOT / "pipelines" / "demo.yaml", manifest, output).finish(timeout=400)

    assert killed == ["perceive", "describe"]
    assert summary["done_before"] > 0
    report = check_dataset(str(output), expected={row["asset_id"] for row in rows})
    assert report.ok, report.violations[:5]
    assert report.statuses == {"ok": len(rows)}
