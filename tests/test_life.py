"""A perceive call that hangs costs the sample that hangs, in this process and on Ray, images and videos."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from corpora import fake_job
from video_files import clip

from datagen.check import check_dataset
from datagen.errors import EngineDiedError
from datagen.interrupts import interrupt_main_thread
from datagen.life import Minder, alive, elsewhere
from datagen.run import run_job

SAMPLES = Path(__file__).parents[1] / "samples" / "media"


def rows(output: Path) -> dict[str, tuple[str, str | None]]:
    return {Path(row["uri"]).name: (row["status"], row["error_code"]) for row in pq.read_table(output / "assets").to_pylist()}


def run(folder: Path, output: Path, executor: str, **source: object):
    options = {"executor": executor, "crash_tries": 2, "num_cpus": 6}
    return run_job(
        fake_job(
            source={"input": str(folder), **source},
            output=str(output),
            perceive={"engine": "fake", "timeout_s": 0.5, "batch_size": 2},
            write={"assets_per_part": 4},
            run=options,
        )
    )


@pytest.mark.parametrize("executor", ["inprocess", pytest.param("ray", marks=pytest.mark.ray)])
def test_an_image_that_hangs_perceive_costs_itself(executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for number, name in enumerate(["a", "b-hangs", "c", "d", "e"]):
        (tmp_path / "in" / f"{name}.jpg").write_bytes((SAMPLES / f"image-{number:06}.jpg").read_bytes())
    faults(monkeypatch, {"worker.perceive": {"hang_if_uri": "b-hangs"}})
    summary = run(tmp_path / "in", tmp_path / "out", executor)
    found = rows(tmp_path / "out")
    assert found.pop("b-hangs.jpg") == ("failed", "perceive_timeout")
    assert {status for status, _ in found.values()} == {"ok"}
    assert summary.counters["crashes"] == 2
    assert check_dataset(str(tmp_path / "out")).ok


@pytest.mark.parametrize("executor", ["inprocess", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_clip_that_hangs_perceive_ends_its_video_alone(executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a-hangs.mp4", "b.mp4"):
        clip(tmp_path / "in", 4, name)
    faults(monkeypatch, {"worker.perceive": {"hang_if_uri": "a-hangs.mp4#clip=0;"}})
    run(tmp_path / "in", tmp_path / "out", executor, media="video")
    assert rows(tmp_path / "out") == {"a-hangs.mp4": ("failed", "perceive_timeout"), "b.mp4": ("ok", None)}
    assert check_dataset(str(tmp_path / "out")).ok


def faults(monkeypatch: pytest.MonkeyPatch, what: dict) -> None:
    from datagen.faults import _faults

    monkeypatch.setenv("DATAGEN_FAULTS", json.dumps(what))
    _faults.cache_clear()
    monkeypatch.setattr("datagen.faults.time.sleep", lambda seconds: threading.Event().wait(seconds))


@pytest.fixture(autouse=True)
def no_faults_left():
    from datagen.faults import _faults

    yield
    _faults.cache_clear()


def test_signs_of_life_keep_a_slow_call(tmp_path: Path) -> None:
    said: list[str] = []
    minder = Minder("perceive", 0.5, True, said.append)

    def slow() -> str:
        for _ in range(30):
            time.sleep(0.1)
            alive()
        with elsewhere():
            time.sleep(3)
        return "done"

    assert minder.run(slow) == "done"
    assert not said
    with pytest.raises(EngineDiedError, match=r"no sign of life for .*perceive\.timeout_s") as hung:
        minder.run(threading.Event().wait)
    assert hung.value.code == "step_hung"
    assert len(said) == 1
    minder.close()


def test_errors_and_ctrl_c_reach_the_caller() -> None:
    minder = Minder("perceive", 60.0, True, lambda _: None)
    with pytest.raises(ZeroDivisionError):
        minder.run(lambda: 1 / 0)  # type: ignore[return-value]
    ended = threading.Event()

    def long() -> None:
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    threading.Timer(0.5, interrupt_main_thread).start()
    with pytest.raises(KeyboardInterrupt):
        minder.run(long)
    assert ended.wait(60)
    minder.close()
