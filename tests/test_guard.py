"""The guard: errors about one sample become rows, fatal ones stop, crashes are counted against suspects."""

from __future__ import annotations

from pathlib import Path

import pytest

from datagen.errors import ClusterError, DecodeError, ModelLoadError
from datagen.guard import Guarded
from datagen.ledger import Ledger, LocalLedger
from datagen.records import Asset, Sample
from datagen.write import open_store


class Doubler:
    """A step that fails on chosen assets."""

    def __init__(self, errors: dict[str, Exception] | None = None) -> None:
        self.errors = errors or {}
        self.batches: list[list[str]] = []

    def setup(self) -> None:
        if "setup" in self.errors:
            raise self.errors["setup"]

    def process(self, samples: list[Sample]) -> list[Sample]:
        self.batches.append([s.asset.asset_id for s in samples])
        for sample in samples:
            if sample.asset.asset_id in self.errors:
                raise self.errors[sample.asset.asset_id]
            sample.width = 2
        return samples

    def teardown(self) -> None:
        pass


def samples(*ids: str) -> list[Sample]:
    return [Sample(i, Asset(a, f"{a}.png")) for i, a in enumerate(ids)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(open_store(str(tmp_path)), tries=2)


def test_an_error_about_one_sample_spares_its_neighbours(ledger: Ledger) -> None:
    step = Doubler({"b": DecodeError("no pixels", code="truncated"), "c": RuntimeError("boom")})
    a, b, c, d = Guarded("decode", lambda: step, LocalLedger(ledger)).process(samples("a", "b", "c", "d"))

    assert (a.width, d.width) == (2, 2)
    assert b.failure is not None
    assert (b.failure.code, b.failure.message) == ("truncated", "no pixels")
    assert c.failure is not None
    assert c.failure.code == "decode_error"
    assert "RuntimeError: boom" in c.failure.message


def test_a_fatal_error_stops_the_job_and_is_kept_for_the_driver(ledger: Ledger) -> None:
    with pytest.raises(ModelLoadError):
        Guarded("perceive", lambda: Doubler({"setup": ModelLoadError("no weights")}), LocalLedger(ledger))
    assert isinstance(ledger.fatal(), ModelLoadError)


def test_workers_that_die_while_starting_stop_the_job(ledger: Ledger) -> None:
    ledger.begin_setup("describe")
    ledger.begin_setup("describe")
    with pytest.raises(ClusterError, match="died 2 times while starting"):
        ledger.begin_setup("describe")


def test_suspects_run_alone_and_only_the_killer_is_blamed(ledger: Ledger, tmp_path: Path) -> None:
    ledger.begin("perceive", "dead-1", ["a", "b", "c"])  # a worker took these and never came back
    step = Doubler()
    guarded = Guarded("perceive", lambda: step, LocalLedger(ledger))

    guarded.process(samples("a", "b", "c"))

    assert step.batches == [["a"], ["b"], ["c"]]
    ledger.begin("perceive", "dead-2", ["b"], True)
    ledger.begin("perceive", "dead-3", ["b"], True)
    a, b = guarded.process(samples("a", "b"))
    assert a.failure is None
    assert b.failure is not None
    assert b.failure.code == "perceive_crashed"
    assert Ledger(open_store(str(tmp_path)), tries=2).begin("perceive", "w", ["a", "b"]) == {"b": 2}


def test_progress_counts_what_each_step_did(ledger: Ledger) -> None:
    Guarded("decode", Doubler, LocalLedger(ledger)).process(samples("a", "b"))
    assert ledger.progress() == {"decode_workers": 1, "decode": 2}


def test_a_step_whose_first_samples_all_failed_before_goes_on(ledger: Ledger) -> None:
    failed, good = samples("a", "b")
    failed.fail("truncated", "no pixels")
    worker = Guarded("describe", Doubler, LocalLedger(ledger))
    assert worker.process([failed])[0].failure is not None
    assert worker.process([good])[0].width == 2
