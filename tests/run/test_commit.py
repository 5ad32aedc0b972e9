"""Every asset that is handed to the workers is ticked off exactly once; a lost one and a doubled one are errors on the spot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Datagen
from corpora import fake_job, make_sample
from PIL import Image

from datagen import graph
from datagen.assemble import region_row
from datagen.check import check_dataset
from datagen.errors import ClusterError
from datagen.job import WriteOptions
from datagen.run.commit import Committer
from datagen.run.summary import RunSummary
from datagen.write import StagedPart, Store, VideoProgress, open_store, prepare_output, stage_part


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "out"))
    with store.lease({}):
        prepare_output(store, fake_job())
    return store


@pytest.fixture
def committer(store: Store) -> Committer:
    return Committer(store, VideoProgress(store, graph_done(store)), WriteOptions(), RunSummary("run", store.uri, todo=3))


def graph_done(store: Store) -> Any:
    from datagen.write import done_assets

    return done_assets(store)


def staged(store: Store, *indices: int) -> StagedPart:
    return stage_part(store, "run", [make_sample(index) for index in indices], WriteOptions(), region_row)


def test_assets_that_did_not_come_back_are_an_error_with_their_number(store: Store, committer: Committer) -> None:
    for index in range(3):
        committer.expect(index)
    committer.images(staged(store, 1))
    with pytest.raises(ClusterError, match="2 assets did not come back from the workers"):
        committer.close()
    committer.images(staged(store, 0, 2))
    committer.close()


def test_an_asset_that_comes_back_twice_or_was_never_sent_publishes_nothing(store: Store, committer: Committer) -> None:
    committer.expect(0)
    committer.images(staged(store, 0))
    before = sorted(path for path, _ in store.list("assets"))
    for again in ((0,), (5000,)):
        with pytest.raises(ClusterError, match=f"asset number {again[0]} came back twice"):
            committer.images(staged(store, *again))
    assert sorted(path for path, _ in store.list("assets")) == before
    committer.close()


def test_a_run_that_lost_an_asset_ends_with_exit_code_3_and_a_rerun_does_it(
    datagen: Datagen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").mkdir()
    for index in range(6):
        Image.new("RGB", (32, 24), (index, 9, 9)).save(tmp_path / "p" / f"{index}.png")
    (tmp_path / "job.yaml").write_text(
        "version: 1\nperceive: {engine: fake}\ndescribe: {engine: fake}\nwrite: {assets_per_part: 2}\nrun: {executor: inprocess}"
    )
    run_images = graph.run_images

    def lossy(*arguments: Any) -> Iterator[StagedPart]:
        parts = run_images(*arguments)
        next(parts)
        yield from parts

    command = ["run", tmp_path / "job.yaml", "-i", tmp_path / "p", "-o", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(graph, "run_images", lossy)
        lost = datagen(*command)
    assert lost.returncode == 3
    assert "2 assets did not come back from the workers" in " ".join(lost.stderr.split())
    (record,) = (tmp_path / "out" / "_datagen" / "runs").glob("*.json")
    assert json.loads(record.read_text())["status"] == "failed"
    done = datagen(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["statuses"] == {"ok": 2}
    assert check_dataset(str(tmp_path / "out")).ok


@pytest.mark.parametrize(("bad", "code"), [(0, 0), (2, 0), (3, 1), (4, 1)])
def test_a_run_most_of_which_failed_is_no_success(datagen: Datagen, tmp_path: Path, bad: int, code: int) -> None:
    (tmp_path / "p").mkdir()
    for index in range(4):
        Image.new("RGB", (32, 24), (index, 9, 9)).save(tmp_path / "p" / f"{index}.png")
        if index < bad:
            (tmp_path / "p" / f"{index}.png").write_bytes(b"no picture")
    (tmp_path / "job.yaml").write_text("version: 1\nperceive: {engine: fake}\ndescribe: {engine: fake}\nrun: {executor: inprocess}")
    command = ["run", tmp_path / "job.yaml", "-i", tmp_path / "p", "-o", tmp_path / "out"]
    done = datagen(*command)
    assert done.returncode == code, done.stderr
    said = f"{bad} of the 4 assets of this run failed, a larger share than run.max_failed_fraction (0.5) allows"
    assert (said in done.stderr) == bool(code)
    assert datagen(*command).returncode == 0, "nothing to do: of what this run did, nothing failed"


def test_all_may_fail_where_the_job_says_so(datagen: Datagen, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "0.png").write_bytes(b"no picture")
    (tmp_path / "job.yaml").write_text("version: 1\nperceive: {engine: fake}\ndescribe: {engine: fake}\nrun: {executor: inprocess}")
    command = ["run", tmp_path / "job.yaml", "-i", tmp_path / "p", "-o", tmp_path / "out", "--set", "run.max_failed_fraction=1"]
    assert datagen(*command).returncode == 0
