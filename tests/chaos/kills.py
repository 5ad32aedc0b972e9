"""Runs `datagen run` in a process of its own and kills it, or one of its workers, with SIGKILL."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from PIL import Image

WORKERS = {
    "decode": "DecodeWorker",
    "perceive": "PerceiveWorker",
    "clips": "ClipsWorker",
    "describe": "DescribeWorker",
    "write": "stage_table",
}

SLOW_WRITES = {"write": {"delay_s": 0.01}}  # per asset: a write task must live long enough to be hit


def make_input(folder: Path, count: int) -> Path:
    """A manifest of `count` assets over a few real PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for shade in range(4):
        Image.new("RGB", (48, 32), (60 * shade, 90, 200)).save(folder / f"{shade}.png")
    manifest = folder / "manifest.jsonl"
    rows = ({"uri": f"{i % 4}.png", "asset_id": f"{i:08x}", "box": [4, 4, 30, 20]} for i in range(count))
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    return manifest


def expected_ids(count: int) -> set[str]:
    """The ids of `make_input`."""
    return {f"{i:08x}" for i in range(count)}


class Run:
    """One `datagen run` process. hosts: gives the processes below which its workers run where Ray is not its own: the raylets."""

    def __init__(
        self,
        job: Path,
        manifest: Path,
        output: Path | str,
        *options: str,
        faults: dict[str, object] | None = None,
        hosts: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
        if faults:
            environment["DATAGEN_FAULTS"] = json.dumps(faults)
        command = [sys.executable, "-m", "datagen", "run", str(job), "--input", str(manifest), "--output", str(output), "--json", *options]
        # A session of its own, as a terminal gives it one: signals to its group reach only this run.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, start_new_session=True
        )
        self.output = Path(output)
        self._hosts = hosts

    def finish(self, timeout: float = 500) -> dict[str, object]:
        """Wait for a run that should succeed; its summary."""
        out, err = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, f"exit {self.process.returncode}\n{err[-4000:]}\n{self._log()[-4000:]}"
        return json.loads(out)

    def _log(self) -> str:
        logs = sorted((self.output / "_datagen" / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
        return logs[-1].read_text(errors="replace") if logs else ""

    def wait_for_parts(self, count: int, timeout: float = 300) -> None:
        """Wait until the dataset has at least `count` committed parts, or the run ended."""
        deadline = time.monotonic() + timeout
        while len(parts(self.output)) < count and self.process.poll() is None:
            assert time.monotonic() < deadline, f"no progress\n{self._log()[-4000:]}"
            time.sleep(0.05)

    def wait_for_workers(self, *steps: str, timeout: float = 300) -> None:
        """Wait until a worker of each of these steps has been started."""
        deadline = time.monotonic() + timeout
        while not all(map(self.workers, steps)):
            assert time.monotonic() < deadline, f"no workers\n{self._log()[-4000:]}"
            time.sleep(0.1)

    def signal(self, number: signal.Signals, *, whole_group: bool) -> None:
        """Send a signal to the driver, or to every process of its group."""
        (os.killpg if whole_group else os.kill)(self.process.pid, number)

    def kill_driver(self) -> None:
        """SIGKILL the driver; Ray's own processes are left to notice."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def workers(self, step: str) -> list[psutil.Process]:
        """The workers of a step that are alive at this moment."""
        family = [process for pid in (self.process.pid, *self._hosts()) for process in descendants(pid)]
        return [process for process in family if WORKERS[step] in title(process)]

    def kill_worker(self, step: str, rng: random.Random) -> bool:
        """SIGKILL one worker of a step. False when none is alive at this moment."""
        victims = self.workers(step)
        if not victims:
            return False
        try:
            rng.choice(victims).kill()
        except psutil.NoSuchProcess:
            return False
        return True


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below `pid`."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process], timeout_s: float) -> list[str]:
    """Wait until these processes have ended; the titles of those that have not."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    return [title(process) for process in alive]


def title(process: psutil.Process) -> str:
    """The process title, where Ray writes what the worker runs."""
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def parts(output: Path) -> list[Path]:
    """Committed parts."""
    return sorted((output / "assets").glob("part-*.parquet"))


def batter(job: Path, manifest: Path, output: Path, rng: random.Random, *, legs: int, kills_per_leg: int) -> Counter[str]:
    """Start runs; in each, kill workers at random moments, then the driver; at last let one finish. Counts the kills by step.

    Every second leg commits in chunks of another size, so that parts are named differently after a crash.
    """
    kills: Counter[str] = Counter()
    for leg in range(legs):
        run = Run(job, manifest, output, "--set", f"write.assets_per_part={(20, 7)[leg % 2]}", faults=SLOW_WRITES)
        run.wait_for_parts(len(parts(output)) + 1)
        wanted = rng.choices(("perceive", "describe", "write"), k=kills_per_leg - 1)
        while wanted and run.process.poll() is None:
            time.sleep(rng.uniform(0.0, 0.4))
            if run.kill_worker(wanted[0], rng):
                kills[wanted.pop(0)] += 1
        time.sleep(rng.uniform(0.0, 0.8))
        kills["driver"] += run.process.poll() is None
        run.kill_driver()
    Run(job, manifest, output).finish()
    return kills
