"""What stops a run at once, with exit code 2 and a message that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Datagen
from PIL import Image

CLUSTERS = (["cluster", "render"], ["submit"], ["job"], ["job", "logs"], ["schedule", "aws"], ["schedule", "aws", "create"])
FAKES = "perceive: {engine: fake}\ndescribe: {engine: fake}\nrun: {executor: inprocess}\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for shade in range(3):
        Image.new("RGB", (40, 30), (80 * shade, 10, 10)).save(folder / f"{shade}.png")
    return folder


def job(tmp_path: Path, text: str = FAKES) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("perceve: {}\n", ["unknown key `perceve`", "did you mean `perceive`"]),
        ("perceive: {everything: {max_region: 3}}\n", ["`perceive.everything.max_region`", "did you mean `max_regions`"]),
        ("write: {assets_per_part: many}\n", ["`write.assets_per_part`", "found 'many'"]),
        ("describe: {tasks: [lable]}\n", ["`describe.tasks.0`", "'label'", "found 'lable'"]),
        ("- a list\n", ["a job file is a mapping"]),
        ("a: [\n", ["is not YAML"]),
        ("name: !!int ''\n", ["is not YAML"]),
    ],
)
def test_a_wrong_job_file_is_explained(datagen: Datagen, tmp_path: Path, photos: Path, text: str, words: list[str]) -> None:
    result = datagen("run", job(tmp_path, text), "-i", photos, "-o", tmp_path / "out")
    assert result.returncode == 2
    assert all(word in " ".join(result.stderr.split()) for word in words), result.stderr
    assert not (tmp_path / "out").exists()


def test_missing_weights_name_the_way_out(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    result = datagen("run", job(tmp_path, "{}"), "-i", photos, "-o", tmp_path / "out", "--model", tmp_path / "nowhere")
    assert result.returncode == 2
    assert "--model tiny" in result.stderr
    assert not (tmp_path / "out").exists()


def test_missing_input_and_output_are_asked_for(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    assert "--input" in datagen("run", job(tmp_path), "-o", tmp_path / "out").stderr
    assert "--output" in datagen("run", job(tmp_path), "-i", photos).stderr
    gone = datagen("run", job(tmp_path), "-i", tmp_path / "gone", "-o", tmp_path / "out")
    assert (gone.returncode, "gone" in gone.stderr) == (2, True)


def test_a_folder_that_holds_something_else_is_left_alone(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    result = datagen("run", job(tmp_path), "-i", photos, "-o", photos)
    assert result.returncode == 2
    assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.png", "2.png"]


def test_an_unwritable_output_is_said_so(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "file").write_text("I am a file")
    result = datagen("run", job(tmp_path), "-i", photos, "-o", tmp_path / "file" / "out")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_an_unknown_option_shows_the_usage(datagen: Datagen, tmp_path: Path) -> None:
    result = datagen("run", job(tmp_path), "--inptu", "x")
    assert result.returncode == 2
    assert "--inptu" in result.stderr


def test_too_many_failed_assets_exit_with_1(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    arguments = ("-i", photos, "-o", tmp_path / "out", "--set", "run.max_failed_fraction=0.1")
    result = datagen("run", job(tmp_path), *arguments)
    assert result.returncode == 1
    assert "1 not_an_image" in result.stdout


def test_run_plan_check_and_stats_agree(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    out, arguments = tmp_path / "out", ("-i", photos, "-o", tmp_path / "out", "--json")
    planned = json.loads(datagen("plan", job(tmp_path), *arguments).stdout)
    assert (planned["listed"], planned["done"], planned["left"]) == (3, 0, 3)
    assert not out.exists()

    assert json.loads(datagen("run", job(tmp_path), *arguments, "--limit", "2").stdout)["statuses"] == {"ok": 2}
    assert json.loads(datagen("plan", job(tmp_path), *arguments).stdout)["left"] == 1
    assert json.loads(datagen("run", job(tmp_path), *arguments).stdout)["done_before"] == 2
    assert json.loads(datagen("check", out, "--json").stdout)["num_assets"] == 3
    assert "not_an_image" not in datagen("stats", out).stdout
    assert json.loads(datagen("status", out, "--json").stdout)["assets"]["done"] == 1
    assert "1 of 1 done" in datagen("status", out).stdout

    next(out.glob("regions/*.parquet")).unlink()
    broken = datagen("check", out)
    assert broken.returncode == 1
    assert "violations" in broken.stdout


def test_going_on_with_other_options_is_a_warning_that_names_them(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    arguments = ("-i", photos, "-o", tmp_path / "out")
    other = ("--set", "describe.languages=[zh]", "--set", "perceive.batch_size=2")
    assert "warning" not in datagen("run", job(tmp_path), *arguments, "--limit", "2").stdout

    for command in ("plan", "run", "run"):  # the second run has nothing left to do
        result = datagen(command, job(tmp_path), *arguments, *other)
        assert result.returncode == 0
        assert "this job differs in describe.languages." in " ".join(result.stdout.split()), result.stdout

    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "_datagen" / "runs").glob("*.json")]
    records.sort(key=lambda record: record["started_at"])  # two runs in one second have names in any order
    assert ["describe.languages" in str(record["summary"]["warnings"]) for record in records] == [False, True]


def test_what_is_not_for_this_job_is_counted(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    (photos / "clip.mp4").write_bytes(b"a film")
    (photos / "notes.txt").write_text("hello")
    arguments = ("-i", photos, "-o", tmp_path / "out")
    for command in ("plan", "run", "run"):
        assert "1 video, 1 .txt file" in datagen(command, job(tmp_path), *arguments).stdout

    for picture in photos.glob("*.png"):
        picture.unlink()
    found = datagen("run", job(tmp_path), *arguments)
    assert found.returncode == 2
    assert "there are no images in" in found.stderr
    assert "found: 1 video, 1 .txt file" in " ".join(found.stderr.split())


def test_a_budget_that_is_used_up_has_an_exit_code_of_its_own(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    arguments = ("-i", photos, "-o", tmp_path / "out", "--set", "write.assets_per_part=1", "--set", "perceive.fake_delay_s=0.5")
    refused = datagen("run", job(tmp_path), *arguments, "--deadline", "soon")
    assert (refused.returncode, "such as 2h, 90m" in " ".join(refused.stderr.split())) == (2, True)

    budget = ("--max-cost", "0.001", "--gpu-hour-price", "2", "--grace", "30", "--set", "run.budget.gpus=8")
    stopped = datagen("run", job(tmp_path), *arguments, *budget)
    assert stopped.returncode == 5
    assert "stopped: a cost of 0.001 is reached; what is committed stays; run the same command to go on" in stopped.stderr
    assert "GPU-hours" in stopped.stdout

    assert datagen("run", job(tmp_path), *arguments).returncode == 0
    assert json.loads(datagen("check", tmp_path / "out", "--json").stdout)["num_assets"] == 3


def test_a_plan_with_a_sample_says_what_it_will_cost(datagen: Datagen, tmp_path: Path, photos: Path) -> None:
    arguments = ("-i", photos, "-o", tmp_path / "out", "--set", "run.budget.gpus=2")
    planned = datagen("plan", job(tmp_path), *arguments, "--sample", "2", "--gpu-hour-price", "1000")
    assert planned.returncode == 0
    assert "2 assets in" in planned.stdout
    assert "on 2 GPUs" in planned.stdout
    assert "cost" in planned.stdout
    assert "estimate" in datagen("run", job(tmp_path), *arguments).stdout


def test_help_is_everywhere(datagen: Datagen) -> None:
    commands = ([], ["run"], ["plan"], ["check"], ["stats"], ["status"], ["model"], ["model", "show"], ["model", "prepare"], *CLUSTERS)
    for command in commands:
        result = datagen(*command, "--help")
        assert result.returncode == 0
        assert "Usage" in result.stdout
