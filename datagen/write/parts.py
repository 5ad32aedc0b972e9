"""Parts: staged by workers, published by the driver alone, swept at the start of the next run.

A part is the same name in every table. Its `assets` file is published last and is the commit mark.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.errors import SchemaError, WriteError
from datagen.job import WriteOptions
from datagen.records import Region, Sample
from datagen.write.schema import table_from_rows
from datagen.write.store import STAGING, TEMP_PREFIX, Store

PART_NAME = re.compile(r"^part-(?P<id>[0-9a-f]{20})\.parquet$")

RegionRow = Callable[[Sample, Region, str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class StagedPart:
    """What the driver needs to know of a staged part, and all it gets: paths and counts.

    indices: `Sample.index` of each asset. statuses, failures (by code), dropped (regions by reason) and usage (tokens) are sums
    over the part. regions_path is None where no asset of the part has a region.
    """

    part_id: str
    run_id: str
    indices: list[int]
    num_regions: int
    num_bytes: int
    statuses: dict[str, int]
    failures: dict[str, int]
    dropped: dict[str, int]
    usage: dict[str, int]
    assets_path: str
    regions_path: str | None


def part_id_of(asset_ids: Iterable[str]) -> str:
    """A part's name: 20 hex digits of the SHA-256 of the set of its assets' ids, whatever their order. Raises SchemaError for none."""
    ids = sorted(set(asset_ids))
    if not ids:
        raise SchemaError("a part needs at least one asset")
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:20]


def part_path(table: str, part_id: str) -> str:
    """Where a published part lies."""
    return f"{table}/part-{part_id}.parquet"


def stage_part(store: Store, run_id: str, samples: Sequence[Sample], options: WriteOptions, region_row: RegionRow) -> StagedPart:
    """Turn finished samples into whole Parquet files under `_staging/<run_id>/`. Runs in a worker; publishes nothing.

    region_row(sample, region, run_id) gives a row of `regions` without its `part_id`. Raises SchemaError for a row outside the
    contract, WriteError when the files cannot be written.
    """
    samples = sorted(samples, key=lambda sample: sample.index)
    ids = [sample.asset.asset_id for sample in samples]
    if len(set(ids)) != len(ids):
        twice = next(asset_id for asset_id, count in Counter(ids).items() if count > 1)
        raise SchemaError(f"asset {twice} is twice in one part; list each asset once", asset_id=twice)
    part_id, now = part_id_of(ids), datetime.now(UTC)
    regions = [{**region_row(s, r, run_id), "part_id": part_id} for s in samples if s.failure is None for r in s.regions]
    assets = [asset_row(sample, part_id, run_id, now) for sample in samples]
    # Two attempts at the same part (Ray retries a task whose worker it gave up on) never share a file.
    where = f"{STAGING}/{run_id}/{{}}-{part_id}-{uuid.uuid4().hex[:8]}.parquet"
    paths, num_bytes = {}, 0
    for table, rows in (("regions", regions), ("assets", assets)):
        if rows:
            paths[table] = where.format(table)
            data = parquet_bytes(table_from_rows(table, rows), options)
            store.write(paths[table], data)
            num_bytes += len(data)
    return StagedPart(
        part_id=part_id,
        run_id=run_id,
        indices=[sample.index for sample in samples],
        num_regions=len(regions),
        num_bytes=num_bytes,
        statuses=dict(Counter(sample.status for sample in samples)),
        failures=dict(Counter(sample.failure.code for sample in samples if sample.failure)),
        dropped=_sum(sample.dropped for sample in samples),
        usage=_sum(sample.usage for sample in samples),
        assets_path=paths["assets"],
        regions_path=paths.get("regions"),
    )


def publish_part(store: Store, staged: StagedPart) -> None:
    """Commit a staged part: `regions` first, `assets` last. Only the driver calls it, for parts of its own run; repeating it is harmless.

    Raises WriteError when the staged files are gone or the files cannot be moved.
    """
    if store.exists(part_path("assets", staged.part_id)):
        return
    for table, path in (("regions", staged.regions_path), ("assets", staged.assets_path)):
        if path is None:
            continue
        target = part_path(table, staged.part_id)
        if store.exists(path):
            store.move(path, target)
        elif not store.exists(target):
            raise WriteError(f"the staged part {path} is gone from {store.uri}; did another run clean it up? Rerun to do it again.")


def sweep(store: Store) -> list[str]:
    """Remove what a killed run left: `regions` parts without their commit mark, staged files, temporary files. Returns their paths.

    Call it under the lease and before anything is listed.
    """
    committed = {path.split("/")[-1] for path, _ in store.list("assets")}
    orphans = [path for path, _ in store.list("regions") if PART_NAME.match(path.split("/")[-1]) and path.split("/")[-1] not in committed]
    debris = [path for path, _ in store.list() if path.split("/")[0] != STAGING and _temp_of(path)]
    staged = [path for path, _ in store.list(STAGING)]
    for path in orphans:
        store.delete(path)
    for path in debris:
        temp = _temp_of(path)
        (store.delete if temp == path else store.delete_tree)(temp)
    store.delete_tree(STAGING)
    return orphans + debris + staged


def _temp_of(path: str) -> str:
    """The path up to its first temporary component; empty where there is none."""
    names = path.split("/")
    for depth, name in enumerate(names, start=1):
        if name.startswith(TEMP_PREFIX):
            return "/".join(names[:depth])
    return ""


def parquet_bytes(table: pa.Table, options: WriteOptions) -> pa.Buffer:
    """The table as one whole Parquet file: Zstandard, column statistics, a checksum per page. The same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=options.compression_level,
        row_group_size=options.row_group_rows,
        write_statistics=True,
        write_page_checksum=True,
    )
    return sink.getvalue()


def asset_row(sample: Sample, part_id: str, run_id: str, finished_at: datetime) -> dict[str, Any]:
    """The row of `assets` of a finished sample. Text from outside that UTF-8 cannot hold is escaped, not refused."""
    asset, failure = sample.asset, sample.failure
    return {
        "asset_id": asset.asset_id,
        "uri": _utf8(asset.uri),
        "media_type": asset.media_type,
        "status": sample.status,
        "error_code": failure and failure.code,
        "error_message": failure and _utf8(failure.message),
        "attempts": sample.attempts,
        "num_regions": 0 if failure else len(sample.regions),
        "width": sample.width,
        "height": sample.height,
        "num_frames": None,
        "fps": None,
        "duration_s": None,
        "size_bytes": sample.size_bytes,
        "sha256": sample.sha256,
        "license": asset.license and _utf8(asset.license),
        "extra": _utf8(json.dumps(_plain(asset.extra), ensure_ascii=False, sort_keys=True)) if asset.extra else None,
        "dropped": [{"reason": reason, "count": count} for reason, count in sorted(sample.dropped.items())],
        "part_id": part_id,
        "run_id": run_id,
        "finished_at": finished_at,
    }


def _utf8(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    """What JSON can hold, from whatever an input file's columns gave: not-a-number is null, dates and the like are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _plain(value.tolist())
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
