"""One run of a job, as the driver sees it: lease, sweep, list, leave out what is done, stream, commit, record.

Only this process publishes parts (commit.py); workers stage them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from datagen import graph
from datagen.commit import Committer, Kind
from datagen.errors import DatagenError, JobError
from datagen.events import log_event
from datagen.heartbeat import beating
from datagen.job import Job
from datagen.ledger import CRASHES
from datagen.records import Asset, Sample
from datagen.reporting import Progress, Screen, logged, no_screen, polling
from datagen.sources import open_source
from datagen.summary import RunSummary
from datagen.write import (
    DoneSet,
    RunRecord,
    Store,
    VideoProgress,
    done_assets,
    open_store,
    other_options,
    prepare_output,
    resume_videos,
    sweep,
    weight_hashes,
    write_card,
)
from datagen.write.done import known_uris
from datagen.write.retries import Retries, restore_failed, retrying, to_retry

if TYPE_CHECKING:
    from datagen.pam.checkpoint import ModelFiles

logger = logging.getLogger(__name__)

FAKE_IMAGE_SIZE = 64
LOGGED_FILES = 100
VIDEOS_PER_WAVE = 4096  # each is handed to Ray on its own
CACHED_MIN = 0.85  # of what could be shared; blocks that a prefix fills only in part are never cached


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
    with (
        store.lease({"run_id": record.run_id, "job": job.name, "input": source_input}),
        _prepared(store, job),
        beating(store, record, summary),
        _taken_up(store, job, summary) as (retries, videos, removed),
    ):
        todo = _todo(source, retries.done, summary, limit)
        summary.warnings = _continued(store, job)
        first = next(todo, None)
        summary.skipped = source.skipped
        if first is None:
            return summary
        with logged(store, record.run_id, screen) as progress:
            log_event("run_started", f"{job.name}: {source_input} to {output}", job=job.name, input=source_input, output=output)
            if removed:
                log_event("swept", f"{len(removed)} files left over from an earlier run were removed", files=removed[:LOGGED_FILES])
            image_size = _note_model(record, job, model)
            record.write(store, status="running")
            plan = graph.Plan(job, output, record.run_id, image_size)
            committer = Committer(store, videos, job.write, summary)
            kind_of = _Kinds(retries.again, known_uris(store) if job.source.reprocess_changed else None)
            samples = _expected(chain([first], todo), committer, videos, kind_of)
            _stream(plan, store, samples, committer, summary, record, progress)
    return summary


@contextmanager
def _prepared(store: Store, job: Job) -> Iterator[None]:
    prepare_output(store, job)
    yield


@contextmanager
def _taken_up(store: Store, job: Job, summary: RunSummary) -> Iterator[tuple[Retries, VideoProgress, Sequence[str]]]:
    """The output, ready to go on with: what is done and what is to be tried again, what is begun, and what was swept away.

    At the end failed assets that were not tried again are back, and the card says what there is.
    """
    removed = sweep(store)
    restore_failed(store, job.write)
    done, videos = resume_videos(store, job.write)
    try:
        with retrying(store, done, job.run.retry_failed, job.write) as retries:
            summary.failed_before = done.statuses["failed"] - len(retries.again)
            yield retries, VideoProgress(store, retries.done) if retries.again else videos, removed
    finally:
        if summary.parts:
            write_card(store, job)


def _stream(
    plan: graph.Plan,
    store: Store,
    todo: Iterator[Sample],
    committer: Committer,
    summary: RunSummary,
    record: RunRecord,
    progress: Progress,
) -> None:
    """Commit parts as they come; whatever ends the run, the record says how far it came."""
    started = time.monotonic()
    status = "failed"
    problem: Exception | None = None
    try:
        with graph.started(plan) as ledger, polling(ledger, summary, progress):
            for images, videos in _waves(todo, plan.job.run.assets_per_wave):
                for part in graph.run_images(plan, ledger, images) if images else ():
                    committer.images(part)
                for part in graph.run_videos(plan, ledger, videos) if videos else ():
                    committer.clip(part)
                committer.videos()
            committer.close()
        status = "finished"
        store.delete(CRASHES)
    except KeyboardInterrupt:
        status, summary.interrupted = "interrupted", True
        committer.videos()
    except Exception as error:
        problem = error
        raise
    finally:
        summary.seconds = time.monotonic() - started
        summary.warnings += _warnings(plan.job, summary)
        record.write(store, status=status, summary=summary.to_dict())
        _log_end(status, summary, problem)
        store.delete_tree(f"_staging/{record.run_id}")


def _log_end(status: str, summary: RunSummary, problem: Exception | None) -> None:
    facts: dict[str, Any] = {
        "status": status,
        "seconds": round(summary.seconds, 3),
        "statuses": dict(summary.statuses),
        "regions": summary.regions,
    }
    if problem is None:
        log_event("run_ended", status, **facts)
    else:
        code = problem.code if isinstance(problem, DatagenError) else type(problem).__name__
        log_event("run_ended", str(problem), level=logging.ERROR, code=code, **facts)


def plan_job(job: Job) -> dict[str, Any]:
    """List the input against the output, and say which workers a run would start on this machine or cluster. Writes nothing."""
    source_input, output = _required(job)
    summary = RunSummary(run_id="", output=output)
    store = open_store(output, job.s3)
    source = open_source(job.source, job.s3)
    done = done_assets(store)
    again = to_retry(store, done, job.run.retry_failed)
    for _ in _todo(source, done.without(again), summary, None):
        pass
    workers = graph.pools(job, graph.resources(job))
    return {
        "input": source_input,
        "output": output,
        "listed": summary.listed,
        "done": summary.done_before,
        "left": summary.todo,
        "skipped": dict(source.skipped),
        "parts": math.ceil(summary.todo / job.write.assets_per_part),
        "workers": {step: pool.model_dump() for step, pool in workers.items()},
        "warnings": _continued(store, job),
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
    from datagen.pam.prompts import image_prompt, video_prompt
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
    record.prompts |= {f"event_{language}": video_prompt(language, None) for language in job.describe.languages}
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
            break
        summary.todo += 1
        yield summary.todo - 1, asset
    summary.all_listed = True


def _is_hex(text: str) -> bool:
    return len(text) % 2 == 0 and all(c in "0123456789abcdef" for c in text)


@dataclass(frozen=True)
class _Kinds:
    """What an asset is for this run. again: failed before, with the retries so far. uris: those of earlier rows, where files may change."""

    again: Mapping[str, int]
    uris: DoneSet | None

    def __call__(self, asset: Asset) -> Kind:
        if asset.asset_id in self.again:
            return "retried"
        return "changed" if self.uris is not None and asset.uri in self.uris else "new"


def _expected(todo: Iterable[tuple[int, Asset]], committer: Committer, videos: VideoProgress, kind_of: _Kinds) -> Iterator[Sample]:
    """The samples to start with; a video goes on behind the clips that it has."""
    for index, asset in todo:
        committer.expect(index, kind_of(asset))
        asset.retries = kind_of.again.get(asset.asset_id, -1) + 1
        yield Sample(index, asset, resume=videos.resume_point(asset.asset_id) if asset.media_type == "video" else None)


def _waves(todo: Iterator[Sample], size: int) -> Iterator[tuple[graph.Waiting, list[Sample]]]:
    """Images and videos, in the order of the listing, at most `size` images or VIDEOS_PER_WAVE videos at a time."""
    images, videos = graph.Waiting(), list[Sample]()
    for sample in todo:
        (videos if sample.asset.media_type == "video" else images).append(sample)
        if len(images) == size or len(videos) == VIDEOS_PER_WAVE:
            yield images, videos
            images, videos = graph.Waiting(), []
    if images or videos:
        yield images, videos


def _warnings(job: Job, summary: RunSummary) -> list[str]:
    """What a person should look at: a prefix cache that does not work, too many failures."""
    warnings = []
    shareable, cached = summary.usage["shareable_tokens"], summary.usage["cached_tokens"]
    if job.describe.engine == "vllm" and cached < CACHED_MIN * shareable:
        warnings.append(
            f"only {cached / shareable:.0%} of the prompt tokens that tasks share came from the prefix cache. The KV cache may be too "
            "small for what is in flight: raise describe.gpu_memory_fraction or cpu_kv_cache_gib, or lower describe.max_num_seqs."
        )
    if summary.repeated:
        warnings.append(f"{summary.repeated} input rows repeat an asset already listed; each asset was done once")
    return warnings


def _continued(store: Store, job: Job) -> list[str]:
    """Said to whoever goes on with a dataset under other options: it is allowed, but its rows are then not all of one kind."""
    runs = other_options(store, job)
    if not runs:
        return []
    paths = sorted({path for paths in runs.values() for path in paths})
    who = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs, the first {next(iter(runs))}"
    return [
        f"rows made earlier (by {who}) stay as they are, but this job differs in {', '.join(paths)}. "
        "For a corpus made with one set of options choose a new --output."
    ]
