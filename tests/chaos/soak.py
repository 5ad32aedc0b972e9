"""Jobs under fire for as long as you like: whatever is killed, nothing is lost and nothing is there twice.

    python tests/chaos/soak.py --minutes 30

Corpus after corpus of images and short videos, one in twenty of them bad, is done by `datagen run` with fakes for the models; in turns
on a Ray of three raylets and on the driver's own, into a folder and into a bucket (moto behind a proxy that is busy, breaks and resets).
Drivers, workers of every step and raylets get SIGKILL at random moments, and drivers are started again. When a corpus is finished,
`datagen check` and a count of our own must find every asset once and as it should be, and nothing left lying about. Exit code 1, and
the folder is kept, when they do not. Time in which this process does not run itself (SIGSTOP) does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from audit import count_dataset
from kills import WORKERS, Run
from mixed_corpus import FAULTS, OPTIONS, Corpus, Pool
from pyarrow import fs
from raylets import Raylets
from s3_server import CREDENTIALS, FaultyProxy, moto_server, new_bucket, often, options_of

from datagen.check import check_dataset
from datagen.s3 import client
from datagen.write import open_store

IMAGES, VIDEOS = 150, 10
LEGS = 4  # drivers killed per corpus, at most
MOST_KILLS = 4  # of workers and raylets, per driver
TURNS = (("raylets", "local"), ("raylets", "s3"), ("embedded", "local"), ("embedded", "s3"))
S3_FAULT_SHARE = 0.05
FINISH_S = 420.0
RESUMABLE = 3  # exit code: the cluster or a bucket broke, a rerun goes on


class Clock:
    """Seconds in which this process ran."""

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def now(self) -> float:
        """Seconds since the start; of the time since the last call at most five count."""
        now = time.monotonic()
        self._seconds, self._last = self._seconds + min(now - self._last, 5.0), now
        return self._seconds

    def waits(self, seconds: float, step_s: float = 0.05) -> Iterator[None]:
        """Again and again until so many seconds are over."""
        until = self.now() + seconds
        while self.now() < until:
            yield
            time.sleep(step_s)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        for _ in self.waits(seconds):
            pass


@dataclass
class Tally:
    """What happened. kills: by what was killed. resumed: runs that ended by themselves with exit code 3, and were started again.

    retries: samples that another worker took up after theirs was lost. proxy: faults of the connection to the bucket, by kind.
    """

    seed: int
    seconds: float = 0.0
    rounds: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    resumed: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    crashes: int = 0
    proxy: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    losses: int = 0
    duplicates: int = 0
    violations: list[str] = field(default_factory=list)
    folder: str | None = None

    def text(self) -> str:
        """For a person."""
        listed = {
            "rounds": _named(self.rounds),
            "samples": f"{self.samples} ({_named(self.statuses)})",
            "runs": f"{self.runs}, of which {self.resumed} ended with exit code {RESUMABLE} and were started again",
            "kills": f"{sum(self.kills.values())} ({_named(self.kills)})",
            "retries": f"{self.retries} samples taken up by another worker, {self.crashes} crashes counted against an asset",
            "bucket": f"{sum(self.proxy.values())} faults of the connection ({_named(self.proxy)})",
            "losses": self.losses,
            "duplicates": self.duplicates,
            "violations": "".join(f"\n  {violation}" for violation in self.violations[:20]) or "none",
            "seed": self.seed,
        }
        lines = [f"{name:<12}{value}" for name, value in listed.items()] + ([f"kept in     {self.folder}"] if self.folder else [])
        return f"soak of {self.seconds / 60:.1f} minutes\n" + "\n".join(lines)


def _named(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


class Broken(Exception):
    """A promise was broken; the message says which."""


@dataclass
class Round:
    """One corpus, from its first run to its proof. filesystem, root: the output as pyarrow finds it."""

    corpus: Corpus
    job: Path
    output: str
    retry_failed: int
    filesystem: fs.FileSystem
    root: str
    raylets: Raylets | None
    tally: Tally
    clock: Clock
    is_over: Callable[[], bool]
    rng: random.Random

    def fight(self) -> None:
        """Kill drivers and what belongs to them until the corpus is done, the fight is over, or LEGS drivers are dead; let it finish."""
        for _ in range(LEGS):
            if self.is_over():
                break
            run = self._start()
            self._harass(run)
            if run.process.poll() is not None:
                if self._has_ended_well(run):
                    break
                continue
            self.tally.kills["driver"] += 1
            run.kill_driver()
            self._mend()
        self._finish()

    def prove(self) -> None:
        """The corpus is there, whole and once, and a further run finds nothing to do. Raises Broken."""
        report = check_dataset(self.output, expected=self.corpus.fates)
        count = count_dataset(self.filesystem, self.root, self.corpus.fates)
        self.tally.losses += count.lost
        self.tally.duplicates += count.doubled
        self.tally.samples += sum(count.statuses.values())
        self.tally.statuses.update(count.statuses)
        problems = [f"check: {violation}" for violation in report.violations] + [f"count: {problem}" for problem in count.wrong]
        if report.num_unfinished_videos:
            problems.append(f"check: {report.num_unfinished_videos} videos are not finished")
        if problems or not count.ok:
            raise Broken("\n  ".join(problems))
        for _ in range(self.retry_failed):  # what failed in the last run is tried again in so many more
            self._finish()
        summary = self._finish()
        if summary["todo"]:
            raise Broken(f"a run after the last found {summary['todo']} assets to do")

    # --- the parts of a fight ----------------------------------------------------------------------------------------------------

    def _harass(self, run: Run) -> None:
        """SIGKILL some of a run's workers and raylets at random moments. Now and then nothing at all, so that its start is hit, too."""
        if self.rng.random() < 0.25:
            self.clock.sleep(self.rng.uniform(0.0, 8.0))
            return
        done = self._num_parts()
        for _ in self.clock.waits(60):
            if run.process.poll() is not None or self.is_over() or self._num_parts() > done:
                break
        for _ in range(self.rng.randint(1, MOST_KILLS)):
            self.clock.sleep(self.rng.uniform(0.0, 0.8))
            for _ in self.clock.waits(10):
                if run.process.poll() is not None or self.is_over() or self._kill_something(run):
                    break
        self.clock.sleep(self.rng.uniform(0.0, 1.5))

    def _kill_something(self, run: Run) -> bool:
        """One kill, rather of what has been killed least so far; the first is of a raylet, where there are some."""
        victims = [*WORKERS, *(["raylet"] if self.raylets else [])]
        if self.raylets and not self.tally.kills["raylet"]:
            victims = ["raylet"]
        victim = self.rng.choices(victims, [1 / (1 + self.tally.kills[name]) ** 2 for name in victims])[0]
        if victim == "raylet" and self.raylets:
            self._mend()
            hit = self.raylets.kill(self.rng)
        else:
            hit = run.kill_worker(victim, self.rng)
        self.tally.kills[victim] += hit
        return hit

    def _mend(self) -> None:
        if self.raylets:
            self.raylets.mend()

    def _start(self) -> Run:
        self.tally.runs += 1
        options = ("--set", f"run.retry_failed={self.retry_failed}", "--set", f"write.assets_per_part={self.rng.choice((5, 12, 20))}")
        hosts: Callable[[], list[int]] = self.raylets.pids if self.raylets else list
        return Run(self.job, self.corpus.manifest, self.output, *options, hosts=hosts)

    def _finish(self) -> dict[str, Any]:
        """Run to the end, without kills. Raises Broken when it does not get there."""
        for _ in range(3):
            self._mend()
            run = self._start()
            for _ in self.clock.waits(FINISH_S, 0.2):
                if run.process.poll() is not None:
                    break
            else:
                run.kill_driver()
                raise Broken(f"a run that nobody disturbed was not done after {FINISH_S:.0f} s")
            summary = self._has_ended_well(run)
            if summary is not None:
                return summary
        raise Broken("three runs that nobody disturbed ended with exit code 3")

    def _has_ended_well(self, run: Run) -> dict[str, Any] | None:
        """The summary of a run that ended with 0; None for exit code 3. Raises Broken for any other."""
        out, err = run.process.communicate()
        if run.process.returncode == 0:
            return dict(json.loads(out))
        if run.process.returncode != RESUMABLE:
            raise Broken(f"a run ended with exit code {run.process.returncode}: {err[-2000:]}")
        self.tally.resumed += 1
        return None

    def _num_parts(self) -> int:
        store = open_store(self.output)
        return sum(len(list(store.list(table))) for table in ("assets", "clips"))


@contextmanager
def bucket_server(rng: random.Random) -> Iterator[FaultyProxy]:
    """A proxy that misbehaves before a moto server, which AWS_ENDPOINT_URL names."""
    os.environ |= CREDENTIALS | {"AWS_EC2_METADATA_DISABLED": "true"}
    with moto_server() as address, FaultyProxy(address, often(rng, S3_FAULT_SHARE)) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = address
        yield proxy


class Soak:
    """Round after round on one set of raylets and one bucket server; `tally` has what came of them."""

    def __init__(self, folder: Path, minutes: float, kills: int, seed: int, proxy: FaultyProxy, raylets: Raylets) -> None:
        self.tally = Tally(seed)
        self._folder, self._proxy, self._raylets = folder, proxy, raylets
        self._rng, self._clock = random.Random(seed), Clock()
        self._pool = Pool.make(folder / "in")
        self._deadline, self._kills = self._clock.now() + 60 * minutes, kills

    def run(self, say: Callable[[str], None]) -> None:
        """Until the time is up and enough was killed, the last round to its end, or until a promise is broken."""
        number = 0
        while not self._is_over() and not self.tally.violations:
            ray, place = TURNS[number % len(TURNS)]
            battle = self._next_round(f"round-{number}", ray, place, with_slow=number % 3 == 2)
            self.tally.rounds[f"{ray}/{place}"] += 1
            try:
                battle.fight()
                battle.prove()
                self._refuse_unfinished_uploads(battle)
            except Broken as error:
                self.tally.violations.append(f"round-{number} ({ray}, {place}): {error}")
            self.tally.seconds = self._clock.now()
            _count_events(self.tally, self._folder)
            say(f"{self.tally.seconds:6.0f} s  round {number} ({ray}, {place}); kills so far: {_named(self.tally.kills)}")
            number += 1
        self.tally.proxy.update(self._proxy.done)

    def _is_over(self) -> bool:
        return self._clock.now() > self._deadline and self.tally.kills.total() >= self._kills

    def _next_round(self, name: str, ray: str, place: str, *, with_slow: bool) -> Round:
        corpus = self._pool.draw(name, IMAGES, VIDEOS, self._rng, with_slow=with_slow)
        raylets = self._raylets if ray == "raylets" else None
        output, root, filesystem, s3 = str(self._folder / name), str(self._folder / name), fs.LocalFileSystem(), {}
        if place == "s3":
            bucket = new_bucket(options_of(os.environ["AWS_ENDPOINT_URL"]))
            output, root, filesystem = f"s3://{bucket}/corpus", f"{bucket}/corpus", _s3_filesystem()
            s3 = {"s3": options_of(self._proxy.address).model_dump()}
        job = self._folder / f"{name}.json"
        job.write_text(json.dumps(_job(raylets) | s3))
        return Round(
            corpus,
            job,
            output,
            self._rng.choice((0, 1)),
            filesystem,
            root,
            raylets,
            self.tally,
            self._clock,
            self._is_over,
            random.Random(self._rng.random()),
        )

    def _refuse_unfinished_uploads(self, battle: Round) -> None:
        if battle.output.startswith("s3://"):
            s3 = client(options_of(os.environ["AWS_ENDPOINT_URL"]))
            if s3.list_multipart_uploads(Bucket=battle.root.split("/")[0]).get("Uploads"):
                raise Broken(f"{battle.output} has unfinished multipart uploads")


def soak(minutes: float, kills: int, seed: int, say: Callable[[str], None] = lambda line: None) -> Tally:
    """Fight for so many minutes and kills, and longer to finish the last corpus. The folder is kept when a promise was broken."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ |= {"DATAGEN_FAULTS": json.dumps(FAULTS), "DATAGEN_CACHE": str(folder / "cache")}
    with bucket_server(random.Random(seed + 1)) as proxy, Raylets() as raylets:
        fight = Soak(folder, minutes, kills, seed, proxy, raylets)
        fight.run(say)
    if fight.tally.violations:
        fight.tally.folder = str(folder)
    else:
        shutil.rmtree(folder)
    return fight.tally


def _job(raylets: Raylets | None) -> dict[str, Any]:
    # Tried more often than chance hits one asset; a last run over the bad files alone is no failure of the soak.
    run: dict[str, Any] = {"crash_tries": 8, "max_failed_fraction": 1.0}
    if raylets is None:
        return OPTIONS | {"run": run | {"object_store_gib": 0.2}}
    on_gpu = {step: OPTIONS[step] | {"pool": {"num_gpus": 0.5}} for step in ("perceive", "describe")}
    return OPTIONS | on_gpu | {"run": run | {"ray_address": raylets.address}}


def _s3_filesystem() -> fs.FileSystem:
    place = {"endpoint_override": os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), "scheme": "http", "region": "us-east-1"}
    return fs.S3FileSystem(access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"], secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"], **place)


def _count_events(tally: Tally, folder: Path) -> None:
    """Count from all event logs so far what workers had to take up from others."""
    tally.retries = tally.crashes = 0
    for log in folder.glob("**/logs/*.jsonl"):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if '"worker_lost"' in line:
                tally.retries += len(json.loads(line)["work_ids"])
            tally.crashes += '"event": "crash"' in line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=0, help="on a slow machine longer than that, until so much was killed")
    parser.add_argument("--seed", type=int, help="of corpora and kills; left out: by the time (what is hit depends on timing all the same)")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    arguments = parser.parse_args()
    seed = time.time_ns() % 100_000 if arguments.seed is None else arguments.seed
    tally = soak(arguments.minutes, arguments.kills, seed, say=lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(vars(tally)) if arguments.json else tally.text())
    raise SystemExit(bool(tally.violations))


if __name__ == "__main__":
    main()
