"""The guard: errors about one sample become rows, fatal ones stop, crashes are counted against suspects."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from datagen.errors import ClusterError, DecodeError, EngineDiedError, ModelLoadError, WriteError
from datagen.guard import Guarded, split_suspects
from datagen.ids import work_id_of
from datagen.ledger import Ledger, LocalLedger
from datagen.records import Asset, RegionTokens, Sample
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
    for place in ("a", "b", "c", "a"):  # three workers load at the same time, one of them for the second time
        ledger.begin_setup("describe", place)
    with pytest.raises(ClusterError, match="died 2 times while starting"):
        ledger.begin_setup("describe", "a")


def test_suspects_run_alone_and_only_the_killer_is_blamed(ledger: Ledger, tmp_path: Path) -> None:
    ledger.begin("perceive", "dead-1", ["image a", "image b", "image c"])  # a worker took these and never came back
    step = Doubler()
    guarded = Guarded("perceive", lambda: step, LocalLedger(ledger))

    guarded.process(samples("a", "b", "c"))

    assert step.batches == [["a"], ["b"], ["c"]]
    ledger.begin("perceive", "dead-2", ["image b"], True)
    ledger.begin("perceive", "dead-3", ["image b"], True)
    a, b = guarded.process(samples("a", "b"))
    assert a.failure is None
    assert b.failure is not None
    assert b.failure.code == "perceive_crashed"
    assert Ledger(open_store(str(tmp_path)), tries=2).begin("perceive", "w", ["image a", "image b"]) == {"image b": 2}


def test_in_the_write_step_suspects_are_groups_of_their_own_until_their_tries_are_used_up(ledger: Ledger) -> None:
    def groups() -> list[list[tuple[str, str | None]]]:
        split = split_suspects("write", LocalLedger(ledger), samples("a", "b", "c"), tries=2)
        return [[(sample.asset.asset_id, sample.failure.code if sample.failure else None) for sample in group] for group in split]

    assert groups() == [[("a", None), ("b", None), ("c", None)]]
    assert groups() == [[("a", None)], [("b", None)], [("c", None)]], "the task that had them never came back"
    for name in ("dead-1", "dead-2"):
        ledger.begin("write", name, ["image b"], True)
    found = {name: code for group in groups() for name, code in group}
    assert found == {"a": None, "b": "write_crashed", "c": None}


def test_a_sample_that_failed_before_keeps_its_failure_however_often_writing_it_crashed(ledger: Ledger) -> None:
    for name in ("dead-1", "dead-2", "dead-3"):
        ledger.begin("write", name, ["image a"], True)
    (sample,) = samples("a")
    sample.fail("truncated", "no pixels")
    split_suspects("write", LocalLedger(ledger), [sample], tries=2)
    assert sample.failure is not None
    assert sample.failure.code == "truncated"


def test_a_clip_is_not_suspected_for_an_image_that_is_named_like_it(ledger: Ledger) -> None:
    ledger.begin("perceive", "dead", [work_id_of("film", 1)], True)
    assert ledger.begin("perceive", "other", [work_id_of("film-00001", None)]) == {}
    assert ledger.begin("perceive", "next", [work_id_of("film", 1)]) == {work_id_of("film", 1): 1}


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b"null", b'{"perceive/image a": "2"}', b'{"perceive/image a": 0}', b'{"a": 1}', b"[" * 100_000]
)
def test_a_damaged_crash_file_is_named(tmp_path: Path, damage: bytes) -> None:
    store = open_store(str(tmp_path))
    store.write("_datagen/crashes.json", damage)
    with pytest.raises(WriteError, match=r"_datagen/crashes.json is damaged .*Delete it"):
        Ledger(store, tries=2)


class Fragile(Doubler):
    """A step whose engine dies on chosen assets, so often, after it has begun all of its batch."""

    def __init__(self, deaths: dict[str, int]) -> None:
        super().__init__()
        self.deaths = deaths
        self.setups = self.teardowns = 0

    def setup(self) -> None:
        self.setups += 1

    def process(self, samples: list[Sample]) -> list[Sample]:
        self.batches.append([s.asset.asset_id for s in samples])
        for sample in samples:
            assert sample.tokens is not None
            assert not sample.usage
            sample.tokens, sample.usage["requests"] = None, 1
        for sample in samples:
            if self.deaths.get(sample.asset.asset_id):
                self.deaths[sample.asset.asset_id] -= 1
                raise EngineDiedError("the engine died")
        return samples

    def teardown(self) -> None:
        self.teardowns += 1


def with_tokens(*ids: str) -> list[Sample]:
    made = samples(*ids)
    for sample in made:
        sample.tokens = RegionTokens(np.ones((1, 4, 8), np.float32), np.ones((1, 2, 8), np.float32))
    return made


def test_in_process_a_dead_engine_is_replaced_and_its_samples_tried_again(ledger: Ledger) -> None:
    step = Fragile({"b": 1, "c": 100})
    guarded = Guarded("describe", lambda: step, LocalLedger(ledger), renews=True)

    a, b, c, d = guarded.process(with_tokens("a", "b", "c", "d"))

    assert [s.failure and s.failure.code for s in (a, b, c, d)] == [None, None, "describe_crashed", None]
    assert c.failure is not None
    assert (c.failure.step, c.attempts) == ("describe", 2)
    assert [s.usage for s in (a, b, d)] == [{"requests": 1}] * 3
    assert step.batches == [["a", "b", "c", "d"], ["a"], ["b"], ["c"], ["c"], ["d"]]
    assert (step.setups, step.teardowns) == (4, 3)
    assert ledger.progress()["crashes"] == 2
    assert [s.failure for s in guarded.process(with_tokens("e"))] == [None]


def test_elsewhere_a_dead_engine_stops_the_job(ledger: Ledger) -> None:
    with pytest.raises(EngineDiedError):
        Guarded("describe", lambda: Fragile({"a": 1}), LocalLedger(ledger)).process(with_tokens("a"))
    assert isinstance(ledger.fatal(), EngineDiedError)


class Stuck(Doubler):
    """Never comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Semaphore(0)

    def process(self, samples: list[Sample]) -> list[Sample]:
        self.batches.append([s.asset.asset_id for s in samples])
        self.entered.release()
        threading.Event().wait()
        return samples


def test_who_waits_beside_a_killer_is_not_blamed(ledger: Ledger) -> None:
    """Clips, one per call, in a worker that has several calls at once: only who was run alone can have killed it."""

    def worker_is_lost(working: int) -> list[list[str]]:
        step = Stuck()
        guarded = Guarded("describe", lambda: step, LocalLedger(ledger), is_concurrent=True)
        for name in "abc":
            threading.Thread(target=guarded.process, args=(samples(name),), daemon=True).start()
        for _ in range(working):
            assert step.entered.acquire(timeout=10)
        while set(ledger._holder.values()) != {guarded._worker} or len(ledger._holder) < 3:
            threading.Event().wait(0.01)
        return step.batches

    assert sorted(worker_is_lost(working=3)) == [["a"], ["b"], ["c"]], "nobody is suspected yet"
    [[first]] = worker_is_lost(working=1)

    Guarded("describe", Doubler, LocalLedger(ledger), is_concurrent=True).process(samples("a", "b", "c"))
    assert ledger._crashes == {f"describe/image {first}": 1}


def test_progress_counts_what_each_step_did(ledger: Ledger) -> None:
    Guarded("decode", Doubler, LocalLedger(ledger)).process(samples("a", "b"))
    assert ledger.progress() == {"decode_workers": 1, "decode": 2}


def test_a_step_whose_first_samples_all_failed_before_goes_on(ledger: Ledger) -> None:
    failed, good = samples("a", "b")
    failed.fail("truncated", "no pixels")
    worker = Guarded("describe", Doubler, LocalLedger(ledger))
    assert worker.process([failed])[0].failure is not None
    assert worker.process([good])[0].width == 2
