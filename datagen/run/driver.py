"""One run of a job, as the driver sees it: lease, sweep, list, leave out what is done, stream, commit, record.

Only this process publishes parts (commit.py); workers stage them.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from datagen import graph
from datagen.budget import Spending
from datagen.cluster.fit import fit
from datagen.cluster.profile import Profile
from datagen.errors import JobError
from datagen.events import log_event
from datagen.job import Job
from datagen.landmarks import Landmarks
from datagen.machine import settle
from datagen.paths import settle_environment
from datagen.records import Asset, Sample
from datagen.room import pools
from datagen.run.changes import todo_of, what_changed
from datagen.run.commit import Committer, Kind
from datagen.run.heartbeat import beating
from datagen.run.reporting import Screen, logged, no_screen
from datagen.run.stopping import Stop
from datagen.run.stream import Running, stream
from datagen.run.summary import RunSummary
from datagen.sources import open_source
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
from datagen.write.parts import remove_empty
from datagen.write.parts_list import PartsList
from datagen.write.retries import Retries, restore_failed, retrying, to_retry

if TYPE_CHECKING:
    from datagen.pam.checkpoint import ModelFiles

FAKE_IMAGE_SIZE = 64
LOGGED_FILES = 100


def run_job(job: Job, *, limit: int | None = None, screen: Screen = no_screen, assets: Sequence[Asset] | None = None) -> RunSummary:
    """Run a job to its end, or until its budget is used up, and return what it did. KeyboardInterrupt ends it early, with everything
    published still whole.

    `screen(log)` is entered once there is work: it may send noise to the file `log`, and gives a function that is called twice a
    second with the summary so far. assets: are done instead of listing the input.

    Raises JobError or SourceError for a wrong job or input, ModelLoadError for missing weights, WriteError or OutputBusyError for the
    output, ClusterError when the machine or cluster broke (a rerun resumes).
    """
    job = job.located()
    settle_environment()
    settle()
    required(job)
    stop = Stop(Spending(job.run.budget), job.run.grace_s)
    with stop.guarded():
        return _run(job, stop, limit, screen, assets)


def _run(job: Job, stop: Stop, limit: int | None, screen: Screen, assets: Sequence[Asset] | None) -> RunSummary:
    source_input, output = required(job)
    source = open_source(job.source, job.s3) if assets is None else _Given(assets)
    model = _resolve(job)
    store = open_store(output, job.s3)
    record = RunRecord.new(job)
    summary = RunSummary(run_id=record.run_id, output=output)
    with store.lease({"run_id": record.run_id, "job": job.name, "input": source_input}):
        prepare_output(store, job)
        with beating(store, record, summary), _taken_up(store, job, record, summary) as (retries, videos, removed, marks):
            todo = todo_of(source, retries.done, summary, limit, reprocess=job.source.reprocess_changed)
            summary.warnings = _continued(store, job)
            first = next(todo, None)
            summary.skipped = source.skipped
            if first is None:
                summary.warnings += what_changed(store, summary, job.source.reprocess_changed)
                return summary
            with logged(store, record.run_id, screen) as progress:
                _log_start(job, removed)
                if summary.redone:  # of the first ones that were looked up; the plan counts all
                    log_event("redone", "what was done while source.reprocess_changed was off is done again", level=logging.WARNING)
                image_size = _note_model(record, job, model)
                record.write(store, status="running")
                committer = Committer(store, videos, job.write, summary, marks)
                kind_of = _Kinds(retries.again, known_uris(store) if job.source.reprocess_changed else None)
                samples = _expected(chain([first], todo), committer, videos, kind_of)
                landmarks = Landmarks.of(job, store, record.run_id) if job.run.executor == "ray" else Landmarks()
                plan = graph.Plan(job, output, record.run_id, image_size, landmarks)
                stream(Running(plan, store, committer, summary, record, stop, marks), samples, progress)
                summary.warnings += what_changed(store, summary, job.source.reprocess_changed)
    return summary


def _log_start(job: Job, removed: Sequence[str]) -> None:
    source, output = job.source.input, job.output
    log_event("run_started", f"{job.name}: {source} to {output}", job=job.name, input=source, output=output)
    if removed:
        log_event("swept", f"{len(removed)} files left over from an earlier run were removed", files=removed[:LOGGED_FILES])


@contextmanager
def _taken_up(
    store: Store, job: Job, record: RunRecord, summary: RunSummary
) -> Iterator[tuple[Retries, VideoProgress, Sequence[str], PartsList]]:
    """The output, ready to go on with: what is done and what is to be tried again, what is begun, what was swept away, and the list of what
    the run commits.

    At the end failed assets that were not tried again are back, the record names the lists of parts, and the card says what there is.
    """
    removed = sweep(store)
    restore_failed(store, job.write)
    marks = PartsList(store, record.run_id)
    done, videos = resume_videos(store, job.write, marks, marks.see_assets)
    removed += remove_empty(store, done.empty_parts)
    marks.take_stock()
    try:
        with retrying(store, done, job.run.retry_failed, job.write, marks) as retries:
            summary.failed_before = done.statuses["failed"] - len(retries.again)
            yield retries, VideoProgress(store, retries.done) if retries.again else videos, removed, marks
    finally:
        marks.flush()
        if record.finished_at is not None and record.parts != marks.files:
            record.parts = list(marks.files)
            record.write(store, status=record.status)
        if summary.parts:
            write_card(store, job)


class _Given:
    """Assets that were listed before, as a source."""

    def __init__(self, assets: Sequence[Asset]) -> None:
        self._assets = assets
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Asset]:
        return iter(self._assets)


def plan_job(job: Job, see: Callable[[Asset], None] = lambda asset: None, *, cluster: Profile | None = None) -> dict[str, Any]:
    """List the input against the output, and say which workers a run would start. Writes nothing.

    see: is called with every asset that a run would do. cluster: where it would run; left out: this machine, or the cluster that the job
    names. Raises JobError when a step fits on none of its nodes, and what a run would raise for its input and output.
    """
    job = job.located()
    source_input, output = required(job)
    fitted = fit(job, cluster) if cluster else None
    summary = RunSummary(run_id="", output=output)
    store = open_store(output, job.s3)
    source = open_source(job.source, job.s3)
    done = done_assets(store)
    again = to_retry(store, done, job.run.retry_failed)
    for _, asset in todo_of(source, done.without(again), summary, None, reprocess=job.source.reprocess_changed):
        see(asset)
    changed = what_changed(store, summary, job.source.reprocess_changed)
    resources = cluster.resources() if cluster else graph.resources(job)
    workers = fitted or pools(job, resources)
    return {
        "input": source_input,
        "output": output,
        "listed": summary.listed,
        "done": summary.done_before,
        "left": summary.todo,
        "skipped": dict(source.skipped),
        "changed_prompts": summary.changed_prompts,
        "redone": summary.redone,
        "other_ids": summary.other_ids,
        "same_names": summary.same_names,
        "parts": math.ceil(summary.todo / job.write.assets_per_part),
        "gpus": job.run.budget.gpus or resources.get("GPU", 0.0),
        "workers": {step: pool.model_dump() for step, pool in workers.items()},
        "cluster": cluster.summary() if cluster else None,
        "warnings": [*_continued(store, job), *changed],
    }


def required(job: Job) -> tuple[str, str]:
    """Input and output. Raises JobError where one is missing."""
    if not job.source.input:
        raise JobError("no input: give --input FOLDER|MANIFEST|COCO.json|TAR|DATASET, or source.input in the job file")
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
        "sha256": weight_hashes(model.weight_files(), model.checkpoint),
    }
    record.prompts = {f"{task}_{language}": image_prompt(task, language) for task, language in asked_keys(job.describe)}
    record.prompts |= {f"event_{language}": video_prompt(language, None) for language in job.describe.languages}
    return int(model_config(model.sam2_config)["image_size"])


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
        if videos.asked(asset.asset_id) not in (None, asset.prompts_hash):
            committer.note_changed_prompts()
        yield Sample(index, asset, resume=videos.resume_point(asset.asset_id) if asset.media_type == "video" else None)


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
