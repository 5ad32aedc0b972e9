"""Samples and small datasets for tests, made through the public door of datagen.write."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from datagen.assemble import region_row
from datagen.job import Job, WriteOptions, parse_job
from datagen.records import Asset, Prompt, Region, Sample, Text, asset_id_of
from datagen.write import RunRecord, Store, open_store, prepare_output, publish_part, stage_part, sweep

WIDTH, HEIGHT = 40, 30
ROOT = Path(__file__).resolve().parents[1]


def make_region(index: int, rng: np.random.Generator, width: int = WIDTH, height: int = HEIGHT) -> Region:
    mask = np.zeros((height, width), dtype=np.uint8)
    x, y = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8))
    mask[y : y + 8, x : x + 6] = rng.random((8, 6)) < 0.7
    mask[y, x] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    ys, xs = np.nonzero(mask)
    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    return Region(
        region_index=index,
        prompt=Prompt(box=box, points=[(x + 1.0, y + 1.0)], labels=[1]),
        mask={"size": [height, width], "counts": rle["counts"].decode()},
        box_xyxy=box,
        area_px=int(mask.sum()),
        predicted_iou=0.9,
        stability=0.95,
        object_score=3.5,
        texts={
            ("label", "en"): Text(f"thing {index}", -0.25, "stop", 3),
            ("caption", "en"): Text("A thing on a table.", -0.5, "length", 6),
            ("label", "zh"): Text("东西", -0.75, "stop", 2),
        },
        flags=["truncated_caption_en"],
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


def fake_job(**values: Any) -> Job:
    return parse_job({"name": "test", "perceive": {"engine": "fake"}, "describe": {"engine": "fake"}, **values})


def write_dataset(root: Path | Store, parts: Iterable[list[Sample]]) -> Store:
    """A finished run: every list of samples is one part."""
    job, store = fake_job(), open_store(str(root)) if isinstance(root, Path) else root
    record = RunRecord.new(job)
    with store.lease({"run_id": record.run_id}):
        prepare_output(store, job)
        sweep(store)
        record.write(store, status="running")
        for samples in parts:
            publish_part(store, stage_part(store, record.run_id, samples, WriteOptions(), region_row))
        record.write(
            store, status="finished", summary={"seconds": 2.0, "regions": 10, "usage": {"output_tokens": 50}, "statuses": {"ok": 4}}
        )
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
    process.wait(30)
