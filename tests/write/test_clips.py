"""Videos clip by clip: published in order, resumed behind what is committed, finished once, whatever dies when."""

import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from corpora import CLIP_S, asked_job, failed_clip, make_clip, write_dataset
from damage import rewrite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datagen.assemble import track_row
from datagen.check import check_dataset
from datagen.errors import SchemaError, WriteError
from datagen.ids import track_id_of
from datagen.job import WriteOptions
from datagen.records import Asset, Sample
from datagen.write import (
    RunRecord,
    committed_clips,
    open_store,
    part_id_of,
    prepare_output,
    publish_video_assets,
    resume_videos,
    stage_clip,
    sweep,
)
from datagen.write.clips import VideoProgress
from datagen.write.done import done_assets
from datagen.write.parts import clip_part_id, part_path, publish_part

OPTIONS = WriteOptions()
# Video -> its clips: objects come, go on and go; one video ends in a clip that fails, one has nothing in it.
FILMS = {
    1: lambda: [make_clip(1, 0), make_clip(1, 1, (0, 1, 2)), make_clip(1, 2, (2,), is_last=True)],
    2: lambda: [make_clip(2, 0, (0,)), failed_clip(2, 1)],
    3: lambda: [make_clip(3, 0, (), is_last=True)],
}


@pytest.fixture
def store(tmp_path):
    store = open_store(str(tmp_path / "out"))
    prepare_output(store, asked_job())
    return store


def stage(store, sample, run_id="run"):
    return stage_clip(store, run_id, sample, OPTIONS, track_row)


def committed(store, table="clips"):
    return sum(1 for _ in store.list(table))


def test_clips_are_published_in_order_however_they_arrive(store):
    _, progress = resume_videos(store, OPTIONS)
    first, second, third = (stage(store, clip) for clip in FILMS[1]())
    assert progress.publish(third) == []
    assert progress.publish(second) == []
    assert (progress.num_waiting, committed(store), progress.finished()) == (2, 0, [])
    assert progress.publish(first) == [first, second, third]
    assert (progress.num_waiting, committed(store), committed(store, "tracks")) == (0, 3, 3)
    (video,) = progress.finished()
    assert video.index == 1
    assert (video.row["status"], video.row["num_clips"], video.row["num_tracks"]) == ("ok", 3, 3)
    assert progress.finished() == []


@pytest.mark.parametrize("is_committed", [False, True])
def test_clips_beyond_a_finished_video_are_none_of_it(store, is_committed):
    _, progress = resume_videos(store, OPTIONS)
    first, second, third = (stage(store, clip) for clip in FILMS[1]())
    beyond = stage(store, make_clip(1, 3, is_last=True))
    if is_committed:  # as by a hand that put a part there
        publish_part(store, beyond)
        sweep(store)
        first, second, third = (stage(store, clip) for clip in FILMS[1]())
        progress = VideoProgress(store, done_assets(store))
    else:
        assert progress.publish(beyond) == []
    published = [part for clip in (first, second, third) for part in progress.publish(clip)]
    assert published == [first, second, third]
    (video,) = progress.finished()
    assert (video.row["num_clips"], video.row["num_tracks"], progress.num_waiting) == (3, 3, 0)


def test_a_clip_that_comes_again_is_left_aside(store):
    _, progress = resume_videos(store, OPTIONS)
    clips = FILMS[1]()
    progress.publish(stage(store, clips[0]))
    before = store.read(next(path for path, _ in store.list("clips")))
    assert progress.publish(stage(store, make_clip(1, 0, (3,)))) == []
    assert store.read(next(path for path, _ in store.list("clips"))) == before
    for clip in (*clips[1:], clips[2]):
        progress.publish(stage(store, clip))
    assert len(progress.finished()) == 1


def test_a_clip_is_not_taken_for_committed_where_another_has_its_name(store):
    _, progress = resume_videos(store, OPTIONS)
    progress.publish(stage(store, make_clip(1, 0)))
    mark = part_path("clips", clip_part_id(make_clip(1, 0).asset.asset_id, 0))
    store.move(mark, part_path("clips", clip_part_id(make_clip(2, 0).asset.asset_id, 0)))
    with pytest.raises(
        WriteError, match=f"{make_clip(1, 0).asset.asset_id}-00000.* where .*{make_clip(2, 0).asset.asset_id}-00000.* belong"
    ):
        resume_videos(store, OPTIONS)[1].publish(stage(store, make_clip(2, 0)))


def test_a_clip_whose_part_has_no_rows_is_not_committed(store):
    _, progress = resume_videos(store, OPTIONS)
    first, second, third = FILMS[1]()
    progress.publish(stage(store, first))
    rewrite(Path(store.uri) / part_path("clips", clip_part_id(first.asset.asset_id, 0)), lambda table: table.slice(0, 0))
    _, progress = resume_videos(store, OPTIONS)
    assert not progress.is_committed(first.asset.asset_id, 0)
    assert progress.resume_point(first.asset.asset_id) is None
    assert list(committed_clips(store, first.asset.asset_id, 0)) == []
    for clip in (first, second, third):
        progress.publish(stage(store, clip))
    assert len(progress.finished()) == 1


def test_rows_of_videos_are_not_written_over_those_of_others(store):
    _, progress = resume_videos(store, OPTIONS)
    for clip in FILMS[3]():
        progress.publish(stage(store, clip))
    (video,) = progress.finished()
    publish_video_assets(store, [video.row], OPTIONS)
    mine, other = (part_path("assets", part_id_of([name])) for name in (video.row["asset_id"], "another"))
    store.move(mine, other)
    before = store.read(other)
    with pytest.raises(WriteError, match="belong"):
        publish_video_assets(store, [video.row | {"asset_id": "another"}], OPTIONS)
    assert store.read(other) == before


def test_a_run_goes_on_behind_the_last_clip_with_its_objects(store):
    clips = FILMS[1]()
    _, progress = resume_videos(store, OPTIONS)
    assert progress.resume_point(clips[0].asset.asset_id) is None
    for clip in clips[:2]:
        progress.publish(stage(store, clip))
    sweep(store)
    _, progress = resume_videos(store, OPTIONS)
    point = progress.resume_point(clips[0].asset.asset_id)
    assert (point.clip_index, point.start_s, point.next_track) == (2, 2 * CLIP_S, 5)
    assert point.handovers == clips[1].clip.handovers


def test_what_lies_behind_a_gap_is_used_when_the_gap_is_filled(store):
    clips = FILMS[1]()
    _, progress = resume_videos(store, OPTIONS)
    published = [part for clip in clips[:2] for part in progress.publish(stage(store, clip))]
    for table in ("clips", "tracks"):
        store.delete(f"{table}/part-{published[0].part_id}.parquet")
    _, progress = resume_videos(store, OPTIONS)
    assert progress.resume_point(clips[0].asset.asset_id) is None
    assert [part.clip.clip_index for part in progress.publish(stage(store, clips[0]))] == [0]
    assert progress.resume_point(clips[0].asset.asset_id).clip_index == 2
    progress.publish(stage(store, clips[2]))
    assert len(progress.finished()) == 1


def test_videos_completed_by_a_killed_run_get_their_rows_from_the_next(store):
    _, progress = resume_videos(store, OPTIONS)
    for clip in (*FILMS[1](), *FILMS[2]()):
        progress.publish(stage(store, clip))
    rows = {video.row["asset_id"]: video.row for video in progress.finished()}
    done, progress = resume_videos(store, OPTIONS)
    assert (len(done), progress.finished()) == (2, [])
    written = pq.read_table(f"{store.uri}/assets").to_pylist()
    assert {row["asset_id"]: {name: row[name] for name in rows[row["asset_id"]]} for row in written} == rows


def test_a_failed_clip_makes_a_failed_video_that_keeps_its_tracks(tmp_path):
    store = write_dataset(tmp_path, [], FILMS[2]())
    (row,) = pq.read_table(f"{store.uri}/assets").to_pylist()
    assert (row["status"], row["error_code"]) == ("failed", "corrupt")
    assert row["error_message"] == "clip 1: none of its frames can be decoded"
    assert (row["num_clips"], row["num_tracks"], row["num_regions"]) == (2, 1, 0)
    assert row["dropped"] == [{"reason": "already_followed", "count": 2}]


def test_a_video_knows_what_any_of_its_clips_knows(tmp_path):
    first, second = make_clip(1, 0, ()), make_clip(1, 1, is_last=True)
    first.width = first.height = first.sha256 = first.size_bytes = first.clip.fps = None
    first.attempts = 3
    (row,) = pq.read_table(f"{write_dataset(tmp_path, [], [first, second]).uri}/assets").to_pylist()
    assert (row["width"], row["height"], row["sha256"], row["fps"], row["attempts"]) == (40, 30, "cd" * 32, 4.0, 3)
    assert check_dataset(str(tmp_path)).ok


@pytest.mark.parametrize("track_id", ["", "it", "another-t0000", track_id_of("x", 0)[1:], "t١"])
def test_track_ids_that_are_none_are_refused(store, track_id):
    clip = make_clip(1, 0)
    clip.tracks[0].track_id = track_id
    with pytest.raises(SchemaError, match="found the track id"):
        stage(store, clip)


def test_an_object_has_one_track_in_a_clip(store):
    clip = make_clip(1, 0, (2, 2))
    with pytest.raises(SchemaError, match="is twice in clip 0"):
        stage(store, clip)


def test_what_is_no_clip_is_refused(store):
    with pytest.raises(SchemaError, match="no clip of a video"):
        stage(store, Sample(0, Asset("a", "a.mp4", "video")))


def test_a_damaged_clip_stops_the_run_and_says_what_to_do(tmp_path):
    store = write_dataset(tmp_path, [], FILMS[1]()[:1])
    (path,) = (tmp_path / "clips").iterdir()
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(WriteError, match="datagen check"):
        resume_videos(store, OPTIONS)


# --- crashes ---------------------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The machine is gone."""


class Dying:
    """A store of which no more than so many changes succeed."""

    def __init__(self, store, changes):
        self._store, self._left = store, changes

    def __getattr__(self, name):
        return getattr(self._store, name)

    def _count(self):
        if not self._left:
            raise Crash
        self._left -= 1

    def write(self, path, data):
        self._count()
        self._store.write(path, data)

    def move(self, src, dst):
        self._count()
        self._store.move(src, dst)


def do_run(store, films, seed):
    """A run as the driver and its workers do it: clips of all videos arrive interleaved, now and then one twice."""
    rng, record = random.Random(seed), RunRecord.new(asked_job())
    prepare_output(store, asked_job())
    sweep(store)
    record.write(store, status="running")
    done, progress = resume_videos(store, OPTIONS)
    arriving = []
    for film in films:
        clips = FILMS[film]()
        if clips[0].asset.asset_id not in done:
            point = progress.resume_point(clips[0].asset.asset_id)
            start = point.clip_index if point else 0
            assert point is None or point.handovers == clips[start - 1].clip.handovers
            arriving += clips[start:]
    rng.shuffle(arriving)
    for clip in arriving:
        for _ in range(rng.choice((1, 1, 2))):
            progress.publish(stage(store, clip, record.run_id))
        finished = progress.finished(minimum=rng.choice((1, 2)))
        if finished:
            publish_video_assets(store, [video.row for video in finished], OPTIONS)
    finished = progress.finished()
    if finished:
        publish_video_assets(store, [video.row for video in finished], OPTIONS)
    assert progress.num_waiting == 0


def tables(root):
    """What does not differ from run to run."""
    found = {}
    for table in ("assets", "clips", "tracks"):
        rows = pq.read_table(root / table).drop_columns(["run_id", "finished_at"] if table != "tracks" else ["run_id"])
        rows = rows.drop_columns(["part_id"]) if table == "assets" else rows  # how videos fall into parts is a matter of time
        found[table] = sorted(rows.to_pylist(), key=str)
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    root = tmp_path_factory.mktemp("expected")
    write_dataset(root, [], [clip for film in FILMS.values() for clip in film()])
    return tables(root)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(crashes=st.lists(st.integers(2, 40), max_size=4), seed=st.integers(0, 1000))
def test_crashes_at_any_change_lose_nothing_and_repeat_nothing(tmp_path, expected, crashes, seed):
    root = tmp_path / "out"
    shutil.rmtree(root, ignore_errors=True)
    store = open_store(str(root))
    for number, changes in enumerate(crashes):
        try:
            do_run(Dying(store, changes), FILMS, seed + number)
        except Crash:
            continue
        break
    do_run(store, FILMS, seed - 1)
    report = check_dataset(str(root))
    assert report.ok, report.violations
    assert (report.num_assets, report.num_unfinished_videos) == (3, 0)
    assert tables(root) == expected
