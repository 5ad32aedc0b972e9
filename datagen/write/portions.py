"""Portions of one image (datagen/portions.py): staged one by one, and put together to the part of their asset by the driver."""

from __future__ import annotations

import io
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.flags import OF_THE_FILE
from datagen.job import WriteOptions
from datagen.records import Failure, Sample
from datagen.refusals import problem_of, unusable
from datagen.stated import CROWD
from datagen.write.marker import schema_version
from datagen.write.parts import RegionRow, StagedPart, part_id_of, stage_tables
from datagen.write.rows import asset_row
from datagen.write.schema import table_from_rows
from datagen.write.seals import parquet_bytes
from datagen.write.store import STAGING, Store
from datagen.write.versions import rows_in_version


@dataclass(frozen=True, slots=True)
class StagedPortion:
    """A finished portion: the sample without its regions, how many there are, and the staged file of their rows, if there are any."""

    sample: Sample
    num_regions: int
    path: str | None


def stage_portion(store: Store, run_id: str, sample: Sample, options: WriteOptions, region_row: RegionRow) -> StagedPortion:
    """Write the rows of a finished portion's regions under `_staging/<run_id>/`. See parts.stage_part."""
    part_id, version = part_id_of([sample.asset.asset_id]), schema_version(store)
    rows = [{**region_row(sample, region, run_id), "part_id": part_id} for region in sample.regions if sample.failure is None]
    path = None
    if rows:
        path = f"{STAGING}/{run_id}/portion-{part_id}-{uuid.uuid4().hex[:8]}.parquet"
        store.write(path, parquet_bytes(table_from_rows("regions", rows_in_version("regions", rows, version), version), options))
    light = replace(sample, asset=replace(sample.asset, prompts=None), regions=[], tokens=None, pixels=None)
    return StagedPortion(light, len(rows), path)


def put_together(store: Store, run_id: str, staged: Iterable[StagedPart | StagedPortion], options: WriteOptions) -> Iterator[StagedPart]:
    """The parts as they come, and one for each image that came in portions, as soon as its last one is there. Runs in the driver.

    Raises WriteError when a staged file cannot be read.
    """
    waiting: dict[int, dict[int, StagedPortion]] = {}
    for item in staged:
        if isinstance(item, StagedPart):
            yield item
            continue
        number, count = item.sample.portion or (0, 1)
        portions = waiting.setdefault(item.sample.index, {})
        portions[number] = item  # of two attempts at one, the later
        if len(portions) == count:
            yield _part(store, run_id, [waiting[item.sample.index][n] for n in range(count)], options)
            del waiting[item.sample.index]


def _part(store: Store, run_id: str, portions: list[StagedPortion], options: WriteOptions) -> StagedPart:
    """The part of one image, staged. It fails when any portion failed, unless for nothing but prompts that cannot be used."""
    sample = _whole(portions)
    tables = [] if sample.failure else [pq.read_table(io.BytesIO(store.read(one.path))) for one in portions if one.path]
    num_regions = sum(len(table) for table in tables)
    part_id, version = part_id_of([sample.asset.asset_id]), schema_version(store)
    row = asset_row(sample, part_id, run_id, datetime.now(UTC)) | {"num_regions": num_regions}
    if sample.failure is None:
        row["status"] = "ok" if num_regions else "empty"
    assets = table_from_rows("assets", rows_in_version("assets", [row], version), version)
    made = {"regions": pa.concat_tables(tables)} if tables else {}
    more = {"num_regions": num_regions, "statuses": {row["status"]: 1}}
    staged = stage_tables(store, run_id, part_id, [sample], made | {"assets": assets}, options, more)
    for portion in portions:
        if portion.path:
            store.delete(portion.path)
    return staged


def _whole(portions: list[StagedPortion]) -> Sample:
    """The image that the portions are of, without its regions."""
    samples = [portion.sample for portion in portions]
    dropped = sum((Counter(sample.dropped) for sample in samples), Counter[str]())
    usage = sum((Counter(sample.usage) for sample in samples), Counter[str]())
    first = next((sample for sample in samples if sample.failure is None), samples[0])
    attempts = max(sample.attempts for sample in samples)
    return replace(first, dropped=dict(dropped), usage=dict(usage), attempts=attempts, failure=_failure(samples, dropped), portion=None)


def _failure(samples: list[Sample], dropped: Counter[str]) -> Failure | None:
    problems = []
    for sample in samples:
        if sample.failure is not None:
            problem = problem_of(sample.failure, sample.dropped)
            if problem is None:
                return sample.failure
            problems.append(problem)
    refused = {code: count for code, count in dropped.items() if code not in OF_THE_FILE and code != CROWD}
    return unusable(refused, problems[0]) if len(problems) == len(samples) else None
