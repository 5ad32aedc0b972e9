"""Every kind of damage to clips and tracks is planted in a sound dataset, and found under its name and no other."""

import json
import math
import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import make_clip, mixed_clips, mixed_parts, write_dataset
from damage import change_row, part_file, rewrite
from rich.console import Console

from datagen.assemble import track_row
from datagen.check import check_dataset as check_all
from datagen.ids import asset_id_of, clip_id_of, track_id_of
from datagen.job import WriteOptions
from datagen.masks import encode_mask
from datagen.run.console import print_check
from datagen.write import open_store, part_id_of, publish_part, publish_video_assets, resume_videos, stage_clip
from datagen.write.parts import clip_part_id

EMPTY = encode_mask(np.zeros((30, 40), dtype=bool))


def film(index):
    return asset_id_of(f"films/{index:05d}.mp4")


# Failed videos have a part of their own.
VIDEOS, FAILED = part_id_of(film(index) for index in (20, 21, 22)), part_id_of([film(23)])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    write_dataset(root, [], mixed_clips())
    return root


@pytest.fixture
def root(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "corpus")


@pytest.fixture(scope="module")
def sound_film(tmp_path_factory):
    root = tmp_path_factory.mktemp("film")
    write_dataset(root, [], mixed_clips()[:3])
    return root


@pytest.fixture
def one_film(sound_film, tmp_path):
    return shutil.copytree(sound_film, tmp_path / "corpus")


# What is planted is to be found by what it says, and not only because the file is another one.
check_dataset = partial(check_all, hashes=False)


def codes(root, **options):
    return dict(check_dataset(str(root), **options).by_code)


def clip_file(root, table, index, clip_index):
    return part_file(root, table, clip_part_id(film(index), clip_index))


def remove_clip(root, index, clip_index):
    for table in ("clips", "tracks"):
        clip_file(root, table, index, clip_index).unlink(missing_ok=True)


def shown(report):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_check(console, report)
    return console.export_text()


# --- sound -----------------------------------------------------------------------------------------------------------------------


def test_a_sound_dataset_of_images_and_videos_passes(tmp_path):
    write_dataset(tmp_path, mixed_parts(), mixed_clips())
    listed = [sample.asset.asset_id for part in mixed_parts() for sample in part] + [film(index) for index in (20, 21, 22, 23)]
    report = check_dataset(str(tmp_path), expected=listed)
    assert report.ok, report.violations
    assert (report.num_assets, report.num_regions, report.num_clips, report.num_tracks) == (13, 17, 11, 11)
    assert report.num_parts == 3 + 2 + 11
    assert report.statuses == {"ok": 9, "empty": 2, "failed": 2}
    assert "13 assets, 17 regions, 11 clips and 11 tracks in 16 parts" in shown(report)


def test_an_unfinished_video_is_counted_and_no_violation(root):
    report = check_dataset(str(root))
    assert report.ok, report.violations
    assert (report.num_unfinished_videos, report.num_unfinished_clips) == (1, 2)
    assert json.loads(json.dumps(report.to_dict()))["num_unfinished_clips"] == 2
    assert "unfinished videos: 1, with 2 clips so far; run the job again" in shown(report)
    assert codes(root, expected=[film(24)]) == {"lost_asset": 1}


def test_complete_videos_without_their_rows_wait_for_the_next_run(root):
    for part in (VIDEOS, FAILED):
        part_file(root, "assets", part).unlink()
    report = check_dataset(str(root))
    assert report.ok, report.violations
    assert (report.num_unfinished_videos, report.num_unfinished_clips) == (5, 11)
    resume_videos(open_store(str(root)), WriteOptions())
    report = check_dataset(str(root))
    assert report.ok, report.violations
    assert (report.num_assets, report.num_unfinished_videos) == (4, 1)


def test_a_gap_in_an_unfinished_video_is_filled_by_the_next_run(root):
    remove_clip(root, 24, 0)
    report = check_dataset(str(root))
    assert report.ok, report.violations
    assert (report.num_unfinished_videos, report.num_unfinished_clips) == (1, 1)


# --- files -----------------------------------------------------------------------------------------------------------------------


def test_a_tracks_part_without_its_clips_part_is_an_orphan(root):
    clip_file(root, "clips", 24, 1).unlink()
    (violation,) = check_dataset(str(root)).violations
    assert (violation.code, violation.table, violation.part) == ("orphan_part", "tracks", clip_part_id(film(24), 1))


@pytest.mark.parametrize("table", ["clips", "tracks"])
def test_a_truncated_part_is_unreadable_and_nothing_is_concluded_from_it(root, table):
    path = clip_file(root, table, 20, 1)
    path.write_bytes(path.read_bytes()[:-20])
    assert codes(root) == {"unreadable_part": 1}


def test_another_schema_is_told_apart(root):
    rewrite(clip_file(root, "tracks", 20, 1), lambda table: table.drop_columns(["events"]))
    assert codes(root) == {"schema": 1}


def test_a_clips_part_without_a_clip_is_found(root):
    rewrite(clip_file(root, "clips", 24, 1), lambda table: table.slice(0, 0))
    assert codes(root) == {"empty_part": 1}


def test_a_renamed_part_is_found(root):
    for table in ("clips", "tracks"):
        clip_file(root, table, 24, 1).rename(part_file(root, table, "0" * 20))
    assert codes(root) == {"part_name": 1}


def test_a_copied_part_is_there_twice(root):
    for table in ("clips", "tracks"):
        shutil.copy(clip_file(root, table, 20, 1), part_file(root, table, "0" * 20))
    report = check_dataset(str(root))
    assert report.by_code == {"part_name": 1, "duplicate_clip": 1}
    assert {violation.id for violation in report.violations} == {clip_id_of(film(20), 1)}


@pytest.mark.parametrize(("table", "code"), [("clips", "duplicate_clip"), ("tracks", "duplicate_track")])
def test_a_row_twice_in_a_part_is_found(root, table, code):
    rewrite(clip_file(root, table, 20, 1), lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert codes(root) == {code: 1}


# --- the clips of a video --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip_index", "said"), [(0, "the clips are 1-2"), (1, "the clips are 0, 2"), (2, "the clips are 0-1")])
def test_a_lost_clip_of_a_finished_video_is_found(root, clip_index, said):
    remove_clip(root, 21, clip_index)
    (violation,) = check_dataset(str(root)).violations
    assert (violation.code, violation.id) == ("clip_count", film(21))
    assert said in violation.message


@pytest.mark.parametrize("num_clips", [0, 2, 4, 10**15])
def test_a_wrong_number_of_clips_is_found(root, num_clips):
    rows = pq.read_table(part_file(root, "assets", VIDEOS))["asset_id"].to_pylist()
    rewrite(part_file(root, "assets", VIDEOS), change_row("num_clips", lambda _: num_clips, rows.index(film(20))))
    assert codes(root) == {"clip_count": 1}


def test_a_clip_behind_the_end_of_a_finished_video_is_stray(root):
    store = open_store(str(root))
    run_id = pq.read_table(clip_file(root, "clips", 22, 0))["run_id"][0].as_py()
    publish_part(store, stage_clip(store, run_id, make_clip(22, 5, num_clips=6), WriteOptions(), track_row))
    shutil.rmtree(root / "_staging")
    assert codes(root) == {"stray_clip": 1}


def test_a_video_in_two_assets_parts_is_there_twice(root):
    rows = pq.read_table(part_file(root, "assets", VIDEOS)).to_pylist()
    publish_video_assets(open_store(str(root)), rows[1:2], WriteOptions())
    assert codes(root) == {"duplicate_asset": 1}


def test_clips_and_tracks_are_counted_for_the_video(root):
    """Its third object is only in this clip: the video has one less without it."""
    rewrite(clip_file(root, "tracks", 20, 1), lambda table: table.slice(0, 2))
    report = check_dataset(str(root))
    assert report.by_code == {"track_count": 2}
    assert {violation.table for violation in report.violations} == {"clips", "assets"}


@pytest.mark.parametrize(
    ("index", "clip_index", "column", "make", "code"),
    [
        (20, 0, "num_tracks", lambda n: n + 1, "track_count"),
        (20, 0, "num_tracks", lambda n: n - 1, "track_count"),
        (20, 0, "status", lambda _: "empty", "status"),
        (24, 0, "status", lambda _: "fine", "status"),
        (24, 0, "error_code", lambda _: "decode", "failed_row"),
        (24, 0, "clip_id", lambda name: name + "0", "clip_id"),
        (24, 0, "part_id", lambda _: "elsewhere", "part_id"),
        (21, 0, "part_id", lambda _: "elsewhere", "part_id"),
        (21, 0, "run_id", lambda _: "another", "unknown_run"),
        (24, 0, "asset_id", lambda _: "another", "part_name"),
        (24, 0, "clip_index", lambda n: n + 7, "part_name"),
        (21, 0, "start_s", lambda _: 0.5, "clip_times"),
        (21, 2, "start_s", lambda s: s + 0.5, "clip_times"),
        (21, 2, "start_s", lambda s: s - 0.5, "clip_times"),
        (21, 2, "end_s", lambda s: s + 0.5, "clip_times"),
        (22, 0, "end_s", lambda _: -1.0, "clip_times"),
        (21, 0, "end_s", lambda _: math.nan, "clip_times"),
        (21, 0, "is_last", lambda _: True, "last_clip"),
        (24, 1, "is_last", lambda _: True, "handover"),
        (24, 0, "is_last", lambda _: True, "last_clip+handover"),
        (21, 2, "is_last", lambda _: False, "last_clip"),
        (20, 0, "handovers", lambda h: [h[0], h[0]], "handover"),
        (20, 0, "handovers", lambda h: [h[0] | {"track_id": "it"}], "handover"),
        (20, 0, "handovers", lambda h: [h[0] | {"track_id": track_id_of(film(20), 5)}], "handover"),
        (20, 0, "handovers", lambda h: [h[0] | {"prompt": h[0]["prompt"] | {"mask": {"size": [3, 4], "counts": "0"}}}], "handover"),
    ],
)
def test_a_changed_clip_is_found(root, index, clip_index, column, make, code):
    rewrite(clip_file(root, "clips", index, clip_index), change_row(column, make))
    assert codes(root) == dict.fromkeys(code.split("+"), 1)


def test_a_clip_with_tracks_has_a_size(root):
    rewrite(clip_file(root, "clips", 24, 0), lambda t: change_row("height", lambda _: None)(change_row("width", lambda _: None)(t)))
    assert codes(root, deep=False) == {"asset_size": 1, "handover": 1}


@pytest.mark.parametrize(
    ("index", "column", "make", "expected"),
    [
        (20, "num_tracks", lambda n: n + 1, {"track_count": 1}),
        (20, "num_tracks", lambda n: n - 1, {"track_count": 1}),
        (20, "status", lambda _: "empty", {"status": 1}),
        (20, "status", lambda _: "failed", {"status": 1}),
        (22, "status", lambda _: "ok", {"status": 1}),
        (23, "status", lambda _: "ok", {"status": 1}),
        (23, "error_message", lambda _: None, {"video_row": 1}),
        (23, "error_code", lambda _: "other", {"video_row": 1}),
        (21, "license", lambda _: None, {"video_row": 1}),
        (21, "duration_s", lambda s: s + 1, {"video_row": 1}),
        (21, "dropped", lambda _: [], {"video_row": 1}),
        (21, "part_id", lambda _: "elsewhere", {"part_id": 1}),
        (21, "run_id", lambda _: "another", {"unknown_run": 1, "video_row": 1}),
        (22, "media_type", lambda _: "image", {"media_type": 1, "stray_clip": 1}),
        (22, "media_type", lambda _: "sound", {"media_type": 1, "stray_clip": 1}),
        (22, "num_tracks", lambda _: None, {"media_type": 1, "track_count": 1}),
        (22, "num_regions", lambda _: 1, {"media_type": 1, "region_count": 1, "video_row": 1}),
    ],
)
def test_a_changed_video_is_found(root, index, column, make, expected):
    path = part_file(root, "assets", FAILED if index == 23 else VIDEOS)
    rows = pq.read_table(path)["asset_id"].to_pylist()
    rewrite(path, change_row(column, make, rows.index(film(index))))
    assert codes(root) == expected


def test_an_image_has_no_clips(tmp_path):
    write_dataset(tmp_path, mixed_parts()[:1])
    (path,) = (tmp_path / "assets").iterdir()
    rewrite(path, change_row("num_clips", lambda _: 1))
    assert codes(tmp_path) == {"media_type": 1}


# --- tracks ----------------------------------------------------------------------------------------------------------------------


def frames(**values):
    """A change of the first frame of a track; of frame n by `at=n`."""
    at = values.pop("at", 0)
    return lambda items: [item | values if number == at else item for number, item in enumerate(items)]


def events(first=(), second=()):
    return lambda items: [items[0] | dict(first), items[1] | dict(second)]


@pytest.mark.parametrize(
    ("column", "make", "code"),
    [
        ("clip_index", lambda n: n + 1, "stray_track"),
        ("asset_id", lambda _: "another", "stray_track"),
        ("part_id", lambda _: "elsewhere", "part_id"),
        ("run_id", lambda _: "another", "mixed_runs"),
        ("track_id", lambda _: "it", "track_id"),
        ("track_id", lambda name: name.replace("t000002", "t2"), "track_id"),
        ("track_id", lambda _: track_id_of(film(20), 5), "track_id"),
        ("object_index", lambda _: 0, "object_index"),
        ("start_s", lambda s: s + 1, "track_times"),
        ("end_s", lambda s: s + 1, "track_times"),
        ("frames", frames(frame_index=-1, at=1), "frame_index+frame_gap"),
        ("frames", frames(frame_index=9, at=2), "frame_index+frame_gap+timestamp"),
        ("frames", frames(frame_index=24, at=7), "frame_index+frame_gap"),
        ("frames", frames(frame_index=16, at=7), "frame_index+frame_gap"),
        ("frames", frames(frame_index=7, at=3), "frame_index+frame_gap"),
        ("frames", frames(timestamp_s=2.26), "timestamp"),
        ("frames", frames(timestamp_s=1.75), "timestamp"),
        ("frames", frames(timestamp_s=4.0, at=7), "timestamp"),
        ("frames", frames(timestamp_s=math.nan, at=3), "timestamp"),
        ("frames", frames(object_score=0.0), "object_score"),
        ("frames", frames(object_score=math.nan), "object_score+score"),
        ("frames", frames(mask={"size": [40, 30], "counts": EMPTY["counts"]}), "mask"),
        ("frames", frames(mask={"size": [30, 40], "counts": "0"}), "mask"),
        ("frames", frames(mask={"size": [30, 40], "counts": "ü"}), "mask"),
        ("frames", frames(mask=EMPTY), "mask"),
        ("frames", frames(mask=None), "box+object_score"),
        ("frames", frames(box_xyxy=None), "box"),
        ("frames", frames(box_xyxy=[0.0, 0.0, 40.0, 30.0]), "box"),
        ("frames", frames(box_xyxy=[0.0, 0.0, 40.0]), "box"),
        ("frames", frames(box_xyxy=[0.0, 0.0, 1.0, 1.0], at=2), "box"),
        ("prompts", lambda items: items[::-1], "prompt_frame"),
        ("prompts", lambda items: [items[0] | {"frame_index": 7}], "prompt_frame"),
        ("prompts", lambda items: [items[0] | {"frame_index": -1}], "prompt_frame"),
        ("events", lambda items: items[::-1], "event+caption"),
        ("events", events({"end_frame": 12}), "event"),
        ("events", events({"start_frame": 7}), "event"),
        ("events", events({"start_frame": 11, "end_frame": 10}), "event"),
        ("events", events({}, {"end_frame": 16}), "event"),
        ("events", events({"end_s": 3.5}), "event"),
        ("events", events({"start_s": 1.5}), "event"),
        ("events", events({"start_s": 3.0}), "event"),
        ("events", events({}, {"end_s": 4.5}), "event"),
        ("events", events({}, {"end_s": math.nan}), "event"),
    ],
)
def test_a_changed_track_is_found(one_film, column, make, code):
    rewrite(clip_file(one_film, "tracks", 20, 1), change_row(column, make, row=2))
    report = check_dataset(str(one_film))
    assert {violation.code for violation in report.violations} == set(code.split("+")), report.violations
    assert all(violation.table == "tracks" for violation in report.violations)


def test_a_track_that_is_never_seen_needs_no_mask_and_no_event(one_film):
    def unseen(table):
        for column, value in (("events", []), ("caption_en", None), ("caption_zh", None), ("flags", ["absent"])):
            table = change_row(column, lambda _, value=value: value)(table)
        return change_row("frames", lambda items: [f | {"mask": None, "box_xyxy": None, "object_score": -1.0} for f in items])(table)

    rewrite(clip_file(one_film, "tracks", 20, 1), unseen)
    assert codes(one_film) == {}


def test_masks_are_decoded_only_when_asked_deep(one_film):
    rewrite(clip_file(one_film, "tracks", 20, 1), change_row("frames", frames(mask=EMPTY)))
    assert codes(one_film, deep=False) == {}
    assert codes(one_film) == {"mask": 1}
