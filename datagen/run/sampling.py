"""`datagen plan --sample`: a few assets are done for real, and the whole is estimated from them."""

from __future__ import annotations

import random
import statistics
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datagen.errors import WriteError
from datagen.job import Job, parse_job
from datagen.records import Asset
from datagen.run import plan_job, run_job
from datagen.run.estimate import FORMAT, foretold, keep
from datagen.run.reporting import Progress, Screen, no_screen
from datagen.run.summary import RunSummary
from datagen.share import cache_folder
from datagen.write import Store, open_store
from datagen.write.done import read_parts
from datagen.write.parts import part_ids
from datagen.write.store import META, TEMP_PREFIX

_Z95 = 1.96  # standard errors on either side of a mean that hold it 95 times of 100


def estimate_job(job: Job, size: int, screen: Screen = no_screen) -> dict[str, Any]:
    """What plan_job says, with an `estimate` of the whole from `size` assets that are done now; kept in the output for the run's report.

    The assets are chosen at random, by run.seed, of those that a run would do. They are done with the job's workers into a folder of
    the output, which all nodes see; under its lease, and it is removed. Without assets to do there is no estimate. A sample is short,
    so filling the pipeline weighs more in it than in the whole: expect time, GPU-hours and cost to be less.

    Raises what plan_job and run_job raise; KeyboardInterrupt when the sample was interrupted.
    """
    job = job.located()
    chosen = _Reservoir(size, job.run.seed)
    planned = plan_job(job, chosen.see)
    if not chosen.assets:
        return planned
    store = open_store(planned["output"], job.s3)
    place = f"{META}/{TEMP_PREFIX}sample-{uuid.uuid4().hex}"
    with store.lease({"plan": job.name, "sample": len(chosen.assets)}):  # a run that began meanwhile would clean the place up
        try:
            summary, counts = _done(job, chosen.assets, f"{store.uri.rstrip('/')}/{place}", screen)
        finally:
            store.delete_tree(place)
        estimate = _estimate(job, planned, summary, counts)
        keep(store, estimate)
    return {**planned, "estimate": estimate}


class _Reservoir:
    """`size` of all assets that it sees, each equally likely, without knowing their number."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random, self._seen = size, random.Random(seed), 0
        self.assets: list[Asset] = []

    def see(self, asset: Asset) -> None:
        """Look at the next asset."""
        self._seen += 1
        if len(self.assets) < self._size:
            self.assets.append(asset)
        elif (place := self._random.randrange(self._seen)) < self._size:
            self.assets[place] = asset


def _done(job: Job, assets: Sequence[Asset], output: str, screen: Screen) -> tuple[RunSummary, dict[str, list[int]]]:
    """The sample's summary, and its counts asset by asset."""
    options = job.model_dump()
    options["run"] |= {"budget": {"gpus": job.run.budget.gpus}, "retry_failed": 0}
    summary = run_job(parse_job({**options, "output": output}), assets=assets, screen=_log_outside(screen))
    if summary.interrupted:
        raise KeyboardInterrupt
    if sum(summary.statuses.values()) != len(assets):
        raise WriteError(f"of the {len(assets)} assets of the sample only {sum(summary.statuses.values())} were done; try again")
    return summary, _counts(open_store(output, job.s3))


def _log_outside(screen: Screen) -> Screen:
    """What libraries print outlives the sample's output."""

    def outside(log: Path) -> AbstractContextManager[Progress]:
        return screen(cache_folder() / "logs" / log.name)

    return outside


def _counts(store: Store) -> dict[str, list[int]]:
    columns = ["num_regions", "num_tracks"]
    rows = [row for table in read_parts(store, "assets", part_ids(store, "assets"), columns) for row in table.to_pylist()]
    return {"regions": [row["num_regions"] or 0 for row in rows], "tracks": [row["num_tracks"] or 0 for row in rows]}


def _estimate(job: Job, planned: dict[str, Any], summary: RunSummary, counts: dict[str, list[int]]) -> dict[str, Any]:
    num_sampled, left = len(counts["regions"]), planned["left"]
    began, ended = (pick(span[edge] for span in summary.spans.values()) for edge, pick in ((0, min), (1, max)))
    work_s = min(ended - began, summary.seconds)
    estimate: dict[str, Any] = {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "job": job.name,
        "job_hash": job.hash(),
        "gpus": planned["gpus"],
        "gpu_hour_price": job.run.budget.gpu_hour_price,
        "startup_s": round(summary.seconds - work_s, 3),
        "sample": {
            "assets": num_sampled,
            "seconds": round(summary.seconds, 3),
            "startup_s": round(summary.seconds - work_s, 3),
            "statuses": dict(summary.statuses),
            "failures": dict(summary.failures),
        },
        "per_asset": {
            "seconds": work_s / num_sampled,
            "regions": statistics.fmean(counts["regions"]),
            "tracks": statistics.fmean(counts["tracks"]),
            "output_tokens": summary.usage["output_tokens"] / num_sampled,
        },
    }
    whole: dict[str, Any] = {"assets": left, **foretold(estimate, left)}
    spread = {name: _relative_error(values) for name, values in counts.items()}
    spread["output_tokens"] = max(spread.values())  # texts go with regions and tracks
    for name, relative in spread.items():
        mean = whole[name]
        whole[name] = {"mean": mean, "low": max(0.0, mean * (1 - relative)), "high": mean * (1 + relative)}
    return {**estimate, "whole": whole}


def _relative_error(values: Sequence[int]) -> float:
    """Half the width of the mean's 95 % interval, as a share of the mean."""
    mean = statistics.fmean(values)
    return _Z95 * statistics.stdev(values) / len(values) ** 0.5 / mean if mean and len(values) > 1 else 0.0
