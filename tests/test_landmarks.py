"""A worker that sees another place than its driver says so, and does nothing there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import fake_job, make_sample

from datagen import graph, landmarks
from datagen.blocks import to_table
from datagen.errors import JobError
from datagen.job import Job, parse_job
from datagen.landmarks import Landmarks, look_for
from datagen.ledger import Ledger, LocalLedger
from datagen.write import open_store


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmarks, "_PATIENCE_S", 0.0)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name in ("photos/deep", "root", "model", "sam2"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos" / "deep" / "1.png").write_bytes(b"")
    (tmp_path / "root" / "a.png").write_bytes(b"")
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "sam2" / "w.pt").write_bytes(b"weights")
    (tmp_path / "sam2.yaml").write_text("model: {}")
    return parse_job(
        {
            "source": {"input": str(tmp_path / "photos"), "media_root": str(tmp_path / "root")},
            "model": {
                "checkpoint": str(tmp_path / "model"),
                "sam2": str(tmp_path / "sam2/w.pt"),
                "sam2_config": str(tmp_path / "sam2.yaml"),
            },
            "output": str(tmp_path / "out"),
        }
    )


def seen_by_driver(job: Job) -> Landmarks:
    return Landmarks.of(job, open_store(str(job.output)), "run")


def everything(found: Landmarks) -> list[landmarks.Landmark]:
    return [*found.media, *found.weights, *found.output]


def test_files_that_come_and_go_are_no_other_place(job: Job, tmp_path: Path) -> None:
    found = seen_by_driver(job)
    (tmp_path / "root" / "b.png").write_bytes(b"")
    (tmp_path / "root" / "a.png").unlink()
    look_for(found.media)


def test_where_all_is_seen_work_begins(job: Job) -> None:
    found = everything(seen_by_driver(job))
    assert [mark.what for mark in found] == [
        *("input", "source.media_root", "model.checkpoint", "model.sam2", "model.sam2_config", "output"),
    ]
    look_for(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: shutil.rmtree(path / "photos"), ("the input that the driver sees", "/photos is not there", "/photos: ")),
        (lambda path: shutil.rmtree(path / "photos" / "deep"), ("the input", "/photos is empty")),
        (lambda path: (path / "root" / "a.png").unlink(), ("source.media_root", "/root is empty")),
        (lambda path: [(path / "root" / "a.png").unlink(), (path / "root").rmdir()], ("source.media_root", "/root is not there")),
        (lambda path: (path / "model" / "config.json").write_text("{ }"), ("model.checkpoint", "config.json is another")),
        (lambda path: shutil.rmtree(path / "model"), ("model.checkpoint", "not there")),
        (lambda path: (path / "sam2" / "w.pt").write_bytes(b"WEIGHTS"), ("model.sam2 ", "w.pt is another")),
        (lambda path: (path / "sam2.yaml").write_text("model: 1"), ("model.sam2_config", "is another")),
        (lambda path: (path / "out/_staging/run/driver").write_bytes(b"of another driver"), ("output", "driver is another")),
        (lambda path: shutil.rmtree(path / "out"), ("output", "not there", "every node mounts")),
    ],
)
def test_another_place_is_named(job: Job, tmp_path: Path, change: Callable[[Path], object], words: tuple[str, ...]) -> None:
    found = everything(seen_by_driver(job))
    change(tmp_path)
    with pytest.raises(JobError) as raised:
        look_for(found)
    for word in words:
        assert word in raised.value.message


def test_places_in_buckets_names_and_fakes_are_not_looked_for(tmp_path: Path, output: str) -> None:
    fakes = fake_job(source={"input": "s3://bucket/photos"}, model={"checkpoint": str(tmp_path)}, output=output)
    found = seen_by_driver(fakes)
    assert (found.media, found.weights, len(found.output)) == ((), (), 0 if "://" in output else 1)
    assert seen_by_driver(fake_job(output=output, describe={"engine": "vllm"}, model={"checkpoint": "tiny"})).weights == ()


def test_a_pattern_is_looked_for_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(b"")
    job = fake_job(source={"input": str(tmp_path / "*.tar")}, output=str(tmp_path / "out"))
    assert [mark.place for mark in seen_by_driver(job).media] == [str(tmp_path)]


@pytest.mark.parametrize("step", ["decode", "perceive", "describe", "clips", "write"])
def test_a_worker_of_every_step_stops_the_job_before_it_works(job: Job, tmp_path: Path, step: str) -> None:
    store = open_store(str(job.output))
    plan = graph.Plan(job, store.uri, "run", 64, seen_by_driver(job))
    ledger = LocalLedger(Ledger(store, 3))
    for name in ("photos", "model", "out/_staging"):
        shutil.rmtree(tmp_path / name)
    begin: dict[str, Callable[[], object]] = {
        "write": lambda: graph.stage_table(plan, ledger, to_table([make_sample(0)])),
        "clips": lambda: graph.ClipsWorker("perceive", graph.clip_step_factory(plan, ledger), ledger, store, 60.0),
    }
    with pytest.raises(JobError, match="does not see the"):
        begin.get(step, lambda: graph.DecodeWorker(step, graph.step_factories(plan, ledger)[step], ledger, False))()
    assert isinstance(ledger.ask("fatal"), JobError)
    assert not list(store.list("_staging"))
