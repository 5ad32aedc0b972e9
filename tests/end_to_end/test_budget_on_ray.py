"""A budget that is used up ends a run on Ray in good order, and the same command does exactly the rest."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command_line import Datagen
from kills import expected_ids, make_input, parts

from datagen.check import check_dataset

JOB = """
version: 1
name: budget
perceive: {engine: fake, batch_size: 4, fake_delay_s: 2}
describe: {engine: fake}
write: {assets_per_part: 4}
run: {object_store_gib: 0.2}
"""
COUNT = 60  # half a minute of work, so that a part is written before all of it is begun, also on a busy machine


@pytest.mark.slow
@pytest.mark.ray
def test_a_deadline_ends_a_run_on_ray_and_a_rerun_does_the_rest(tmp_path: Path, datagen: Datagen, monkeypatch: pytest.MonkeyPatch) -> None:
    job, manifest, output = tmp_path / "job.yaml", make_input(tmp_path / "in", COUNT), tmp_path / "corpus"
    job.write_text(JOB)
    command = ("run", job, "--input", manifest, "--output", output, "--json")
    # The deadline is reached when there is something in the dataset, however long Ray takes to start.
    monkeypatch.setattr("datagen.budget._now", lambda: datetime.now(UTC) + timedelta(hours=len(parts(output)) > 0))

    stopped = datagen(*command, "--deadline", "30min")

    assert stopped.returncode == 5, stopped.stderr
    assert "run the same command to go on" in stopped.stderr
    summary = json.loads(stopped.stdout)
    assert (summary["stopped"], summary["interrupted"]) == ("the deadline 30min is reached", False)
    done = summary["statuses"]["ok"]
    assert 0 < done < COUNT
    report = check_dataset(str(output))
    assert report.ok, report.violations[:5]
    assert report.num_assets == done
    assert not list((output / "_staging").glob("*"))

    monkeypatch.undo()
    rest = datagen(*command, "--set", "run.executor=inprocess", "--set", "perceive.fake_delay_s=0")

    assert rest.returncode == 0, rest.stderr
    summary = json.loads(rest.stdout)
    assert (summary["done_before"], summary["statuses"]) == (done, {"ok": COUNT - done})
    assert check_dataset(str(output), expected=expected_ids(COUNT)).ok
