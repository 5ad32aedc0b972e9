"""Paths of a job mean the same everywhere: from wherever they are written, in every process that reads them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from datagen.job import load_job, parse_job, row_options
from datagen.paths import absolute, located, settle_environment
from datagen.run import plan_job, run_job
from datagen.write import open_store, other_options

FAKES = {"perceive": {"engine": "fake"}, "describe": {"engine": "fake"}, "run": {"executor": "inprocess"}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder and the home, with pictures, a checkpoint and a config in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("p", "student", "sam2"):
        (tmp_path / name).mkdir()
    for index in range(3):
        Image.new("RGB", (32, 24), (index, 9, 9)).save(tmp_path / "p" / f"{index}.png")
    (tmp_path / "cfg.yaml").write_text("model: {}")
    (tmp_path / "sam2" / "w.pt").write_bytes(b"")
    return tmp_path


WAYS = ["{}", "./{}", "p/../{}", "~/{}", "{home}/{}", "{home}/p/../{}"]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_a_place_is_the_same_place(home: Path, way: str) -> None:
    def write(name: str) -> str:
        return way.replace("{home}", str(home)).replace("{}", name)

    options = {
        "source": {"input": write("p"), "media_root": write("p"), "annotations": write("p")},
        "model": {"checkpoint": write("student"), "sam2": write("sam2/w.pt"), "sam2_config": write("cfg.yaml")},
        "output": write("out"),
    }
    job = parse_job(options).located()
    assert job.source.annotations == str(home / "p")
    found = (job.source.input, job.source.media_root, job.model.checkpoint, job.model.sam2, job.model.sam2_config, job.output)
    assert found == tuple(str(home / name) for name in ("p", "p", "student", "sam2/w.pt", "cfg.yaml", "out"))
    plain = parse_job(
        {"model": {"checkpoint": str(home / "student"), "sam2": str(home / "sam2/w.pt"), "sam2_config": str(home / "cfg.yaml")}}
    )
    assert parse_job(options).hash() == plain.hash()


def test_names_stay_and_what_is_no_name_says_where_it_was_looked_for(home: Path) -> None:
    (home / "students").mkdir()
    (home / "tiny").mkdir()  # a checkpoint of the package, whatever lies here
    config = "configs/sam2.1/sam2.1_hiera_l.yaml"
    for checkpoint in ("tiny", "tiny-shapes", "Perceive-Anything/PAM-3B", "Perceive-Anything/PAM-3B/PAM-3B"):
        options = {"model": {"checkpoint": checkpoint, "sam2": "facebook/sam2.1-hiera-large", "sam2_config": config}}
        options["source"] = {"annotations": "none"}
        assert located(parse_job(options).model_dump()) == {}
    assert parse_job({"model": {"checkpoint": "students/mine/new"}}).located().model.checkpoint == str(home / "students/mine/new")


@pytest.mark.parametrize("uri", ["s3://bucket/a/../b", "gs://bucket/x", "hf://datasets/a/b", "file:///data/x", "/data/x"])
def test_what_is_whole_stays(home: Path, uri: str) -> None:
    assert absolute(uri) == uri


def test_a_pattern_and_a_final_slash_stay_what_they_are(home: Path) -> None:
    assert absolute("p/*.tar") == f"{home}/p/*.tar"
    assert absolute("p/") == f"{home}/p/"
    assert absolute("/") == "/"


def test_two_dots_behind_a_link_lead_where_the_system_says(home: Path) -> None:
    (home / "deep" / "er").mkdir(parents=True)
    (home / "link").symlink_to(home / "deep" / "er")
    (home / "deep" / "p").mkdir()
    assert os.path.samefile(absolute("link/../p"), home / "deep" / "p")


def test_the_record_of_a_run_from_python_says_the_whole_paths(home: Path) -> None:
    summary = run_job(parse_job({**FAKES, "source": {"input": "p"}, "output": "out"}))
    record = json.loads((home / "out" / "_datagen" / "runs" / f"{summary.run_id}.json").read_text())
    assert (summary.output, record["job"]["output"]) == (str(home / "out"), str(home / "out"))
    assert record["job"]["source"]["input"] == str(home / "p")
    assert plan_job(parse_job({**FAKES, "source": {"input": "p/"}, "output": "~/out"}))["done"] == 3


def test_set_and_the_options_of_the_command_line_are_paths_too(home: Path) -> None:
    (home / "job.yaml").write_text("version: 1")
    job = load_job("job.yaml", ["source.input=~/p", "model.checkpoint=./student"], {"output": "out"}).located()
    assert (job.source.input, job.model.checkpoint, job.output) == (str(home / "p"), str(home / "student"), str(home / "out"))


def record_of(home: Path, checkpoint: str, folder: Path, **more: str) -> None:
    """A run of an older version, which wrote paths as they were given."""
    (record,) = (home / "out" / "_datagen" / "runs").glob("*.json")
    data = json.loads(record.read_text())
    data["job"]["model"] |= {"checkpoint": checkpoint, **more}
    data["model"] = {"folder": str(folder), "sam2_weights": str(home / "sam2/w.pt")}
    record.write_text(json.dumps(data))


def test_a_run_by_an_older_version_is_compared_by_where_its_weights_lay(home: Path) -> None:
    run_job(parse_job({**FAKES, "source": {"input": "p"}, "output": "out"}))
    store = open_store(str(home / "out"))
    (home / "student.link").symlink_to(home / "student")

    def differs(checkpoint: str, sam2: str | None = None) -> list[str]:
        job = parse_job({**FAKES, "model": {"checkpoint": checkpoint, "sam2": sam2}})
        return sorted({path for paths in other_options(store, job).values() for path in paths})

    for written in ("student", "./student", "../" + home.name + "/student", "~/student"):
        record_of(home, written, home / "student")
        for same in ("student", str(home / "student"), "student.link"):
            assert differs(same) == [], (written, same)
        assert differs("p") == ["model.checkpoint"]
        assert differs("Perceive-Anything/PAM-3B") == ["model.checkpoint"]
    for written in ("sam2", "sam2/w.pt"):
        record_of(home, "student", home / "student", sam2=written)
        assert differs("student", written) == []
        assert differs("student") == ["model.sam2"]
    record_of(home, "Perceive-Anything/PAM-3B", home / "hub" / "snapshots" / "1", sam2=None)
    assert differs("Perceive-Anything/PAM-3B") == []


@pytest.mark.parametrize("model", [{}, {"checkpoint": "/data/pam", "sam2": "/data/sam2.pt"}, {"checkpoint": "owner/name"}])
def test_the_hash_of_a_job_without_relative_paths_is_of_its_options_as_they_are(model: dict[str, str]) -> None:
    job = parse_job({"model": model})
    options = row_options(job.model_dump(mode="json"))  # as earlier versions made it: estimates that were kept still count
    assert job.hash() == hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]


def test_places_in_the_environment_are_absolute_for_what_is_started_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAGEN_CACHE", "cache")
    monkeypatch.setenv("HF_HOME", "/hf")
    settle_environment()
    assert (os.environ["DATAGEN_CACHE"], os.environ["HF_HOME"]) == (str(home / "cache"), "/hf")
