import json

import pytest
import yaml
from corpora import asked_job, fake_job, mixed_clips, mixed_parts, write_dataset

from datagen import __version__
from datagen.errors import SourceError, WriteError
from datagen.write import RunRecord, open_dataset, open_store, other_options, prepare_output, run_records, weight_hashes, write_card


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def test_the_marker_is_written_once(store):
    prepare_output(store, fake_job())
    first = store.read("_datagen/dataset.json")
    prepare_output(store, fake_job(name="another"))
    assert store.read("_datagen/dataset.json") == first
    assert json.loads(first)["schemas"] == {"assets": 2, "regions": 2, "tracks": 2, "clips": 2}


def test_a_dataset_of_another_format_is_refused(store):
    marker = {"format": 2, "schemas": {"assets": 7, "regions": 7}, "created_by": "datagen 9.9"}
    store.write("_datagen/dataset.json", json.dumps(marker).encode())
    with pytest.raises(WriteError, match=r"format 2 .*datagen 9\.9"):
        prepare_output(store, fake_job())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
def test_a_damaged_marker_is_refused(store, content):
    store.write("_datagen/dataset.json", content)
    with pytest.raises(WriteError, match="damaged"):
        prepare_output(store, fake_job())


def test_what_is_no_dataset_cannot_be_opened(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match="no datagen dataset"):
            open_dataset(str(place))


def test_a_run_record_says_how_the_rows_were_made(store):
    job = fake_job(run={"seed": 7})
    record = RunRecord.new(job)
    record.model = {"checkpoint": "tiny", "sha256": {"model.safetensors": "00"}}
    record.prompts = {"label": {"zh": "请描述"}}
    record.write(store, status="running")
    (running,) = run_records(store)
    assert (running["status"], running["finished_at"], running["summary"]) == ("running", None, {})

    record.write(store, status="finished", summary={"seconds": 1.5, "statuses": {"ok": 3}})
    (found,) = run_records(store)
    assert found["run_id"] == record.run_id
    assert found["status"] == "finished"
    assert found["started_at"] <= found["finished_at"]
    assert found["summary"] == {"seconds": 1.5, "statuses": {"ok": 3}}
    assert found["job"] == job.model_dump(mode="json")
    assert (found["job_hash"], found["seed"]) == (job.hash(), 7)
    assert found["packages"]["datagen"] == __version__
    assert {"python", "torch", "pyarrow", "ray"} <= found["packages"].keys()
    assert found["hardware"]["num_cpus"] >= 1
    assert found["prompts"] == {"label": {"zh": "请描述"}}


def test_runs_have_different_ids_in_the_order_of_time(store):
    records = [RunRecord.new(fake_job()) for _ in range(3)]
    assert len({record.run_id for record in records}) == 3
    assert [r.run_id[:15] for r in records] == sorted(r.run_id[:15] for r in records)


def test_rows_made_with_other_options_are_known_by_the_paths_that_differ(tmp_path):
    store = write_dataset(tmp_path, mixed_parts())
    (run,) = [record["run_id"] for record in run_records(store)]
    asked = asked_job().model_dump(exclude={"name"})
    changed = {"perceive": {"engine": "fake", "everything": {"max_regions": 5}}, "describe": asked["describe"] | {"languages": ["zh"]}}

    assert other_options(store, asked_job()) == {}
    assert other_options(store, fake_job(**changed)) == {run: ["describe.languages", "perceive.everything.max_regions"]}


def test_resources_and_runs_that_committed_nothing_make_no_difference(tmp_path):
    store = write_dataset(tmp_path, mixed_parts())
    asked = {"describe": asked_job().describe.model_dump()}
    faster = {"perceive": {"engine": "fake", "batch_size": 2, "pool": {"num_cpus": 3}}, "write": {"assets_per_part": 9}} | asked
    assert other_options(store, fake_job(**faster)) == {}
    assert fake_job(**faster).hash() == asked_job().hash() != fake_job(assemble={"min_area_px": 4}).hash()

    RunRecord.new(fake_job(assemble={"min_area_px": 4})).write(store, status="interrupted", summary={"parts": 0})
    assert other_options(store, asked_job()) == {}


def test_a_damaged_run_record_is_named(store):
    store.write("_datagen/runs/x.json", b"{")
    with pytest.raises(SourceError, match=r"runs/x\.json is damaged"):
        list(run_records(store))


def test_weight_hashes_are_those_of_the_files(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"abc")
    assert weight_hashes([tmp_path / "w.bin"]) == {"w.bin": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}


def test_weights_of_one_name_in_two_folders_are_two(tmp_path):
    for name in ("a/model.safetensors", "a/sam2/model.safetensors", "b/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    inside, beside = [tmp_path / "a/model.safetensors", tmp_path / "a/sam2/model.safetensors"], tmp_path / "b/model.safetensors"
    assert list(weight_hashes(inside)) == ["model.safetensors", "sam2/model.safetensors"]
    hashes = weight_hashes([*inside, beside], tmp_path / "a")
    assert list(hashes) == ["model.safetensors", "sam2/model.safetensors", str(beside)]
    assert len(set(hashes.values())) == 3


def test_the_card_tells_what_is_there(tmp_path):
    store = write_dataset(tmp_path, mixed_parts())
    write_card(store, fake_job(describe={"engine": "fake", "languages": ["en", "zh"]}))
    _, front_matter, body = store.read("README.md").decode().split("---\n", 2)
    card = yaml.safe_load(front_matter)
    assert card["language"] == ["en", "zh"]
    assert card["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in card["configs"]] == ["regions", "assets"]
    for line in ("| assets | 9 |", "| · failed | 1 |", "| regions | 17 |", "| parts | 3 |", "`caption_zh`"):
        assert line in body
    assert "tracks" not in body


@pytest.mark.parametrize(
    ("parts", "clips", "tables"),
    [
        (mixed_parts(), mixed_clips(), ["regions", "tracks", "clips", "assets"]),
        ([], mixed_clips(), ["tracks", "clips", "assets"]),
        ([], mixed_clips()[6:7], ["clips", "assets"]),
        ([], mixed_clips()[-2:], ["tracks", "clips"]),
    ],
)
def test_the_card_tells_of_videos_where_there_are_some(tmp_path, parts, clips, tables):
    write_card(write_dataset(tmp_path, parts, clips), fake_job())
    _, front_matter, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front_matter)
    assert [config["config_name"] for config in card["configs"]] == tables
    assert "video-text-to-text" in card["task_categories"]
    for line in (f"| clips | {len(clips)} |", "`text_en`", "Objects of videos", "masklet(tracks[0])", "unnest(events)"):
        assert line in body
    for line in ("Regions of images", "regions/*.parquet"):
        assert (line in body) == ("regions" in tables)


def test_the_card_of_nothing_names_no_files(store):
    prepare_output(store, fake_job())
    write_card(store, fake_job())
    assert yaml.safe_load(store.read("README.md").decode().split("---\n")[1])["configs"] == []
