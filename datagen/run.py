"""One run of a job, as the driver sees it: lease, sweep, list, leave out what is done, stream, publish, record.

Only this process publishes parts; workers stage them. Every listed asset has an index, and the driver ticks each index off
exactly once, so a lost or doubled asset is an error on the spot and not a surprise in the dataset.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datagen import graph
from datagen.errors import ClusterError, JobError, StorageError
from datagen.guard import CRASHES, LedgerClient
from datagen.job import Job
from datagen.records import Asset
from datagen.share import cache_folder
from datagen.sources import open_source
from datagen.write import (
    DoneSet,
    RunRecord,
    StagedPart,
    Store,
    done_assets,
    open_store,
    prepare_output,
    publish_part,
    sweep,
    weight_hashes,
    write_card,
)
from datagen.write.store import META

if TYPE_CHECKING:
    from datagen.pam.checkpoint import ModelFiles

logger = logging.getLogger(__name__)

FAKE_IMAGE_SIZE = 64
POLL_S = 0.5
Progress = Callable[["RunSummary"], None]
Screen = Callable[[Path], AbstractContextManager[Progress]]


@dataclass
class RunSummary:
    """What a run has done so far. `listed` counts assets of the input, `done_before` those that earlier runs committed."""

    run_id: str
    output: str
    listed: int = 0
    done_before: int = 0
    repeated: int = 0
    todo: int = 0
    parts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    regions: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    counters: dict[str, int] = field(default_factory=dict)
    spans: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, part: StagedPart) -> None:
        """Count a published part."""
        self.parts += 1
        self.regions += part.num_regions
        self.statuses.update(part.statuses)
        self.failures.update(part.failures)
        self.dropped.update(part.dropped)
        self.usage.update(part.usage)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}


class _Tally:
    """Ticks off asset indices, one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._open = 0

    def expect(self, index: int) -> None:
        if index // 8 >= len(self._bits):
            self._bits.extend(bytes(4096))
        self._bits[index // 8] |= 1 << index % 8
        self._open += 1

    def tick(self, indices: list[int]) -> None:
        for index in indices:
            if index // 8 >= len(self._bits) or not self._bits[index // 8] >> index % 8 & 1:
                raise ClusterError(f"asset number {index} came back twice; nothing of that part was published. Please report this.")
        for index in indices:
            self._bits[index // 8] &= ~(1 << index % 8)
        self._open -= len(indices)

    @property
    def still_open(self) -> int:
        return self._open


@contextmanager
def no_screen(log: Path) -> Iterator[Progress]:
    """Shows nothing and redirects nothing: for runs from Python."""
    yield lambda _: None


def run_job(job: Job, *, limit: int | None = None, screen: Screen = no_screen) -> RunSummary:
    """Run a job to its end and return what it did. KeyboardInterrupt ends it early, with everything published still whole.

    `screen(log)` is entered once there is work: it may send noise to the file `log`, and gives a function that is called twice a
    second with the summary so far. Raises JobError or SourceError for a wrong job or input, ModelLoadError for missing weights,
    WriteError or OutputBusyError for the output, ClusterError when the machine or cluster broke (a rerun resumes).
    """
    source_input, output = _required(job)
    source = open_source(job.source, job.s3)
    model = _resolve(job)
    store = open_store(output, job.s3)
    record = RunRecord.new(job)
    summary = RunSummary(run_id=record.run_id, output=output)
    with store.lease({"run_id": record.run_id, "job": job.name, "input": source_input}):
        prepare_output(store, job)
        removed = sweep(store)
        todo = _todo(source, done_assets(store), summary, limit)
        first = next(todo, None)
        if first is None:
            return summary
        with _logged(store, record.run_id, screen) as progress:
            logger.info("run %s; left over from an earlier run and removed: %s", record.run_id, removed)
            image_size = _note_model(record, job, model)
            record.write(store, status="running")
            plan = graph.Plan(job, output, record.run_id, image_size)
            _stream(plan, store, _push_back(first, todo), summary, record, progress)
    return summary


def _stream(
    plan: graph.Plan, store: Store, todo: Iterator[tuple[int, Asset]], summary: RunSummary, record: RunRecord, progress: Progress
) -> None:
    """Publish parts as they come; whatever ends the run, the record says how far it came."""
    started = time.monotonic()
    status = "failed"
    try:
        with graph.started(plan) as ledger, _polling(ledger, summary, progress):
            for part in _parts(plan, ledger, todo):
                publish_part(store, part)
                summary.add(part)
        status = "finished"
        store.delete(CRASHES)
    except KeyboardInterrupt:
        status, summary.interrupted = "interrupted", True
    finally:
        summary.seconds = time.monotonic() - started
        summary.warnings = _warnings(plan.job, summary)
        record.write(store, status=status, summary=summary.to_dict())
        write_card(store, plan.job)
        store.delete_tree(f"_staging/{record.run_id}")


@contextmanager
def _polling(ledger: LedgerClient, summary: RunSummary, progress: Progress) -> Iterator[None]:
    """Ask the ledger for its counters twice a second, and once more at the end."""
    stop = threading.Event()

    def poll() -> None:
        while True:
            last = stop.wait(POLL_S)
            try:
                summary.counters, summary.spans = ledger.ask("progress"), ledger.ask("spans")
            except ClusterError:  # the run itself is about to say so
                return
            progress(summary)
            if last:
                return

    thread = threading.Thread(target=poll, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def plan_job(job: Job) -> dict[str, Any]:
    """List the input against the output, and say which workers a run would start on this machine or cluster. Writes nothing."""
    source_input, output = _required(job)
    summary = RunSummary(run_id="", output=output)
    done = done_assets(open_store(output, job.s3))
    for _ in _todo(open_source(job.source, job.s3), done, summary, None):
        pass
    workers = graph.pools(job, graph.resources(job))
    return {
        "input": source_input,
        "output": output,
        "listed": summary.listed,
        "done": summary.done_before,
        "left": summary.todo,
        "parts": math.ceil(summary.todo / job.write.assets_per_part),
        "workers": {step: pool.model_dump() for step, pool in workers.items()},
    }


def _required(job: Job) -> tuple[str, str]:
    if not job.source.input:
        raise JobError("no input: give --input FOLDER|MANIFEST|COCO.json, or source.input in the job file")
    if not job.output:
        raise JobError("no output: give --output FOLDER, or output in the job file")
    return job.source.input, job.output


def _resolve(job: Job) -> ModelFiles | None:
    """Find the weights, before anything starts. None when both engines are fakes."""
    if job.perceive.engine == "fake" and job.describe.engine == "fake":
        return None
    from datagen.pam.checkpoint import resolve_model

    return resolve_model(job.model)


def _note_model(record: RunRecord, job: Job, model: ModelFiles | None) -> int:
    """Write down which weights and prompts make the rows; returns the model's image size, px."""
    if model is None:
        record.model = {"checkpoint": "fake"}
        return FAKE_IMAGE_SIZE
    from datagen.describe.prompter import asked_keys
    from datagen.pam.prompts import image_prompt
    from datagen.pam.segmenter import model_config

    record.model = {
        **job.model.model_dump(),
        "folder": str(model.checkpoint),
        "license": model.license(),
        "sam2_weights": str(model.sam2_weights or "inside the checkpoint"),
        "sam2_config": model.sam2_config,
        "sha256": weight_hashes(model.weight_files()),
    }
    record.prompts = {f"{task}_{language}": image_prompt(task, language) for task, language in asked_keys(job.describe)}
    return int(model_config(model.sam2_config)["image_size"])


def _todo(source: Any, done: DoneSet, summary: RunSummary, limit: int | None) -> Iterator[tuple[int, Asset]]:
    """(index, asset) of what is listed and not yet done. An asset listed twice counts once."""
    seen: set[bytes] = set()
    for asset in source:
        key = bytes.fromhex(asset.asset_id) if _is_hex(asset.asset_id) else asset.asset_id.encode()
        if key in seen:
            summary.repeated += 1
            logger.warning("listed again, counted once: %s (%s)", asset.asset_id, asset.uri)
            continue
        seen.add(key)
        summary.listed += 1
        if asset.asset_id in done:
            summary.done_before += 1
            continue
        if limit is not None and summary.todo >= limit:
            return
        summary.todo += 1
        yield summary.todo - 1, asset


def _is_hex(text: str) -> bool:
    return len(text) % 2 == 0 and all(c in "0123456789abcdef" for c in text)


def _push_back(first: tuple[int, Asset], rest: Iterator[tuple[int, Asset]]) -> Iterator[tuple[int, Asset]]:
    yield first
    yield from rest


def _parts(plan: graph.Plan, ledger: LedgerClient, todo: Iterator[tuple[int, Asset]]) -> Iterator[StagedPart]:
    """Staged parts of the whole listing, wave by wave, each asset checked off once."""
    tally = _Tally()

    def expected() -> Iterator[tuple[int, Asset]]:
        for index, asset in todo:
            tally.expect(index)
            yield index, asset

    for wave in _waves(expected(), plan.job.run.assets_per_wave):
        for part in graph.run(plan, ledger, wave):
            tally.tick(part.indices)
            yield part
    if tally.still_open:
        raise ClusterError(
            f"{tally.still_open} assets did not come back from the workers. Rerun the same command: only they are done again."
        )


def _waves(todo: Iterator[tuple[int, Asset]], size: int) -> Iterator[list[tuple[int, Asset]]]:
    wave: list[tuple[int, Asset]] = []
    for item in todo:
        wave.append(item)
        if len(wave) == size:
            yield wave
            wave = []
    if wave:
        yield wave


def _warnings(job: Job, summary: RunSummary) -> list[str]:
    """What a person should look at: a prefix cache that does not work, too many failures."""
    warnings = []
    tasks = len(job.describe.tasks) * len(job.describe.languages)
    prompt, cached = summary.usage["prompt_tokens"], summary.usage["cached_tokens"]
    implied = (tasks - 1) / tasks
    if job.describe.engine == "vllm" and prompt and cached / prompt < 0.85 * implied:
        warnings.append(
            f"only {cached / prompt:.0%} of prompt tokens came from the prefix cache; {tasks} tasks per region imply about {implied:.0%}. "
            "The KV cache may be too small for what is in flight: raise describe.gpu_memory_fraction or cpu_kv_cache_gib, "
            "or lower describe.max_num_seqs."
        )
    if summary.repeated:
        warnings.append(f"{summary.repeated} input rows repeat an asset already listed; each asset was done once")
    return warnings


@contextmanager
def _logged(store: Store, run_id: str, screen: Screen) -> Iterator[Progress]:
    """The screen, with the run's log in the dataset: at once in a folder; a bucket gets it at the end, until then it is in the cache."""
    in_dataset = f"{META}/logs/{run_id}.log"
    is_local = "://" not in store.uri
    log = Path(store.uri) / in_dataset if is_local else cache_folder() / "logs" / f"{run_id}.log"
    try:
        with screen(log) as progress:
            yield progress
    finally:
        if not is_local and log.exists():
            try:
                store.write(in_dataset, log.read_bytes())
            except StorageError as error:
                logger.warning("the log stays in %s: %s", log, error.message)
