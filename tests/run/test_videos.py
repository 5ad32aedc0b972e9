"""Videos and images through the whole job in this process, with fakes for the models: what is committed, and what a rerun does."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datagen.check import check_dataset
from datagen.job import Job, parse_job
from datagen.run import run_job


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Two videos of 3 s and an image, a broken video, and a text."""
    folder = tmp_path / "media"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for shade in range(12):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * shade, np.uint8), format="rgb24")))
            container.mux(stream.encode(None))
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:100])
    (folder / "notes.txt").write_text("no media")
    Image.new("RGB", (64, 48), "teal").save(folder / "c.png")
    return folder


def job(folder: Path, output: Path, media: str = "any") -> Job:
    return parse_job(
        {
            "name": "mixed",
            "source": {"input": str(folder), "media": media},
            "output": str(output),
            "decode": {"max_clip_s": 1.0},
            "perceive": {"engine": "fake", "track": {"segment_frames": 2}},
            "describe": {"engine": "fake", "languages": ["en", "zh"], "tasks": ["caption"]},
            "run": {"executor": "inprocess"},
        }
    )


def rows(output: Path, table: str) -> list[dict]:
    return pq.read_table(output / table).to_pylist()


def test_images_and_videos_of_one_folder_end_in_one_dataset(media: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    summary = run_job(job(media, output))

    assert summary.statuses == {"ok": 3, "failed": 1}
    assert (summary.videos, summary.clips, summary.tracks, summary.regions) == (3, 7, 12, 3)
    assert summary.skipped == {".txt file": 1}
    assets = {Path(row["uri"]).name: row for row in rows(output, "assets")}
    assert (assets["a.mp4"]["num_clips"], assets["a.mp4"]["num_tracks"], assets["a.mp4"]["num_frames"]) == (3, 2, 12)
    assert assets["broken.mp4"]["error_code"] == "truncated"
    assert assets["c.png"]["num_regions"] == 3
    assert all("token_logprobs" not in pq.read_table(output / table).schema.names for table in ("regions", "tracks"))
    assert check_dataset(str(output)).ok


def test_events_are_a_chain_of_captions_in_both_languages(media: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    run_job(job(media, output))
    for row in rows(output, "tracks"):
        first, second = row["events"]
        assert first["history_en"] is None
        assert second["history_en"] == first["text_en"]
        assert second["history_zh"] == first["text_zh"]
        assert row["caption_en"] == second["text_en"]
        assert first["end_s"] == second["start_s"]


def test_a_finished_job_writes_nothing_and_a_lost_end_alone_is_done_again(media: Path, tmp_path: Path) -> None:
    """As after a crash: the last clip and the row of one video are not there yet."""
    output = tmp_path / "corpus"
    run_job(job(media, output, media="video"))
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/part-*")}
    assert run_job(job(media, output, media="video")).todo == 0
    last = next(row for row in rows(output, "clips") if row["uri"].endswith("a.mp4") and row["is_last"])
    (output / "clips" / f"part-{last['part_id']}.parquet").unlink()
    for row in rows(output, "assets"):
        (output / "assets" / f"part-{row['part_id']}.parquet").unlink(missing_ok=True)

    summary = run_job(job(media, output, media="video"))

    # The other videos had all their clips: their rows were written from these at the start.
    assert (summary.todo, summary.clips, summary.done_before) == (1, 1, 2)
    kept = {path: path.stat().st_mtime_ns for path in output.glob("clips/part-*") if last["part_id"] not in path.name}
    assert kept.items() <= before.items()
    assert check_dataset(str(output)).ok
    assert {row["status"] for row in rows(output, "assets")} == {"ok", "failed"}
