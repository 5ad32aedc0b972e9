"""Ctrl-C and SIGTERM end a run early, leave a clean dataset and no process, and the same command does exactly the rest."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from kills import Run, descendants, expected_ids, gone, make_input, parts

from datagen.check import check_dataset

JOB = """
version: 1
name: interrupted
perceive: {engine: fake, batch_size: 10, fake_delay_s: 0.1}
describe: {engine: fake, fake_delay_s: 0.05}
write: {assets_per_part: 10}
run: {object_store_gib: 0.2, grace_s: 0.5}
"""
COUNT = 400
SLOW_WRITES = {"write": {"delay_s": 0.2}}  # two seconds per part: most of the work is left when the signal comes, and after its grace


def interrupt(run: Run, *, number: signal.Signals, whole_group: bool) -> dict:
    """Send the signal in the middle of the work; the run's summary."""
    run.wait_for_parts(len(parts(run.output)) + 1)
    family = descendants(run.process.pid)
    assert run.process.poll() is None
    run.signal(number, whole_group=whole_group)
    out, err = run.process.communicate(timeout=300)
    assert run.process.returncode == 130, err
    assert "run the same command to go on" in err
    assert "Traceback" not in err
    assert gone(family, timeout_s=240) == []
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupted_run_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    job, manifest, output = tmp_path / "job.yaml", make_input(tmp_path / "in", COUNT), tmp_path / "corpus"
    job.write_text(JOB)
    done = 0
    # A terminal sends Ctrl-C to every process of the run, a scheduler sends SIGTERM to the one that it started.
    for number, whole_group in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        summary = interrupt(Run(job, manifest, output, faults=SLOW_WRITES), number=number, whole_group=whole_group)
        assert summary["interrupted"]
        assert (summary["done_before"], summary["todo"]) == (done, COUNT - done)
        done += summary["statuses"]["ok"]
        assert 0 < done < COUNT
        report = check_dataset(str(output))
        assert report.ok, report.violations[:5]
        assert report.num_assets == done
        assert not list((output / "_staging").glob("*"))

    summary = Run(job, manifest, output, "--set", "run.executor=inprocess").finish()

    assert (summary["done_before"], summary["statuses"]) == (done, {"ok": COUNT - done})
    assert check_dataset(str(output), expected=expected_ids(COUNT)).ok
