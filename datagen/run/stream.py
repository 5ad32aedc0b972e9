"""The run itself: samples to the workers, their parts into the dataset, and at the end the record of what came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from datagen import graph
from datagen.blocks import Waiting
from datagen.errors import DatagenError
from datagen.events import log_event
from datagen.job import Job
from datagen.ledger import LedgerClient
from datagen.records import Sample
from datagen.run.commit import Committer
from datagen.run.estimate import compared
from datagen.run.reporting import Progress, polling
from datagen.run.stopping import Stop
from datagen.run.summary import RunSummary
from datagen.write import RunRecord, Store
from datagen.write.crashes import CRASHES
from datagen.write.parts_list import PartsList

VIDEOS_PER_WAVE = 4096  # each is handed to Ray on its own
CACHED_MIN = 0.85  # of what could be shared; blocks that a prefix fills only in part are never cached


@dataclass(frozen=True)
class Running:
    """A run that has its lease, knows what is done, and begins."""

    plan: graph.Plan
    store: Store
    committer: Committer
    summary: RunSummary
    record: RunRecord
    stop: Stop
    marks: PartsList


def stream(run: Running, todo: Iterator[Sample], progress: Progress) -> None:
    """Commit parts as they come; whatever ends the run, the record says how far it came.

    Raises ClusterError when assets got lost, JobError for a budget that cannot be kept, and whatever stops the workers.
    """
    started = time.monotonic()
    status, problem = "failed", None
    gpus = partial(graph.num_gpus, run.plan.job)
    try:
        with (
            run.stop.leaving(),
            graph.started(run.plan) as ledger,
            polling(ledger, run.summary, progress),
            run.stop.watching(ledger, run.summary, gpus),
        ):
            run.stop.refuse_uncounted(gpus())
            _commit_all(run, ledger, todo)
        status = _state_at_end(run)
    except KeyboardInterrupt:
        run.committer.videos()
        status = _state_at_end(run, interrupted=True)
    except Exception as error:
        problem = error
        raise
    finally:
        run.summary.seconds = time.monotonic() - started
        run.summary.warnings += _warnings(run.plan.job, run.summary)
        run.summary.estimate = compared(run.store, run.record.job_hash, run.summary)
        run.marks.flush()
        run.record.parts = list(run.marks.files)
        run.record.write(run.store, status=status, summary=run.summary.to_dict())
        _log_end(status, run.summary, problem)
        run.store.delete_tree(f"_staging/{run.record.run_id}")


def _commit_all(run: Running, ledger: LedgerClient, todo: Iterator[Sample]) -> None:
    for images, videos in _waves(todo, run.plan.job.run.assets_per_wave):
        for part in graph.run_images(run.plan, ledger, images) if images else ():
            run.committer.images(part)
        for part in graph.run_videos(run.plan, ledger, videos) if videos else ():
            run.committer.clip(part)
        run.committer.videos()
        if run.stop.reason is not None:
            return


def _state_at_end(run: Running, interrupted: bool = False) -> str:
    """What the record says; a run that was to end early and yet did all is finished. Raises ClusterError when assets got lost."""
    reason = run.stop.reason
    if (interrupted or reason is not None) and (run.summary.states()["left"] or not run.summary.all_listed):
        run.summary.stopped = reason
        run.summary.interrupted = reason is None or run.stop.by_signal
        return "interrupted" if run.summary.interrupted else "stopped"
    run.committer.close()
    run.store.delete(CRASHES)
    return "finished"


def _log_end(status: str, summary: RunSummary, problem: Exception | None) -> None:
    facts: dict[str, Any] = {
        "status": status,
        "stopped": summary.stopped,
        "seconds": round(summary.seconds, 3),
        "statuses": dict(summary.statuses),
        "regions": summary.regions,
    }
    if problem is None:
        log_event("run_ended", status, **facts)
    else:
        code = problem.code if isinstance(problem, DatagenError) else type(problem).__name__
        log_event("run_ended", str(problem), level=logging.ERROR, code=code, **facts)


def _waves(todo: Iterator[Sample], size: int) -> Iterator[tuple[Waiting, list[Sample]]]:
    """Images and videos, in the order of the listing, at most `size` images or VIDEOS_PER_WAVE videos at a time."""
    images, videos = Waiting(), list[Sample]()
    for sample in todo:
        (videos if sample.asset.media_type == "video" else images).append(sample)
        if len(images) == size or len(videos) == VIDEOS_PER_WAVE:
            yield images, videos
            images, videos = Waiting(), []
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
        warnings.append(f"{summary.repeated} input rows say exactly what one before them says; each asset was done once")
    return warnings
