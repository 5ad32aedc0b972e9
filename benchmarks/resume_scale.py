"""What going on with a large job costs: time from the command to the first sample in a worker's hands, and the driver's memory.

    python benchmarks/resume_scale.py --assets 1000000 --done 0.9

Writes a manifest of that many assets and a dataset in which most of them are done, then starts `datagen run` over both, fakes for the
models. Without `--to-the-end` it is ended once the first new part is committed; with it the driver's memory is watched until the job is
done. Making the input does not count. The memory per listed asset is the difference to the same over a tenth of the assets.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import common
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from dataset_size import write_dataset
from PIL import Image

from datagen.ids import asset_id_of
from datagen.job import WriteOptions
from datagen.write import open_store
from datagen.write.parts import part_id_of, part_path
from datagen.write.seals import parquet_bytes

JOB = """
version: 1
name: resume
perceive: {engine: fake, batch_size: 64}
describe: {engine: fake}
run: {object_store_gib: 0.5, grace_s: 5}
"""


def make_manifest(folder: Path, count: int) -> Path:
    """Every row names the same small picture; ids are those of `make_done`."""
    Image.new("RGB", (64, 48), (40, 90, 200)).save(folder / "a.png")
    manifest = folder / "manifest.jsonl"
    with manifest.open("w") as file:
        for index in range(count):
            file.write(json.dumps({"uri": "a.png", "asset_id": asset_id_of(f"{index}.jpg"), "box": [4, 4, 40, 30]}) + "\n")
    return manifest


def make_done(output: Path, count: int, per_part: int) -> None:
    """The parts of the first `count` assets: one that the product wrote, and copies of it with other ids, which is much quicker."""
    store, options = open_store(str(output)), WriteOptions(assets_per_part=per_part)
    write_dataset(store, per_part, 10**9, per_part)
    [first] = (output / "assets").iterdir()
    table = pq.read_table(first)
    for path in output.glob("*/part-*"):
        path.unlink()
    for start in range(0, count - per_part + 1, per_part):
        ids = [asset_id_of(f"{index}.jpg") for index in range(start, start + per_part)]
        part = part_id_of(ids)
        columns = {"asset_id": ids, "part_id": [part] * per_part, "num_regions": [0] * per_part, "status": ["empty"] * per_part}
        for name, values in columns.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))
        (output / part_path("assets", part)).write_bytes(parquet_bytes(table, options))


@dataclass(frozen=True)
class Resumed:
    """first_work_s: until the first sample is begun; first_part_s: until the first part is committed; driver_mb: at the peak.

    driver_cpu_s: of the driver's own processor time until the first part: what the times come to when the machine is the driver's alone.
    """

    listed: int
    left: int
    first_work_s: float
    first_part_s: float
    driver_cpu_s: float
    driver_mb: float


def resume(folder: Path, manifest: Path, output: Path, limit_s: float, to_the_end: bool = False) -> Resumed:
    """Run the job in a process of its own until a part is there, or to its end."""
    job = folder / "job.yaml"
    job.write_text(JOB)
    parts = {path.name for path in (output / "assets").iterdir()}
    command = [sys.executable, "-m", "datagen", "run", str(job), "-i", str(manifest), "-o", str(output), "--json"]
    started, began = time.time(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak: list[int] = []
    watch = threading.Thread(target=lambda: peak.append(common.peak_memory(process)))
    watch.start()
    driver, cpu_s = psutil.Process(process.pid), 0.0
    while process.poll() is None and {path.name for path in (output / "assets").iterdir()} <= parts:
        if time.monotonic() - began > limit_s:
            process.kill()
            raise SystemExit(f"no part after {limit_s:.0f} s")
        cpu_s = sum(driver.cpu_times()[:2])
        time.sleep(0.1)
    first_part_s = time.monotonic() - began
    if not to_the_end:
        process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    watch.join()
    summary = json.loads(out)
    first_work_s = min(begin for begin, _ in summary["spans"].values()) - started
    return Resumed(summary["listed"], summary["todo"], first_work_s, first_part_s, cpu_s, peak[0] / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=1_000_000)
    parser.add_argument("--done", type=float, default=0.9, help="share of the assets that is done")
    parser.add_argument("--assets-per-part", type=int, default=256)
    parser.add_argument("--limit-s", type=float, default=1800.0, help="give up after so long")
    parser.add_argument("--to-the-end", action="store_true", help="let the job finish")
    arguments = parser.parse_args()
    print(common.machine(), flush=True)
    few = prepare_and_resume(arguments, arguments.assets // 10)
    found = prepare_and_resume(arguments, arguments.assets)
    per_asset = (found.driver_mb - few.driver_mb) * 1e6 / (found.listed - few.listed)
    print(f"per asset    {per_asset:8.0f} bytes of the driver's memory, listed or done")


def prepare_and_resume(arguments: argparse.Namespace, assets: int) -> Resumed:
    """Make the input, run over it, print what was found."""
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name), Path(name) / "out"
        manifest = make_manifest(folder, assets)
        make_done(output, round(arguments.done * assets), arguments.assets_per_part)
        found = resume(folder, manifest, output, arguments.limit_s, arguments.to_the_end)
        print(f"{found.listed:,} listed, {found.left:,} left")
        print(f"first work   {found.first_work_s:8.1f} s   from the command")
        print(f"first part   {found.first_part_s:8.1f} s   from the command, with the start of Ray and its workers")
        print(f"driver       {found.driver_cpu_s:8.1f} s   of processor time until then; {found.driver_mb:.0f} MB at the peak", flush=True)
        return found


if __name__ == "__main__":
    main()
