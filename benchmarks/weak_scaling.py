"""Weak scaling: samples/s on 1, 2, 4, 8 nodes with the same work per node, over as many times that of the first.

    python benchmarks/weak_scaling.py --nodes 1 2 4 8

Nodes are raylets on this machine with CPUs that are not there; models are fakes that sleep, so that what is measured is what datagen, Ray
Data and the driver that commits every part cost as the cluster grows. All nodes share this machine's cores: the sleep per batch must be
long against the work per batch (about 0.1 s of CPU on all processes together), or the cores are what is measured. Samples are held back
until every worker is up, so starting them does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import common
from engine_overhead import make_input

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "chaos"))

from raylets import Raylets

from datagen.job import Job, parse_job
from datagen.run import run_job
from datagen.run.console import noise_to
from datagen.run.summary import RunSummary


def job_of(folder: Path, address: str, nodes: int, batch: int, sleep_s: float) -> Job:
    """One worker of each model per node."""
    one_each = {"min_workers": nodes, "max_workers": nodes}
    return parse_job(
        {
            "name": "weak-scaling",
            "source": {"input": str(folder / "in" / "manifest.jsonl")},
            "output": str(folder / "out"),
            "decode": {"pool": {"num_cpus": 0.5, **one_each}},
            "perceive": {"engine": "fake", "batch_size": batch, "fake_delay_s": sleep_s, "pool": {"num_cpus": 1, **one_each}},
            "describe": {"engine": "fake", "fake_delay_s": sleep_s / 2, "pool": {"num_cpus": 1, **one_each}},
            "write": {"assets_per_part": 4 * batch, "pool": {"num_cpus": 0.25}},
            "run": {"ray_address": address},
        }
    )


def measure(nodes: int, batches: int, batch: int, sleep_s: float) -> float:
    """Samples/s from the first batch in a model's hands to the last part staged."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_input(folder / "in", nodes * batches * batch)
        ready = folder / "ready"
        os.environ["DATAGEN_FAULTS"] = json.dumps({"worker.decode": {"wait_for": str(ready)}})

        @contextmanager
        def screen(log: Path) -> Iterator[Callable[[RunSummary], None]]:
            def look(summary: RunSummary) -> None:
                up = [summary.counters.get(f"{step}_workers", 0) for step in ("decode", "perceive", "describe")]
                if min(up) >= nodes:
                    ready.touch()

            with noise_to(log):
                yield look

        with Raylets(nodes, num_cpus=4) as raylets:
            summary = run_job(job_of(folder, raylets.address, nodes, batch, sleep_s), screen=screen)
        assert summary.statuses == {"ok": nodes * batches * batch}
        return summary.statuses["ok"] / (max(end for _, end in summary.spans.values()) - summary.spans["perceive"][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--batches", type=int, default=16, help="per node")
    parser.add_argument("--batch", type=int, default=8, help="samples per batch")
    parser.add_argument("--sleep-s", type=float, default=4.0, help="of the perceive worker for each batch; describe sleeps half of it")
    arguments = parser.parse_args()
    print(common.machine())
    print(f"{arguments.batches} batches of {arguments.batch} samples per node, {arguments.sleep_s:g} s of sleep each")
    print(f"{'nodes':>5} {'samples/s':>10} {'over n x the first':>19}", flush=True)
    first = None
    for nodes in arguments.nodes:
        rate = measure(nodes, arguments.batches, arguments.batch, arguments.sleep_s)
        first = first or rate / nodes
        print(f"{nodes:>5} {rate:>10.2f} {rate / (nodes * first):>19.2f}", flush=True)


if __name__ == "__main__":
    main()
