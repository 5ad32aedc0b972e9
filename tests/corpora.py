"""Samples and small datasets for tests, made through the public door of datagen.write."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datagen.assemble import region_row, track_row
from datagen.ids import asset_id_of, track_id_of
from datagen.job import Job, WriteOptions, parse_job
from datagen.records import RLE, Asset, Clip, Event, Handover, Prompt, Region, Sample, Text, Track, TrackFrame
from datagen.write import (
    RunRecord,
    Store,
    open_store,
    prepare_output,
    publish_part,
    publish_video_assets,
    resume_videos,
    stage_clip,
    stage_part,
    sweep,
)

WIDTH, HEIGHT = 40, 30
FPS, CLIP_FRAMES = 4, 8
CLIP_S = CLIP_FRAMES / FPS
ROOT = Path(__file__).resolve().parents[1]


def make_mask(rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> tuple[np.ndarray, RLE, tuple[float, ...]]:
    """A mask of a few pixels, its encoding, its box."""
    mask = np.zeros((height, width), dtype=np.uint8)
    x, y = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8))
    mask[y : y + 8, x : x + 6] = rng.random((8, 6)) < 0.7
    mask[y, x] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    ys, xs = np.nonzero(mask)
    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    return mask, {"size": [height, width], "counts": rle["counts"].decode()}, box


def make_region(index: int, rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> Region:
    mask, rle, box = make_mask(rng, width, height)
    return Region(
        region_index=index,
        prompt=Prompt(box=box, points=[(box[0] + 1.0, box[1] + 1.0)], labels=[1]),
        mask=rle,
        box_xyxy=box,
        area_px=int(mask.sum()),
        predicted_iou=0.9,
        stability=0.95,
        object_score=3.5,
        texts={
            ("label", "en"): Text(f"thing {index}", -0.25, "stop", 3),
            ("caption", "en"): Text("A thing on a table.", -0.5, "length", 6),
            ("label", "zh"): Text("东西", -0.75, "stop", 2),
            ("caption", "zh"): Text("桌上的东西。", -0.5, "stop", 5),
        },
        flags=["truncated:caption_en"],
    )


def make_sample(index: int, num_regions: int = 2, name: str | None = None) -> Sample:
    uri = name or f"photos/{index:05d}.jpg"
    rng = np.random.default_rng(index)
    sample = Sample(index, Asset(asset_id_of(uri), uri), width=WIDTH, height=HEIGHT, size_bytes=1000 + index, sha256="ab" * 32)
    sample.regions = [make_region(i, rng) for i in range(num_regions)]
    sample.usage = {"prompt_tokens": 100 * num_regions, "cached_tokens": 75 * num_regions, "output_tokens": 10 * num_regions}
    sample.dropped = {"box_nms": index % 3} if index % 3 else {}
    return sample


def failed_sample(index: int) -> Sample:
    sample = make_sample(index)
    sample.fail("decode_truncated", "the file ends in the middle of the picture")
    return sample


def make_track(asset_id: str, number: int, object_index: int, start_s: float, seed: int) -> Track:
    """An object of a clip of 8 frames, not seen in frames 2 and 5; two events, the first with a text in two languages."""
    rng, base = np.random.default_rng(seed), round(start_s * FPS)
    frames = []
    for index in range(CLIP_FRAMES):
        _, rle, box = make_mask(rng)
        seen = index not in (2, 5)
        place = object_index, base + index, start_s + index / FPS
        frames.append(TrackFrame(*place, rle if seen else None, box if seen else None, 3.5 if seen else -1.5, 0.9 if seen else 0.1))
    middle = CLIP_FRAMES // 2
    first = Event(start_s, start_s + middle / FPS, base, base + middle - 1)
    first.texts = {"en": Text("It walks to the door.", -0.5, "stop", 6), "zh": Text("它走了", -0.25, "stop", 3)}
    first.history = {"en": None, "zh": None}
    second = Event(start_s + middle / FPS, start_s + CLIP_S, base + middle, base + CLIP_FRAMES - 1)
    second.texts = {"en": Text("It opens the door and", -0.5, "length", 5), "zh": Text("它开门", -0.5, "stop", 3)}
    second.history = {"en": "It walks to the door.", "zh": "它走了"}
    prompts = {base: Prompt(box=frames[0].box_xyxy), base + 4: Prompt(points=[(3.0, 4.0)], labels=[1])}
    return Track(object_index, prompts, frames, None, track_id_of(asset_id, number), [first, second], ["truncated:event_en"])


def make_clip(index: int, clip_index: int, numbers: Iterable[int] = (0, 1), *, is_last: bool = False, num_clips: int = 3) -> Sample:
    """A clip of 2 s of the video with this index, which has `num_clips` of them; numbers: of the objects in it, all handed over."""
    uri, start_s = f"films/{index:05d}.mp4", clip_index * CLIP_S
    asset = Asset(asset_id_of(uri), uri, "video", license="CC0", extra={"day": index})
    clip = Clip(clip_index, start_s, start_s + CLIP_S, CLIP_FRAMES, is_last, fps=FPS, duration_s=num_clips * CLIP_S)
    clip.num_video_frames, clip.next_track = num_clips * CLIP_FRAMES, 5
    sample = Sample(index, asset, width=WIDTH, height=HEIGHT, size_bytes=5000 + index, sha256="cd" * 32, clip=clip)
    for position, number in enumerate(numbers):
        sample.tracks.append(make_track(asset.asset_id, number, position, start_s, seed=100 * index + 10 * clip_index + number))
    if not is_last:
        last = [(track.track_id, track.frames[-1]) for track in sample.tracks]
        clip.handovers = [Handover(name, Prompt(box=seen.box_xyxy, mask=seen.mask, source="handover")) for name, seen in last]
    sample.dropped = {"already_followed": 2} if sample.tracks else {}
    sample.usage = {"prompt_tokens": 500, "cached_tokens": 100, "output_tokens": 40}
    return sample


def failed_clip(index: int, clip_index: int) -> Sample:
    """The clip in which a video could not be decoded any further."""
    sample = make_clip(index, clip_index, is_last=True)
    sample.fail("corrupt", "none of its frames can be decoded")
    sample.clip = Clip(clip_index, clip_index * CLIP_S, clip_index * CLIP_S, 0, is_last=True)
    sample.dropped = {}
    return sample


def mixed_clips() -> list[Sample]:
    """5 videos with 11 clips and 11 tracks: two ok (of 3 clips, the first of the second is empty), one empty, one failed in its second
    clip, and one unfinished after 2 clips.
    """
    return [
        *(make_clip(20, 0), make_clip(20, 1, (0, 1, 2)), make_clip(20, 2, (1,), is_last=True)),
        *(make_clip(21, 0, ()), make_clip(21, 1, (0,), num_clips=3), make_clip(21, 2, (), is_last=True)),
        make_clip(22, 0, (), is_last=True, num_clips=1),
        *(make_clip(23, 0), failed_clip(23, 1)),
        *(make_clip(24, 0, (0,)), make_clip(24, 1, (0,))),
    ]


def fake_job(**values: Any) -> Job:
    return parse_job({"name": "test", "perceive": {"engine": "fake"}, "describe": {"engine": "fake"}, **values})


def asked_job() -> Job:
    """A job that asks for the texts that the samples here have."""
    return fake_job(describe={"engine": "fake", "tasks": ["label", "caption"], "languages": ["en", "zh"]})


def write_dataset(root: Path | Store, parts: Iterable[list[Sample]], clips: Iterable[Sample] = ()) -> Store:
    """A finished run: every list of samples is one part; then the clips, whose videos end up in one part of `assets`, failed ones apart."""
    parts, statuses = [list(part) for part in parts], Counter[str]()
    job, store = asked_job(), open_store(str(root)) if isinstance(root, Path) else root
    record = RunRecord.new(job)
    with store.lease({"run_id": record.run_id}):
        prepare_output(store, job)
        sweep(store)
        record.write(store, status="running")
        for samples in parts:
            publish_part(store, stage_part(store, record.run_id, samples, WriteOptions(), region_row))
            statuses.update(sample.status for sample in samples)
        _, progress = resume_videos(store, WriteOptions())
        for sample in clips:
            progress.publish(stage_clip(store, record.run_id, sample, WriteOptions(), track_row))
        finished = progress.finished()
        if finished:
            publish_video_assets(store, [video.row for video in finished], WriteOptions())
            statuses.update(str(video.row["status"]) for video in finished)
        summary = {"seconds": 2.0, "regions": 10, "usage": {"output_tokens": 50}, "statuses": dict(statuses)}
        record.write(store, status="finished", summary=summary)
    return store


def mixed_parts() -> list[list[Sample]]:
    """9 assets in 3 parts: 7 ok with 2 or 3 regions each, 1 empty, 1 failed."""
    first = [make_sample(0), make_sample(1, num_regions=0), failed_sample(2)]
    return [first, [make_sample(i, num_regions=3) for i in (3, 4, 5)], [make_sample(i) for i in (6, 7, 8)]]


def start_python(code: str, *args: object) -> subprocess.Popen[str]:
    """Run code in another process, with the same imports as the tests; stdout is a pipe."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    """Read the process's output up to a line that is `word`."""
    seen = []
    for line in process.stdout or ():
        if line.strip() == word:
            return
        seen.append(line)
    raise AssertionError(f"the process ended without saying {word!r}:\n{''.join(seen)}")


def kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait(300)
