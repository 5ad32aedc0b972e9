"""The check of a whole dataset: its folder, and its images part by part; its videos are checked in check/videos.py.

A few parts are read at the same time; what must be known of the whole dataset is 16 bytes per asset and the name of every part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.at_once import in_order
from datagen.check.parts import batches, damage
from datagen.check.report import CheckReport, Code
from datagen.check.rows import AssetFacts, asset_facts, asset_problems, region_problems
from datagen.check.videos import VideoCheck
from datagen.errors import WriteError
from datagen.records import LANGUAGES, TASKS
from datagen.write.done import DoneSet, id_keys
from datagen.write.layout import RUNS, open_dataset
from datagen.write.marker import MARKER, TOKEN_LOGPROBS, check_marker, schema_version
from datagen.write.parts import COMMITTED_BY, PART_NAME, part_id_of, part_path
from datagen.write.schema import TABLES
from datagen.write.store import STAGING, TEMP_PREFIX, Store

_REGION_COLUMNS = ("region_id", "asset_id", "region_index", "part_id", "run_id", "mask", "area_px", "box_xyxy")
_LOGPROB_COLUMNS = ("token_logprobs", *(f"{task}_{language}_logprob" for task in TASKS for language in LANGUAGES))
_PARTS_AT_ONCE = 8
_EXPECTED_AT_ONCE = 65_536


def check_dataset(uri: str, deep: bool = True, expected: Iterable[str] | None = None) -> CheckReport:
    """Check a dataset and name every violation.

    deep: also decode every mask and compare its size, area and box, and look at the log-probabilities of tokens. expected: ids of the
    listed assets, to prove none was lost.
    Raises SourceError when there is no dataset at `uri`.
    """
    store = open_dataset(uri)
    report = CheckReport(store.uri)
    _check_marker(store, report)
    parts = {table: set(_parts(store, table, report)) for table in TABLES}
    _check_debris(store, report)
    for table, mark in COMMITTED_BY.items():
        for part in sorted(parts[table] - parts[mark]):
            message = f"there is no {mark} part of the same name, so this one was never committed; the next run removes it"
            report.add("orphan_part", message, table=table, part=part)
    runs = {path.split("/")[-1].removesuffix(".json") for path, _ in store.list(RUNS)}
    videos = VideoCheck(store, parts["clips"], parts["tracks"], runs, deep, report)
    keys, names = [np.empty((0, 2), dtype=np.uint64)], sorted(parts["assets"])

    def check_part(part: str) -> tuple[CheckReport, np.ndarray, list[dict[str, Any]]]:
        piece = report.of_a_piece()
        assets, video_rows = _check_assets(store, part, runs, piece)
        _check_regions(store, part, part in parts["regions"], assets, deep, piece)
        return piece, id_keys(assets), video_rows

    with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="check") as pool:
        for part, (piece, part_keys, video_rows) in zip(names, in_order(pool, check_part, names), strict=True):
            report.take(piece)
            keys.append(part_keys)
            videos.check_finished(pool, video_rows, part)
        all_keys = np.concatenate(keys)
        _check_repeats(store, names, [len(some) for some in keys[1:]], all_keys, report)
        found = DoneSet(all_keys, report.statuses, len(names))
        videos.check_unfinished(pool, found)
    if expected is not None:
        _check_expected(found, expected, report)
    return report


def _check_marker(store: Store, report: CheckReport) -> None:
    try:
        report.token_logprobs = bool(check_marker(store).get(TOKEN_LOGPROBS))
        report.schema_version = schema_version(store)
    except FileNotFoundError:
        report.add("marker", f"{MARKER} is missing; running the job again restores it")
    except WriteError as error:
        report.add("marker", error.message)


def _parts(store: Store, table: str, report: CheckReport) -> Iterator[str]:
    """Part ids of a table. Anything else in its folder is reported."""
    for path, _ in store.list(table):
        name = path.removeprefix(f"{table}/")
        match = PART_NAME.match(name)
        if match:
            report.num_parts += table in COMMITTED_BY.values()
            yield match["id"]
        elif TEMP_PREFIX not in path:
            report.add("unexpected_file", "not a part; readers of the folder would take it for one", table=table, part=name)


def _check_debris(store: Store, report: CheckReport) -> None:
    for path, _ in store.list():
        if TEMP_PREFIX in path and not path.startswith(f"{STAGING}/"):
            report.add("debris", f"{path} is a temporary file that a killed run left; the next run removes it")


def _check_assets(store: Store, part: str, runs: set[str], report: CheckReport) -> tuple[dict[str, AssetFacts], list[dict[str, Any]]]:
    """Facts by asset id, and the rows of videos; empty where the part cannot be read."""
    facts: dict[str, AssetFacts] = {}
    videos, before = [], damage(report)
    for rows in batches(store, "assets", part, report):
        videos += [row for row in rows if row["media_type"] == "video"]
        for row in rows:
            report.num_assets += 1
            report.statuses[row["status"]] += 1
            if row["asset_id"] in facts:
                report.add("duplicate_asset", "there twice in this part", table="assets", part=part, id=row["asset_id"])
            facts[row["asset_id"]] = asset_facts(row)
            report.add_all(asset_problems(row, part, runs), "assets", part)
    if not facts and damage(report) == before:
        report.add("empty_part", "there is no asset in it, so it commits nothing; the next run removes it", table="assets", part=part)
    if facts and part_id_of(facts) != part:
        message = f"the name should be part-{part_id_of(facts)}, from the assets in it: a part was renamed, copied or edited"
        report.add("part_name", message, table="assets", part=part)
    return facts, videos


def _check_regions(store: Store, part: str, exists: bool, assets: Mapping[str, AssetFacts], deep: bool, report: CheckReport) -> None:
    """Every region belongs to an asset of the same-named part, and each asset has as many as its row says."""
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    before = damage(report)
    columns = (*_REGION_COLUMNS, *_LOGPROB_COLUMNS) if deep else _REGION_COLUMNS
    for rows in batches(store, "regions", part, report, columns) if exists else ():
        for row in rows:
            report.num_regions += 1
            counts[row["asset_id"]] += 1
            if row["region_id"] in seen:
                report.add("duplicate_region", "there twice in this part", table="regions", part=part, id=row["region_id"])
            seen.add(row["region_id"])
        report.add_all(region_problems(rows, part, assets, deep, report.schema_version), "regions", part)
    if damage(report) > before:
        return  # what could not be read was not counted either
    if exists and not seen:
        report.add("empty_part", "there is no region in it", table="regions", part=part)
    for asset_id, facts in assets.items():
        if counts[asset_id] != facts.num_regions:
            message = f"num_regions says {facts.num_regions}, the regions part of the same name has {counts[asset_id]}"
            report.add("region_count", message, table="assets", part=part, id=asset_id)


def _check_repeats(store: Store, names: Sequence[str], sizes: Sequence[int], keys: np.ndarray, report: CheckReport) -> None:
    """Assets that are in more than one part, and their regions. Only parts with such an asset are read again, and only their ids."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    repeats = np.flatnonzero(np.all(keys[order[1:]] == keys[order[:-1]], axis=1))
    rows = np.unique(np.concatenate([order[repeats], order[repeats + 1]]))
    if not len(rows):
        return
    repeated = DoneSet(keys[rows], Counter(), 0)
    places: dict[tuple[str, str], list[str]] = {}
    for index in np.unique(np.searchsorted(np.cumsum(sizes), rows, side="right")):
        for table, column in (("assets", "asset_id"), ("regions", "region_id")):
            for row_id, asset_id in _ids(store, table, names[int(index)], column):
                if asset_id in repeated:
                    places.setdefault((table, row_id), []).append(names[int(index)])
    for (table, row_id), parts in places.items():
        if len(parts) > 1:
            code: Code = "duplicate_asset" if table == "assets" else "duplicate_region"
            report.add(code, f"in {len(parts)} parts: {', '.join(parts)}", table=table, part=parts[-1], id=row_id)


def _ids(store: Store, table: str, part: str, column: str) -> Iterator[tuple[str, str]]:
    if not store.exists(part_path(table, part)):
        return
    try:
        with store.open_input(part_path(table, part)) as source:
            rows = pq.ParquetFile(source).read([column, "asset_id"], use_threads=False)
    except (OSError, pa.ArrowException):  # already reported when the part itself was checked
        return
    yield from dict.fromkeys(zip(rows[column].to_pylist(), rows["asset_id"].to_pylist(), strict=True))


def _check_expected(found: DoneSet, expected: Iterable[str], report: CheckReport) -> None:
    expected = iter(expected)
    while some := list(islice(expected, _EXPECTED_AT_ONCE)):
        for i in np.flatnonzero(~found.contains(some)):
            report.add("lost_asset", "listed, but in no assets part", table="assets", id=some[int(i)])
