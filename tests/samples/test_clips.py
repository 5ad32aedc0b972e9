from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import clips
import numpy as np
import pytest
import scenes
from PIL import Image
from pycocotools import mask as coco_mask

from datagen.decode.video import probe_video, read_frames
from datagen.job import DecodeOptions, SourceOptions
from datagen.sources import open_source

FOLDER = Path(clips.__file__).parent
TRUTH = [json.loads(line) for line in (FOLDER / "videos-truth.jsonl").read_text(encoding="utf-8").splitlines()]
MANIFEST = [json.loads(line) for line in (FOLDER / "videos.jsonl").read_text(encoding="utf-8").splitlines()]
FILMS = clips.films()
SIZE = 192


@cache
def rendered(index: int) -> list[scenes.Rendered]:
    return [FILMS[index].frame(number) for number in range(FILMS[index].num_frames)]


def mask_of(place: dict) -> np.ndarray:
    return coco_mask.decode({**place["mask"], "counts": place["mask"]["counts"].encode()}).astype(bool)


def seen(frames: list[dict]) -> str:
    """The object's presence over time, such as `101` for there, gone, there again."""
    marks = ["0" if frame["mask"] is None else "1" for frame in frames]
    return "".join(mark for index, mark in enumerate(marks) if index == 0 or marks[index - 1] != mark)


@pytest.mark.parametrize("index", range(len(FILMS)))
def test_the_committed_files_are_what_the_renderer_makes(index):
    film, frames = FILMS[index], rendered(index)
    assert clips.truth_row(film, frames) == TRUTH[index]
    assert clips.manifest_row(film, frames) == MANIFEST[index]
    decoded = list(read_frames(str(FOLDER / film.name), DecodeOptions(), SIZE))
    assert len(decoded) == film.num_frames
    for number, (found, expected) in enumerate(zip(decoded, frames, strict=True)):
        assert (found.frame_index, found.timestamp_s) == (number, pytest.approx(number / film.fps, abs=0.001))
        resized = np.asarray(Image.fromarray(expected.pixels).resize((SIZE, SIZE))).astype(int)
        assert abs(found.pixels - resized).mean() < 4


def test_they_are_short_and_small():
    for film, row in zip(FILMS, TRUTH, strict=True):
        info = probe_video(str(FOLDER / film.name))
        assert (info.width, info.height, info.codec, info.num_frames) == (row["width"], row["height"], "h264", row["num_frames"])
        assert 2 <= info.duration_s <= 4
        assert (FOLDER / film.name).stat().st_size < 150_000
    assert sorted(f"videos/{path.name}" for path in (FOLDER / "videos").iterdir()) == [film.name for film in FILMS]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    film, frames = FILMS[1], [frame.pixels for frame in rendered(1)]
    for name in ("one.mp4", "two.mp4"):
        clips.write_film(tmp_path / name, frames, film.fps)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_objects_hide_leave_return_and_come_late():
    presence = {o["label"]["en"]: seen(o["frames"]) for row in TRUTH for o in row["objects"]}
    assert presence == {
        "red circle": "101",
        "blue square": "1",
        "yellow star": "1",
        "green triangle": "1",
        "orange hexagon": "101",
        "purple heart": "1",
        "white ring": "01",
    }
    red = next(o for o in TRUTH[0]["objects"] if o["label"]["en"] == "red circle")
    assert 0 < min(place["area_px"] for place in red["frames"] if place["mask"]) < 100  # hidden bit by bit


def test_masks_do_not_overlap_and_fit_their_facts():
    for row in TRUTH:
        for places in zip(*(o["frames"] for o in row["objects"]), strict=True):
            masks = [mask_of(place) for place in places if place["mask"]]
            assert np.sum(masks, axis=0).max() == 1
            for mask, place in zip(masks, (place for place in places if place["mask"]), strict=True):
                assert mask.shape == (row["height"], row["width"])
                x1, y1, x2, y2 = place["box_xyxy"]
                assert mask[y1:y2, x1:x2].sum() == mask.sum() == place["area_px"] > 0
        for o in row["objects"]:
            assert [place["frame_index"] for place in o["frames"]] == list(range(row["num_frames"]))
            assert [place["timestamp_s"] for place in o["frames"]] == [index / row["fps"] for index in range(row["num_frames"])]
            assert not o["event"]["zh"].isascii()
            assert o["label"]["en"] in o["event"]["en"]


def test_prompts_point_at_their_object_in_their_frame():
    kinds = set()
    for asset, row in zip(open_source(SourceOptions(input=str(FOLDER / "videos.jsonl"))), TRUTH, strict=True):
        assert (asset.failure, asset.media_type) == (None, "video")
        assert {prompt.object_id for prompt in asset.prompts} == set(range(len(row["objects"])))
        for prompt in asset.prompts:
            frame = prompt.frame_index if prompt.time_s is None else round(prompt.time_s * row["fps"])
            place = row["objects"][prompt.object_id]["frames"][frame]
            assert prompt.box in (None, tuple(place["box_xyxy"]))
            assert [bool(mask_of(place)[int(y), int(x)]) for x, y in prompt.points] == [label == 1 for label in prompt.labels]
            kinds.add((prompt.type, prompt.time_s is None, frame > 0))
    assert kinds == {("box", True, False), ("box", True, True), ("points", False, False), ("points", False, True)}
    assert any(len({p["object_id"] for p in row["prompts"]}) < len(row["prompts"]) for row in MANIFEST)


@pytest.mark.parametrize("center", [(-60.0, 40.0), (160.0, 40.0), (50.0, -90.0), (50.0, 190.0), (-60.0, 190.0)])
def test_a_shape_outside_the_picture_has_an_empty_mask(center):
    inside = scenes.Shape("circle", "red", "large", (50.0, 40.0), 30.0)
    outside = scenes.Shape("star", "blue", "large", center, 30.0)
    scene = scenes.Scene(100, 80, "dots", scenes.TINTS[1], (inside,), seed=1)
    alone, both = scenes.render(scene), scenes.render(replace(scene, shapes=(inside, outside)))
    assert both.masks.any(axis=(1, 2)).tolist() == [True, False]
    np.testing.assert_array_equal(alone.pixels, both.pixels)
