"""What the engine itself costs: samples/s and driver memory with fakes for the models, at growing numbers of assets.

    python benchmarks/engine_overhead.py --counts 1000 10000 100000

Every asset is really listed, decoded (a 1 kB PNG), passed through the four steps on Ray Data, and written to Parquet; only SAM 2,
the perceiver and the language model are replaced. Time should grow in proportion to the assets, the driver's memory not at all.

Starting up is in "streaming s" and costs the same for all; "late/early" is therefore taken within the run, from the rows' own
`finished_at`: the time that an asset of the last half takes, over that of one between the first tenth and the half.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

JOB = """
version: 1
name: overhead
perceive: {engine: fake, batch_size: 64}
describe: {engine: fake}
write: {assets_per_part: 1000}
run: {object_store_gib: 0.5}
"""


def make_input(folder: Path, count: int) -> Path:
    """A manifest of `count` assets over one small PNG."""
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 48), (40, 90, 200)).save(folder / "a.png")
    manifest = folder / "manifest.jsonl"
    with manifest.open("w") as file:
        for index in range(count):
            file.write(json.dumps({"uri": "a.png", "asset_id": f"{index:08x}", "box": [4, 4, 40, 30]}) + "\n")
    return manifest


@dataclass(frozen=True)
class Row:
    """One run. streaming_s: from the first decode to the last write. driver_mb: the driver's own memory at its peak."""

    assets: int
    wall_s: float
    streaming_s: float
    late_over_early: str
    driver_mb: float


def measure(count: int, folder: Path) -> Row:
    """Run the job in a process of its own and watch its memory."""
    job = folder / "job.yaml"
    job.write_text(JOB)
    manifest = make_input(folder / f"in-{count}", count)
    command = [sys.executable, "-m", "datagen", "run", str(job), "-i", str(manifest), "-o", str(folder / f"out-{count}"), "--json"]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = common.peak_memory(process)
    out, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"the run failed with exit code {process.returncode}; its log is in {folder}")
    summary = json.loads(out)
    if summary["statuses"] != {"ok": count}:
        raise SystemExit(f"not every asset is ok: {summary['statuses']}")
    spans = summary["spans"].values()
    streaming = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return Row(count, time.monotonic() - started, streaming, late_over_early(folder / f"out-{count}" / "assets"), peak / 1e6)


def late_over_early(assets: Path) -> str:
    """Time per asset in the last half of the table, over that between the first tenth and the half, in the order of finishing.

    A dash where these finished at one moment: in one part.
    """
    finished = np.sort(pq.read_table(assets, columns=["finished_at"])["finished_at"].to_numpy().astype("datetime64[us]").astype(np.int64))
    tenth, half, last = (finished[min(int(share * len(finished)), len(finished) - 1)] for share in (0.1, 0.5, 1.0))
    return f"{(last - half) / 0.5 / ((half - tenth) / 0.4):.2f}" if half > tenth else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    arguments = parser.parse_args()
    print(common.machine())
    print(f"{'assets':>8} {'wall s':>8} {'streaming s':>12} {'samples/s':>10} {'late/early':>11} {'driver MB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for count in sorted(arguments.counts):
            row = measure(count, Path(folder))
            rate = count / row.streaming_s
            print(
                f"{count:>8} {row.wall_s:>8.1f} {row.streaming_s:>12.1f} {rate:>10.1f} {row.late_over_early:>11} {row.driver_mb:>10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
