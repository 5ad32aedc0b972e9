"""What `datagen plan --sample` foretold, as it is kept in the output, and how far off that was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from datagen.errors import DatagenError
from datagen.events import log_event
from datagen.run.summary import RunSummary
from datagen.write import Store
from datagen.write.store import META

ESTIMATE = f"{META}/estimate.json"
FORMAT = 1


def keep(store: Store, estimate: Mapping[str, Any]) -> None:
    """Keep an estimate in the output, in place of an earlier one. Raises WriteError, StorageError."""
    store.write(ESTIMATE, json.dumps(estimate, indent=2).encode())


def foretold(estimate: Mapping[str, Any], num_assets: int) -> dict[str, float | None]:
    """Regions, tracks, output tokens, seconds, GPU-hours and cost of a run over this many assets."""
    each, price = estimate["per_asset"], estimate["gpu_hour_price"]
    seconds = estimate["startup_s"] + each["seconds"] * num_assets
    gpu_hours = seconds * estimate["gpus"] / 3600
    counts = {name: each[name] * num_assets for name in ("regions", "tracks", "output_tokens")}
    return {**counts, "seconds": seconds, "gpu_hours": gpu_hours, "cost": None if price is None else gpu_hours * price}


def compared(store: Store, job_hash: str, summary: RunSummary) -> dict[str, Any] | None:
    """How far off the estimate kept in the output was, for the assets that this run did; None where there is none for this job.

    figures: name -> `estimated`, `actual`, and `off`, (actual - estimated) / estimated, None where nothing was estimated.
    """
    num_assets = sum(summary.statuses.values())
    estimate = _kept(store, job_hash)
    if estimate is None or not num_assets:
        return None
    actual: dict[str, float | None] = {
        "regions": summary.regions,
        "tracks": summary.tracks,
        "output_tokens": summary.usage["output_tokens"],
        "seconds": summary.seconds,
        "gpu_hours": summary.gpu_hours,
        "cost": summary.cost,
    }
    figures = {name: _figure(value, actual[name]) for name, value in foretold(estimate, num_assets).items()}
    return {"made_at": estimate["made_at"], "sampled": estimate["sample"]["assets"], "assets": num_assets, "figures": figures}


def _figure(estimated: float | None, actual: float | None) -> dict[str, float | None]:
    off = None if not estimated or actual is None else round(actual / estimated - 1, 4)
    return {"estimated": estimated, "actual": actual, "off": off}


def _kept(store: Store, job_hash: str) -> dict[str, Any] | None:
    try:
        estimate: dict[str, Any] = json.loads(store.read(ESTIMATE))
    except FileNotFoundError:
        return None
    except (ValueError, DatagenError) as error:
        log_event("estimate_unreadable", f"{ESTIMATE}: {error}")
        return None
    return estimate if (estimate.get("format"), estimate.get("job_hash")) == (FORMAT, job_hash) else None
