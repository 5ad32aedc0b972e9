"""Scenes as a dataset: read through the doors that users have."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from datagen.check import check_dataset
from datagen.cli import app
from datagen.decode.copies import LocalCopies
from datagen.decode.video import probe_video
from datagen.evaluate import evaluate
from datagen.job import S3Options, SourceOptions
from datagen.scenes import random_scene, render, scene_seed, write_scenes
from datagen.sources import open_source


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    written = write_scenes(folder / "a", num_images=4, num_clips=2, seed=5)
    return folder / "a", written


def test_tables_hold_what_was_drawn(dataset):
    folder, written = dataset
    assets, regions = pd.read_parquet(folder / "assets"), pd.read_parquet(folder / "regions")
    assert (written.num_images, written.num_clips) == (4, 2)
    assert written.num_regions == len(regions)
    for _, asset in assets[assets.media_type == "image"].iterrows():
        extra = json.loads(asset.extra)
        scene = random_scene(int(extra["scene_seed"]))
        picture = render(scene)
        own = regions[regions.asset_id == asset.asset_id].sort_values("region_index")
        assert list(own.label_en) == [shape.label["en"] for shape in scene.shapes]
        assert list(own.caption_zh) == [shape.caption["zh"] for shape in scene.shapes]
        for mask, truth in zip(own["mask"], picture.masks, strict=True):
            assert np.array_equal(coco_mask.decode({"size": list(mask["size"]), "counts": mask["counts"].encode()}), truth)
        pixels = np.asarray(Image.open(folder / asset.uri))
        assert pixels.shape == picture.pixels.shape
        assert np.abs(pixels.astype(int) - picture.pixels).mean() < 4  # JPEG


def test_a_definition_is_told_without_its_label(dataset):
    regions = pd.read_parquet(dataset[0] / "regions")
    assert regions.definition_en.str.startswith("a ").all()
    assert not regions.definition_zh.str.contains("：").any()


def test_clips_have_tracks_events_and_media(dataset):
    folder, written = dataset
    tracks, clips = pd.read_parquet(folder / "tracks"), pd.read_parquet(folder / "clips")
    assert len(tracks) == written.num_tracks
    for _, clip in clips.iterrows():
        info = probe_video(str(folder / clip.uri))
        assert (info.width, info.height, info.num_frames) == (clip.width, clip.height, clip.num_frames)
    for _, track in tracks.iterrows():
        ends = [event["end_frame"] for event in track.events]
        assert [event["start_frame"] for event in track.events] == [0, *(end + 1 for end in ends[:-1])]
        assert ends[-1] == len(track.frames) - 1
        assert track.events[0]["history_en"] is None
        assert [event["history_en"] for event in track.events[1:]] == [event["text_en"] for event in track.events[:-1]]
        spoken = track.caption_en.rstrip(".").split(", then ")
        assert [event["text_en"].rstrip(".").endswith(said.split(" ", 3)[-1]) for event, said in zip(track.events, spoken, strict=True)]


def test_manifests_ask_for_every_object_in_the_order_of_the_tables(dataset):
    folder, written = dataset
    regions = pd.read_parquet(folder / "regions").set_index(["asset_id", "region_index"])
    for kind in ("box", "points"):
        listed = list(open_source(SourceOptions(input=str(folder / f"manifest-{kind}.jsonl"))))
        assert sum(len(asset.prompts) for asset in listed) == written.num_regions
        for asset in listed:
            for index, prompt in enumerate(asset.prompts):
                row = regions.loc[asset.asset_id, index]
                if kind == "box":
                    assert list(prompt.box) == list(row.box_xyxy)
                else:
                    [(x, y)] = prompt.points
                    mask = coco_mask.decode({"size": list(row["mask"]["size"]), "counts": row["mask"]["counts"].encode()})
                    assert mask[int(y), int(x)]
    everything = list(open_source(SourceOptions(input=str(folder / "manifest-everything.jsonl"))))
    assert [asset.prompts for asset in everything] == [None] * 4
    clips = list(open_source(SourceOptions(input=str(folder / "manifest-clips.jsonl"))))
    assert [asset.failure for asset in clips] == [None, None]
    assert sum(len(asset.prompts) for asset in clips) == written.num_tracks
    assert {(prompt.frame_index, prompt.type) for asset in clips for prompt in asset.prompts} == {(0, "box")}


def test_the_dataset_holds_its_invariants(dataset):
    report = check_dataset(str(dataset[0]))
    assert report.ok, report.violations


def test_truth_against_itself_is_perfect(dataset):
    report = evaluate(str(dataset[0]), str(dataset[0]))
    assert report["masks"]["mean_iou"] == 1
    assert {scores["exact_match"] for scores in report["texts"].values()} == {1}
    assert report["clips"]["mean_j"] == 1


def test_more_can_be_added_and_nothing_is_drawn_twice(dataset, tmp_path):
    first = write_scenes(tmp_path / "b", num_images=1, seed=5)
    before = (tmp_path / "b/media/image-000000.jpg").stat().st_mtime_ns
    result = CliRunner().invoke(app, ["scenes", str(tmp_path / "b"), "--images", "3", "--clips", "1", "--seed", "5", "--json"])
    assert result.exit_code == 0, result.output
    second = json.loads(result.stdout)
    assert (first.num_images, second["num_images"], second["num_clips"]) == (1, 3, 1)
    assert (tmp_path / "b/media/image-000000.jpg").stat().st_mtime_ns == before
    one, other = (pd.read_parquet(folder / "assets").set_index("uri") for folder in (dataset[0], tmp_path / "b"))
    shared = other.index.intersection(one.index)
    assert len(shared) == 4
    assert list(one.loc[shared].asset_id) == list(other.loc[shared].asset_id)


def test_data_sets_of_other_seeds_have_no_scene_in_common():
    def seeds(seed):
        return {scene_seed(seed, kind, number) for kind in ("image", "clip") for number in range(5000)}

    train, tuning, clips, held_out = seeds(1), seeds(2), seeds(3), seeds(7)
    assert len(train) == 10_000
    assert not train & tuning
    assert not clips & tuning
    assert not (train | tuning | clips) & held_out


def test_scenes_go_where_they_are_told_also_into_a_bucket(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["scenes", output, "--images", "2", "--clips", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["output"] == output
    assert check_dataset(output).ok
    copies = LocalCopies(S3Options(), 1 << 20)
    for name, num_assets in (("box", 2), ("clips", 1)):
        assets = list(open_source(SourceOptions(input=f"{output}/manifest-{name}.jsonl")))
        assert len(assets) == num_assets
        for asset in assets:
            assert asset.uri.startswith(f"{output}/media/")
            with copies.copy(asset.uri) as path:
                assert os.path.getsize(path) > 500
    copies.close()
    assert not (tmp_path / "s3:").exists()
