"""Nothing of a video is lost or there twice, whatever is killed, and what is committed of it is not done again."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from kills import Run

from datagen.check import check_dataset
from datagen.ids import asset_id_of, track_id_of

pytestmark = [pytest.mark.slow, pytest.mark.ray]

FAKES = """
version: 1
name: chaos-videos
source: {media: video}
decode: {fps: 4, max_clip_s: 0.5}
perceive: {engine: fake, fake_delay_s: 0.05}
describe: {engine: fake, fake_delay_s: 0.05}
write: {assets_per_part: 3}
run: {object_store_gib: 0.2}
"""
CLIPS_PER_VIDEO = 12


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(FAKES)
    return path


def make_videos(folder: Path, count: int) -> set[str]:
    """`count` copies of a video of CLIPS_PER_VIDEO clips; returns their ids."""
    folder.mkdir()
    paths = [folder / f"{index:03d}.mp4" for index in range(count)]
    with av.open(str(paths[0]), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for shade in range(2 * CLIPS_PER_VIDEO):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), shade * 9, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for path in paths[1:]:
        path.write_bytes(paths[0].read_bytes())
    return {asset_id_of(str(path)) for path in paths}


def clips(output: Path) -> list[Path]:
    return sorted((output / "clips").glob("part-*.parquet"))


def wait_for_clips(run: Run, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(clips(run.output)) < count and run.process.poll() is None:
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)


def check_all(output: Path, ids: set[str]) -> None:
    report = check_dataset(str(output), expected=ids)
    assert report.ok, report.violations[:5]
    rows = pq.read_table(output / "assets").to_pylist()
    assert {(row["status"], row["num_clips"], row["num_tracks"]) for row in rows} == {("ok", CLIPS_PER_VIDEO, 2)}
    found = pq.read_table(output / "clips", columns=["asset_id", "clip_index"]).to_pylist()
    assert Counter(row["asset_id"] for row in found) == dict.fromkeys(ids, CLIPS_PER_VIDEO)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_random_kills_lose_and_double_nothing(job: Path, tmp_path: Path) -> None:
    ids, output, seed = make_videos(tmp_path / "in", 16), tmp_path / "corpus", time.time_ns() % 10_000
    rng, kills = random.Random(seed), Counter[str]()
    for _ in range(3):
        run = Run(job, tmp_path / "in", output, faults={"write": {"delay_s": 0.02}})
        wait_for_clips(run, len(clips(output)) + 4)
        for worker in rng.sample(["clips", "clips", "describe", "write"], 3):
            time.sleep(rng.uniform(0.1, 0.6))
            kills[worker] += run.kill_worker(worker, rng)
        time.sleep(rng.uniform(0.2, 1.0))
        kills["driver"] += run.process.poll() is None
        run.kill_driver()
        assert not list(output.glob("clips/part-*.tmp"))

    Run(job, tmp_path / "in", output).finish()

    print(f"seed {seed}, kills {dict(kills)}")
    assert kills["driver"] >= 2
    assert kills["clips"] >= 2
    check_all(output, ids)


def test_a_crash_does_not_redo_committed_clips(job: Path, tmp_path: Path) -> None:
    """The worker dies in the middle of the only video, then the driver; clips that were there are left alone both times."""
    ids, output = make_videos(tmp_path / "in", 1), tmp_path / "corpus"
    run = Run(job, tmp_path / "in", output, faults={"worker.perceive": {"delay_s": 1.5}})
    wait_for_clips(run, 2)
    run.wait_for_workers("clips")
    while not run.kill_worker("clips", random.Random(0)):  # a process's title cannot be read at every moment
        assert run.process.poll() is None, run.process.communicate()[1][-4000:]
    before_kill = {path: path.stat().st_ino for path in clips(output)}
    wait_for_clips(run, len(before_kill) + 2)
    run.kill_driver()
    before = {path: path.stat().st_ino for path in clips(output)}
    assert CLIPS_PER_VIDEO > len(before) >= 4
    assert before.items() >= before_kill.items()

    summary = Run(job, tmp_path / "in", output).finish()

    assert {path: path.stat().st_ino for path in clips(output)}.items() >= before.items()
    assert summary["clips"] == CLIPS_PER_VIDEO - len(before)
    check_all(output, ids)
    tracks = pq.read_table(output / "tracks", columns=["track_id", "clip_index"]).to_pylist()
    assert Counter(row["track_id"] for row in tracks) == {track_id_of(asset_id, n): CLIPS_PER_VIDEO for asset_id in ids for n in range(2)}


def test_a_clip_that_kills_its_worker_ends_its_video_alone(job: Path, tmp_path: Path) -> None:
    ids, output = make_videos(tmp_path / "in", 3), tmp_path / "corpus"
    poison = {"worker.perceive": {"kill_if_uri": "001.mp4#clip=5;"}}

    summary = Run(job, tmp_path / "in", output, faults=poison).finish()

    assert summary["statuses"] == {"ok": 2, "failed": 1}
    assert summary["failures"] == {"perceive_crashed": 1}
    report = check_dataset(str(output), expected=ids)
    assert report.ok, report.violations[:5]
    failed = next(row for row in pq.read_table(output / "assets").to_pylist() if row["status"] == "failed")
    assert (failed["num_clips"], failed["attempts"]) == (6, 3)
    assert "clip 5" in failed["error_message"]
    assert json.loads(json.dumps(summary))["counters"]["crashes"] == 3
