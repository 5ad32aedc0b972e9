"""What a large dataset costs: finding out what is done (the start of every run), and `datagen check`.

    python benchmarks/dataset_size.py --assets 1000000 --regions-every 100
    python benchmarks/dataset_size.py --assets 4800 --assets-per-part 16 --s3 --latency-ms 30

Writes a dataset of that many assets through the product's own write step into a temporary folder, or into a bucket of a local S3 server
(moto) whose answers come later by a latency; every n-th asset has 8 regions.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from s3_server import CREDENTIALS, moto_server, new_bucket

from datagen.assemble import region_row
from datagen.check import check_dataset
from datagen.ids import asset_id_of
from datagen.job import DescribeOptions, Job, S3Options, WriteOptions
from datagen.records import Asset, Prompt, Region, Sample, Text
from datagen.s3 import client
from datagen.write import RunRecord, Store, done_assets, open_store, prepare_output, publish_part, stage_part

WIDTH, HEIGHT, REGIONS = 640, 480, 8


def make_regions() -> list[Region]:
    """Discs, so that their run lengths are about as many as those of real objects."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    regions = []
    for index in range(REGIONS):
        radius = 40 + 20 * index
        mask = ((xs - 320) ** 2 + (ys - 240) ** 2 < radius**2).astype(np.uint8)
        rle = coco_mask.encode(np.asfortranarray(mask))
        x, y, w, h = coco_mask.toBbox(rle)
        text = {("label", "en"): Text("disc", -0.1, "stop", 1), ("caption", "en"): Text("A grey disc.", -0.2, "stop", 4)}
        regions.append(
            Region(
                region_index=index,
                prompt=Prompt(box=(x, y, x + w, y + h)),
                mask={"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()},
                box_xyxy=(x, y, x + w, y + h),
                area_px=int(mask.sum()),
                predicted_iou=0.9,
                stability=0.9,
                object_score=4.0,
                texts=text,
            )
        )
    return regions


def write_dataset(store: Store, num_assets: int, regions_every: int, assets_per_part: int = WriteOptions().assets_per_part) -> None:
    """Assets `0.jpg`, `1.jpg`, ..."""
    options, regions = WriteOptions(assets_per_part=assets_per_part), make_regions()
    job = Job(describe=DescribeOptions(tasks=("label", "caption")))
    record = RunRecord.new(job)
    prepare_output(store, job)
    record.write(store, status="finished")
    for start in range(0, num_assets, options.assets_per_part):
        samples = []
        for index in range(start, min(start + options.assets_per_part, num_assets)):
            sample = Sample(index, Asset(asset_id_of(f"{index}.jpg"), f"{index}.jpg"), width=WIDTH, height=HEIGHT)
            sample.size_bytes, sample.sha256 = 100_000, "ab" * 32
            if index % regions_every == 0:
                sample.regions = regions
            samples.append(sample)
        publish_part(store, stage_part(store, record.run_id, samples, options, region_row))


@contextmanager
def bucket() -> Iterator[str]:
    """A prefix in a new bucket of a server that lives as long."""
    with moto_server() as address:
        os.environ |= CREDENTIALS | {"AWS_ENDPOINT_URL": address}
        yield f"s3://{new_bucket(S3Options())}/corpus"


def add_latency(seconds: float) -> None:
    client(S3Options()).meta.events.register("before-send.s3", lambda **_: time.sleep(seconds))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=100_000)
    parser.add_argument("--regions-every", type=int, default=10, help="one asset in so many has 8 regions")
    parser.add_argument("--assets-per-part", type=int, default=WriteOptions().assets_per_part)
    parser.add_argument("--s3", action="store_true", help="in a bucket of a local server")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of every request to it while reading, as of a server far away")
    arguments = parser.parse_args()
    with bucket() if arguments.s3 else tempfile.TemporaryDirectory() as place:
        store = open_store(place)
        started = time.monotonic()
        write_dataset(store, arguments.assets, arguments.regions_every, arguments.assets_per_part)
        print(f"write        {time.monotonic() - started:8.1f} s   {arguments.assets / (time.monotonic() - started):10,.0f} assets/s")
        if arguments.s3:
            add_latency(arguments.latency_ms / 1000)
        before, started = peak_mib(), time.monotonic()
        done = done_assets(store)
        print(f"done_assets  {time.monotonic() - started:8.1f} s   {len(done):,} assets, peak memory +{peak_mib() - before:.0f} MiB")
        before, started = peak_mib(), time.monotonic()
        report = check_dataset(place)
        seconds = time.monotonic() - started
        found = "sound" if report.ok else str(dict(report.by_code))
        rate = f"{report.num_regions:,} regions ({report.num_regions / seconds:,.0f}/s)"
        parts = f"{report.num_parts:,} parts ({report.num_parts / seconds:,.0f}/s)"
        print(f"check        {seconds:8.1f} s   {parts}, {rate}, peak memory +{peak_mib() - before:.0f} MiB, {found}")


if __name__ == "__main__":
    main()
