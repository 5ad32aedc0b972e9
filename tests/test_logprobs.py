"""The optional column `token_logprobs`: written when the job asks for it, read by others, checked, and never on some parts alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import datasets
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from corpora import fake_job
from damage import change_row, rewrite
from PIL import Image

from datagen.check import check_dataset
from datagen.errors import JobError
from datagen.job import Job, parse_job
from datagen.run import run_job
from datagen.write import open_store, prepare_output

K = 3
KEYS = [("label", "en"), ("label", "zh"), ("definition", "en"), ("definition", "zh")]


def job(media: Path, output: Path, logprobs: int = K) -> Job:
    return parse_job(
        {
            "source": {"input": str(media), "media": "any"},
            "output": str(output),
            "decode": {"max_clip_s": 1.0},
            "perceive": {"engine": "fake", "track": {"segment_frames": 2}},
            "describe": {"engine": "fake", "languages": ["zh", "en"], "tasks": ["label", "definition"], "logprobs": logprobs},
            "write": {"assets_per_part": 1},
            "run": {"executor": "inprocess"},
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Two pictures and a video of 2 s, and a dataset of them."""
    media, output = tmp_path_factory.mktemp("media"), tmp_path_factory.mktemp("corpus") / "data"
    for name in "ab":
        Image.new("RGB", (64, 48), "teal").save(media / f"{name}.png")
    with av.open(str(media / "c.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * shade, np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    run_job(job(media, output))
    return media, output


@pytest.fixture
def corpus(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "data"))


def rows(output: Path, table: str) -> list[dict]:
    return pq.read_table(output / table).to_pylist()


def test_every_text_has_its_tokens(made):
    output = made[1]
    assert check_dataset(str(output)).ok
    for row in rows(output, "regions"):
        assert [(entry["task"], entry["language"]) for entry in row["token_logprobs"]] == KEYS
        for entry in row["token_logprobs"]:
            assert bytes(entry["token_ids"]).decode().endswith(row[f"{entry['task']}_{entry['language']}"])
            assert np.reshape(entry["top_ids"], (len(entry["token_ids"]), K))[:, 0].tolist() == entry["token_ids"]
    tracks = rows(output, "tracks")
    assert len(tracks) == 4
    for row in tracks:
        assert [(entry["event"], entry["language"]) for entry in row["token_logprobs"]] == [(0, "en"), (0, "zh"), (1, "en"), (1, "zh")]
        for entry in row["token_logprobs"]:
            assert bytes(entry["token_ids"]).decode() == row["events"][entry["event"]][f"text_{entry['language']}"]


def test_the_card_tells_of_the_column(made):
    assert "`token_logprobs` has the answers token by token" in (made[1] / "README.md").read_text()


def test_other_readers_open_the_column(made, tmp_path):
    output = made[1]
    for table in ("regions", "tracks"):
        loaded = datasets.load_dataset(str(output), table, split="train", cache_dir=str(tmp_path))
        assert loaded["token_logprobs"][0] == rows(output, table)[0]["token_logprobs"]
    query = f"SELECT e.task, len(e.top_ids) / len(e.token_ids) FROM (SELECT unnest(token_logprobs) e FROM '{output}/regions/*.parquet')"
    assert set(duckdb.sql(query).fetchall()) == {("label", float(K)), ("definition", float(K))}


def test_a_dataset_does_not_go_on_with_other_columns(made, tmp_path):
    with pytest.raises(JobError, match=r"has the column token_logprobs, and describe\.logprobs is 0"):
        run_job(job(*made, logprobs=0))
    assert run_job(job(*made, logprobs=2 * K)).todo == 0
    store = open_store(str(tmp_path))
    prepare_output(store, fake_job())
    with pytest.raises(JobError, match=r"has no column token_logprobs, and describe\.logprobs is 3.*Set describe\.logprobs to 0"):
        prepare_output(store, job(*made))


def entry_with(**changes):
    def make(entries: list[dict]) -> list[dict]:
        changed = {name: change(entries[1][name]) for name, change in changes.items()}
        return [entries[0], {**entries[1], **changed}, *entries[2:]]

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda entries: entries[1:], "it has entries for"),
        (lambda entries: [*entries, entries[0]], "it has entries for"),
        (entry_with(token_ids=lambda ids: ids[1:]), "lengths do not agree"),
        (entry_with(top_ids=lambda ids: ids[1:], top_logprobs=lambda some: some[1:]), "lengths do not agree"),
        (entry_with(logprobs=lambda some: [float("nan"), *some[1:]]), "not finite"),
        (entry_with(top_logprobs=lambda some: [*some[:-1], -np.inf]), "not finite"),
        (entry_with(top_logprobs=lambda some: some[::-1]), "do not fall"),
        (entry_with(top_logprobs=lambda some: [0.0] * len(some), logprobs=lambda some: [0.0] * len(some)), "probability above 1"),
        (entry_with(top_ids=lambda ids: [ids[1], *ids[1:]]), "twice"),
        (entry_with(token_ids=lambda ids: [-1, *ids[1:]]), "below 0"),
        (entry_with(token_ids=lambda ids: [300, *ids[1:]]), "likelier than those listed"),
        (entry_with(logprobs=lambda some: [x - 1 for x in some]), "not the one listed"),
        (entry_with(logprobs=lambda some: [x - 1 for x in some], top_logprobs=lambda some: [x - 1 for x in some]), "the mean of logprobs"),
    ],
)
@pytest.mark.parametrize("table", ["regions", "tracks"])
def test_damage_is_found(corpus, table, make, said):
    part = next((corpus / table).glob("*.parquet"))
    rewrite(part, change_row("token_logprobs", make))
    violations = check_dataset(str(corpus)).violations
    assert {violation.code for violation in violations} == {"token_logprobs", "changed_part"}
    (message,) = (violation.message for violation in violations if violation.code == "token_logprobs")
    assert said in message


def test_a_part_without_the_column_does_not_belong(corpus):
    rewrite(next((corpus / "regions").glob("*.parquet")), lambda table: table.drop_columns(["token_logprobs"]))
    assert any("token_logprobs is missing" in violation.message for violation in check_dataset(str(corpus)).violations)
