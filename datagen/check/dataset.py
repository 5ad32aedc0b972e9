"""The check of a whole dataset: its folder, and its images part by part; its videos are checked in check/videos.py.

A few parts are read at the same time; what must be known of the whole dataset is 16 bytes per asset and the name of every part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datagen.at_once import in_order
from datagen.check.hashes import Hashes
from datagen.check.parts import UNREAD, batches, damage, record_batches, rows_of
from datagen.check.report import CheckReport, Code
from datagen.check.rows import AssetFacts, asset_facts, asset_problems, region_problems
from datagen.check.runs import RunFacts, check_counts, check_notes, check_runs
from datagen.check.texts import region_text_problems
from datagen.check.videos import VideoCheck
from datagen.errors import WriteError
from datagen.ids import asset_id_of
from datagen.records import LANGUAGES, TASKS
from datagen.write.done import DoneSet, id_keys
from datagen.write.layout import open_dataset
from datagen.write.marker import MARKER, TOKEN_LOGPROBS, check_marker, schema_version
from datagen.write.parts import COMMITTED_BY, PART_NAME, part_id_of, part_path
from datagen.write.parts_list import listed_marks
from datagen.write.retries import ASIDE
from datagen.write.schema import TABLES
from datagen.write.store import STAGING, TEMP_PREFIX, Store

_REGION_COLUMNS = (
    *("region_id", "asset_id", "region_index", "prompt", "mask", "mask_source", "area_px", "box_xyxy"),
    *("predicted_iou", "stability", "object_score", "flags", "part_id", "run_id"),
)
_LOGPROB_COLUMNS = ("token_logprobs", *(f"{task}_{language}_logprob" for task in TASKS for language in LANGUAGES))
_PARTS_AT_ONCE = 8
_NO_KEYS = np.empty((0, 2), dtype=np.uint64)
_EXPECTED_AT_ONCE = 65_536


def check_dataset(uri: str, deep: bool = True, expected: Iterable[str] | None = None, *, hashes: bool = True) -> CheckReport:
    """Check a dataset and name every violation.

    deep: also decode every mask and compare its size, area and box, and look at the log-probabilities of tokens. expected: ids of the
    listed assets, to prove none was lost. hashes: also hold every part against its content hash; without, only what is in it is judged.
    Raises SourceError when there is no dataset at `uri`.
    """
    store = open_dataset(uri)
    report = CheckReport(store.uri)
    _check_marker(store, report)
    report.hashes = _hashes(store, report) if hashes else None
    parts = {table: set(_parts(store, table, report)) for table in TABLES}
    _check_debris(store, report)
    for table, mark in COMMITTED_BY.items():
        for part in sorted(parts[table] - parts[mark]):
            message = f"there is no {mark} part of the same name, so this one was never committed; the next run removes it"
            report.add("orphan_part", message, table=table, part=part)
    runs = check_runs(store, report)
    check_notes(store, report)
    counted: dict[str, Counter[str]] = {}
    videos = VideoCheck(store, parts["clips"], parts["tracks"], runs, deep, report)
    keys, uris, names = [_NO_KEYS], [_NO_KEYS], sorted(parts["assets"])

    def check_part(part: str) -> _Piece:
        piece = report.of_a_piece()
        read = _check_assets(store, part, runs, piece)
        _check_regions(store, part, part in parts["regions"], read.assets, runs, deep, piece)
        return _Piece(piece, id_keys(read.assets), id_keys(read.uris), read.videos, read.counted)

    with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="check") as pool:
        for part, piece in zip(names, in_order(pool, check_part, names), strict=True):
            report.take(piece.report)
            keys.append(piece.ids)
            uris.append(piece.uris)
            for run_id, statuses in piece.counted.items():
                counted.setdefault(run_id, Counter()).update(statuses)
            videos.check_finished(pool, piece.videos, part)
        all_keys = np.concatenate(keys)
        _check_repeats(store, names, [len(some) for some in keys[1:]], all_keys, report)
        found = DoneSet(all_keys, report.statuses, len(names))
        videos.check_unfinished(pool, found)
    if not any(run is None or run.may_repeat_uris for run in runs.values()):
        _check_uris(store, names, [len(some) for some in uris[1:]], np.concatenate(uris), report)
    if not any(violation.table == "assets" and violation.code in UNREAD for violation in report.violations):
        check_counts(runs, counted, videos.num_complete + _num_aside(store), report)
    if report.hashes is not None:
        report.num_unlisted_parts = report.hashes.unlisted
        for table, part in report.hashes.lost(parts):
            report.add(
                "lost_part", "a run has committed it, and it is not there; the next run does what was in it again", table=table, part=part
            )
    if expected is not None:
        _check_expected(found, expected, report)
    return report


def _hashes(store: Store, report: CheckReport) -> Hashes:
    try:
        return Hashes.of(store)
    except WriteError as error:
        report.add("run_record", error.message)
        return Hashes(listed_marks(()))


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


def _num_aside(store: Store) -> int:
    """Failed assets that a killed run had taken out to try again; the next run brings them back."""
    count = 0
    for path, _ in store.list(f"{ASIDE}/assets"):
        with suppress(OSError, pa.ArrowException), store.open_input(path) as source:
            count += pq.read_metadata(source).num_rows
    return count


class _Piece(NamedTuple):
    """What is left of a part once it was checked: what was found, keys of ids and of URIs, rows of videos, rows by run and status."""

    report: CheckReport
    ids: np.ndarray
    uris: np.ndarray
    videos: list[dict[str, Any]]
    counted: dict[str, Counter[str]]


@dataclass
class _Assets:
    """The rows of a part of `assets`: facts by id, the URIs of files that were read, rows of videos, rows by run and status."""

    assets: dict[str, AssetFacts] = field(default_factory=dict)
    uris: list[str] = field(default_factory=list)
    videos: list[dict[str, Any]] = field(default_factory=list)
    counted: dict[str, Counter[str]] = field(default_factory=dict)


def _check_assets(store: Store, part: str, runs: Mapping[str, RunFacts | None], report: CheckReport) -> _Assets:
    """What is in a part; nothing where it cannot be read."""
    found, before = _Assets(), damage(report)
    facts = found.assets
    for rows in batches(store, "assets", part, report):
        found.videos += [row for row in rows if row["media_type"] == "video"]
        found.uris += [row["uri"] for row in rows if row["sha256"] is not None]
        for row in rows:
            report.num_assets += 1
            report.statuses[row["status"]] += 1
            found.counted.setdefault(row["run_id"], Counter())[row["status"]] += 1
            if row["asset_id"] in facts:
                report.add("duplicate_asset", "there twice in this part", table="assets", part=part, id=row["asset_id"])
            facts[row["asset_id"]] = asset_facts(row)
            report.add_all(asset_problems(row, part, runs), "assets", part)
    if not facts and damage(report) == before:
        report.add("empty_part", "there is no asset in it, so it commits nothing; the next run removes it", table="assets", part=part)
    if facts and part_id_of(facts) != part:
        message = f"the name should be part-{part_id_of(facts)}, from the assets in it: a part was renamed, copied or edited"
        report.add("part_name", message, table="assets", part=part)
    return found


def _check_regions(
    store: Store,
    part: str,
    exists: bool,
    assets: Mapping[str, AssetFacts],
    runs: Mapping[str, RunFacts | None],
    deep: bool,
    report: CheckReport,
) -> None:
    """Every region belongs to an asset of the same-named part, and each asset has as many as its row says."""
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    before = damage(report)
    columns = (*_REGION_COLUMNS, *_LOGPROB_COLUMNS) if deep else _REGION_COLUMNS
    for batch in record_batches(store, "regions", part, report) if exists else ():
        rows = rows_of(batch, columns)
        for row in rows:
            report.num_regions += 1
            counts[row["asset_id"]] += 1
            if row["region_id"] in seen:
                report.add("duplicate_region", "there twice in this part", table="regions", part=part, id=row["region_id"])
            seen.add(row["region_id"])
        report.add_all(region_problems(rows, part, assets, deep, report.schema_version), "regions", part)
        report.add_all(region_text_problems(batch, runs), "regions", part)
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
    repeated, parts_of = _repeats(names, sizes, keys)
    places: dict[tuple[str, str], list[str]] = {}
    for part in parts_of:
        for table, column in (("assets", "asset_id"), ("regions", "region_id")):
            for row_id, asset_id in _columns(store, table, part, [column, "asset_id"]):
                if asset_id in repeated:
                    places.setdefault((table, row_id), []).append(part)
    for (table, row_id), parts in places.items():
        if len(parts) > 1:
            code: Code = "duplicate_asset" if table == "assets" else "duplicate_region"
            report.add(code, f"in {len(parts)} parts: {', '.join(parts)}", table=table, part=parts[-1], id=row_id)


def _check_uris(store: Store, names: Sequence[str], sizes: Sequence[int], keys: np.ndarray, report: CheckReport) -> None:
    """Files that are in the table under more than one id. The ids that an input gives may share a file; those made from URIs may not."""
    repeated, parts = _repeats(names, sizes, keys)
    places: dict[str, dict[str, tuple[str, str]]] = {}
    for part in parts:
        for asset_id, uri, sha256 in _columns(store, "assets", part, ["asset_id", "uri", "sha256"]):
            if sha256 is not None and uri in repeated:
                places.setdefault(uri, {})[asset_id] = sha256, part
    for uri, files in places.items():
        if len(files) > 1 and (asset_id_of(uri) in files or len({sha256 for sha256, _ in files.values()}) > 1):
            message = f"{uri!r:.200} is also in the table as {', '.join(sorted(files)[:-1])}: one file, done under {len(files)} ids"
            report.add("duplicate_uri", message, table="assets", part=files[max(files)][1], id=max(files))


def _repeats(names: Sequence[str], sizes: Sequence[int], keys: np.ndarray) -> tuple[DoneSet, list[str]]:
    """The keys that are there more than once, and the parts that have one. sizes: how many keys each part has, in the order of `keys`."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    repeats = np.flatnonzero(np.all(keys[order[1:]] == keys[order[:-1]], axis=1))
    rows = np.unique(np.concatenate([order[repeats], order[repeats + 1]]))
    return DoneSet(keys[rows], Counter(), 0), [
        names[int(index)] for index in np.unique(np.searchsorted(np.cumsum(sizes), rows, side="right"))
    ]


def _columns(store: Store, table: str, part: str, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Some columns of a part, row by row, equal rows once; nothing of one that is not there."""
    if not store.exists(part_path(table, part)):
        return
    try:
        with store.open_input(part_path(table, part)) as source:
            rows = pq.ParquetFile(source).read(columns, use_threads=False)
    except (OSError, pa.ArrowException):  # already reported when the part itself was checked
        return
    yield from dict.fromkeys(zip(*(rows[column].to_pylist() for column in columns), strict=True))


def _check_expected(found: DoneSet, expected: Iterable[str], report: CheckReport) -> None:
    expected = iter(expected)
    while some := list(islice(expected, _EXPECTED_AT_ONCE)):
        for i in np.flatnonzero(~found.contains(some)):
            report.add("lost_asset", "listed, but in no assets part", table="assets", id=some[int(i)])
