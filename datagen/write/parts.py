"""Parts: staged by workers, published by the driver alone, swept at the start of the next run.

A part has the same name in every table. Its last file, `assets` for images and `clips` for a video, is the commit mark.

A part is any number of images, or exactly one clip of a video. So a clip's part has a name that follows from the clip alone: every
attempt at the clip replaces itself, no part can hold both committed clips and others, and whoever knows a clip knows its file.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.errors import SchemaError, WriteError
from datagen.ids import clip_id_of, set_name
from datagen.job import WriteOptions
from datagen.records import Failure, Region, Sample, Track
from datagen.write.marker import schema_version
from datagen.write.rows import asset_row, clip_row
from datagen.write.schema import table_from_rows
from datagen.write.seals import parquet_bytes, seal_of
from datagen.write.store import STAGING, Store
from datagen.write.versions import rows_in_version

PART_NAME = re.compile(r"^part-(?P<id>[0-9a-f]{20})\.parquet$")

# Table -> the one whose part of the same name commits its own.
COMMITTED_BY = {"regions": "assets", "tracks": "clips"}

_LOGGED_CHARS = 2000

RegionRow = Callable[[Sample, Region, str], Mapping[str, Any]]
TrackRow = Callable[[Sample, Track, str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class StagedClip:
    """A clip as the driver needs it to complete its video: its row of `clips` without the hand-overs, and its tracks' ids."""

    row: dict[str, Any]
    track_ids: list[str]

    @property
    def asset_id(self) -> str:
        """The video."""
        return str(self.row["asset_id"])

    @property
    def clip_index(self) -> int:
        """Number of the clip within the video."""
        return int(self.row["clip_index"])


class FailedAsset(NamedTuple):
    """Why an asset of a part failed, and in which step."""

    asset_id: str
    step: str | None
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class StagedPart:
    """What the driver needs to know of a staged part, and all it gets: paths and counts.

    indices: `Sample.index` of each asset. statuses, failures (by code), dropped (regions or tracks by reason) and usage (tokens) are
    sums over the part's images, or of its one clip. files: table -> staged path in the order of publishing, the commit mark last;
    without `regions` or `tracks` where there are none. seal: content hash of the commit mark.
    clip: None for images. failed: the failed ones, for the log.
    """

    part_id: str
    run_id: str
    indices: list[int]
    num_bytes: int
    statuses: dict[str, int]
    failures: dict[str, int]
    dropped: dict[str, int]
    usage: dict[str, int]
    files: dict[str, str]
    seal: str
    num_regions: int = 0
    num_tracks: int = 0
    clip: StagedClip | None = None
    failed: list[FailedAsset] = field(default_factory=list)


def part_id_of(asset_ids: Iterable[str]) -> str:
    """A part's name: 20 hex digits that no other set of assets has, whatever their order (ids.set_name). Raises SchemaError for none."""
    ids = set(asset_ids)
    if not ids:
        raise SchemaError("a part needs at least one asset")
    return set_name(ids)


def clip_part_id(asset_id: str, clip_index: int) -> str:
    """The name of a clip's part."""
    return part_id_of([clip_id_of(asset_id, clip_index)])


def part_path(table: str, part_id: str) -> str:
    """Where a published part lies."""
    return f"{table}/part-{part_id}.parquet"


def stage_part(store: Store, run_id: str, samples: Sequence[Sample], options: WriteOptions, region_row: RegionRow) -> StagedPart:
    """Turn finished images into whole Parquet files under `_staging/<run_id>/`. Runs in a worker; publishes nothing.

    region_row(sample, region, run_id) gives a row of `regions` without its `part_id`. Raises SchemaError for a row outside the
    contract or a video, WriteError when the files cannot be written.
    """
    samples = sorted(samples, key=lambda sample: sample.index)
    ids = [sample.asset.asset_id for sample in samples]
    for sample in samples:
        if sample.asset.media_type != "image":
            raise SchemaError(f"{sample.asset.uri} is a {sample.asset.media_type}: its clips are parts of their own (stage_clip)")
    if len(set(ids)) != len(ids):
        twice = next(asset_id for asset_id, count in Counter(ids).items() if count > 1)
        raise SchemaError(f"asset {twice} is twice in one part; list each asset once", asset_id=twice)
    part_id, now = part_id_of(ids), datetime.now(UTC)
    version = schema_version(store)
    regions = [{**region_row(s, r, run_id), "part_id": part_id} for s in samples if s.failure is None for r in s.regions]
    assets = [asset_row(sample, part_id, run_id, now) for sample in samples]
    tables = {"regions": rows_in_version("regions", regions, version), "assets": rows_in_version("assets", assets, version)}
    return _stage(store, run_id, part_id, samples, tables, version, options, {"num_regions": len(regions)})


def stage_clip(store: Store, run_id: str, sample: Sample, options: WriteOptions, track_row: TrackRow) -> StagedPart:
    """Turn one finished clip into whole Parquet files under `_staging/<run_id>/`. Runs in a worker; publishes nothing.

    track_row(sample, track, run_id) gives a row of `tracks` without its `part_id`. Raises SchemaError for a row outside the
    contract or a sample without a clip, WriteError when the files cannot be written.
    """
    asset_id, clip = sample.asset.asset_id, sample.clip
    if clip is None or sample.asset.media_type != "video":
        raise SchemaError(f"{sample.asset.uri} ({sample.asset.media_type}) is no clip of a video", asset_id=asset_id)
    part_id, version = clip_part_id(asset_id, clip.clip_index), schema_version(store)
    made = [{**track_row(sample, track, run_id), "part_id": part_id} for track in sample.tracks if sample.failure is None]
    tracks = rows_in_version("tracks", made, version)
    (row,) = rows_in_version("clips", [clip_row(sample, clip, part_id, run_id, datetime.now(UTC))], version)
    track_ids = [str(track["track_id"]) for track in tracks]
    if len(set(track_ids)) != len(track_ids):
        twice = next(track_id for track_id, count in Counter(track_ids).items() if count > 1)
        raise SchemaError(f"track {twice} is twice in clip {clip.clip_index}; an object has one track per clip", asset_id=asset_id)
    staged = StagedClip({name: value for name, value in row.items() if name != "handovers"}, track_ids)
    tables = {"tracks": tracks, "clips": [row]}
    return _stage(store, run_id, part_id, [sample], tables, version, options, {"num_tracks": len(tracks), "clip": staged})


def _stage(
    store: Store,
    run_id: str,
    part_id: str,
    samples: Sequence[Sample],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    version: int,
    options: WriteOptions,
    more: Mapping[str, Any],
) -> StagedPart:
    made = {table: table_from_rows(table, rows, version) for table, rows in tables.items() if rows}
    return stage_tables(store, run_id, part_id, samples, made, options, more)


def stage_tables(
    store: Store,
    run_id: str,
    part_id: str,
    samples: Sequence[Sample],
    tables: Mapping[str, pa.Table],
    options: WriteOptions,
    more: Mapping[str, Any],
) -> StagedPart:
    """Write one file per table, the commit mark's last. All are made before the first is written.

    more: what the staged part says beyond, or instead of, what the samples say.
    """
    data: dict[str, pa.Buffer] = {}
    seals: dict[str, str] = {}
    for table, rows in tables.items():  # the commit mark last
        commits = dict(seals) if table in COMMITTED_BY.values() else None
        data[table] = parquet_bytes(rows, options, commits)
        seals[table] = seal_of(data[table])
    # Two attempts at the same part (Ray retries a task whose worker it gave up on) never share a file.
    attempt = uuid.uuid4().hex[:8]
    files = {table: f"{STAGING}/{run_id}/{table}-{part_id}-{attempt}.parquet" for table in data}
    for table, path in files.items():
        store.write(path, data[table])
    said: dict[str, Any] = {
        "statuses": dict(Counter(sample.status for sample in samples)),
        "failures": dict(Counter(sample.failure.code for sample in samples if sample.failure)),
        "dropped": _sum(sample.dropped for sample in samples),
        "usage": _sum(sample.usage for sample in samples),
        "failed": [_failed(sample.asset.asset_id, sample.failure) for sample in samples if sample.failure],
    }
    return StagedPart(
        part_id=part_id,
        run_id=run_id,
        indices=[sample.index for sample in samples],
        num_bytes=sum(len(some) for some in data.values()),
        files=files,
        seal=seals[list(data)[-1]],
        **(said | dict(more)),
    )


def _failed(asset_id: str, failure: Failure) -> FailedAsset:
    return FailedAsset(asset_id, failure.step, failure.code, failure.message[:_LOGGED_CHARS])


def publish_part(store: Store, staged: StagedPart) -> None:
    """Commit a staged part, its commit mark last. Only the driver calls it, for parts of its own run; repeating it is harmless.

    Raises WriteError when the staged files are gone, when the files cannot be moved, or when other rows than these are committed under
    the part's name.
    """
    *_, commit_mark = staged.files
    if is_committed(store, commit_mark, staged.part_id, staged.files[commit_mark]):
        return
    for table, path in staged.files.items():
        target = part_path(table, staged.part_id)
        if store.exists(path):
            store.move(path, target)
        elif not store.exists(target):
            raise WriteError(f"the staged part {path} is gone from {store.uri}; did another run clean it up? Rerun to do it again.")


def is_committed(store: Store, mark: str, part_id: str, staged: str | None = None) -> bool:
    """Whether a part is committed: looks into its mark, a part of `assets` or `clips`. One without rows commits nothing.

    staged: the file that is to take that place, for the message. Raises WriteError when the mark holds other rows than its name says, or
    cannot be read.
    """
    if not store.exists(part_path(mark, part_id)):
        return False
    held = _committed_ids(store, mark, part_path(mark, part_id))
    if held and part_id_of(held) != part_id:
        expected = _named(_committed_ids(store, mark, staged)) if staged and store.exists(staged) else f"those that are named {part_id}"
        raise WriteError(
            f"{store.uri}/{part_path(mark, part_id)} holds {_named(held)}, where {expected} belong: it was renamed, copied or edited. "
            f"Nothing was written over it. `datagen check {store.uri}` names all damage; a part that is moved away is done again."
        )
    return bool(held)


def _committed_ids(store: Store, mark: str, path: str) -> list[str]:
    if mark == "assets":
        ids: list[str] = read_columns(store, path, ["asset_id"])["asset_id"].to_pylist()
        return ids
    return [clip_id_of(row["asset_id"], row["clip_index"]) for row in read_columns(store, path, ["asset_id", "clip_index"]).to_pylist()]


def _named(ids: Sequence[str]) -> str:
    return ", ".join(map(ascii, sorted(ids)[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def read_part(store: Store, table: str, part: str, columns: list[str]) -> pa.Table:
    """Some columns of one published part. Raises WriteError when it cannot be read."""
    return read_columns(store, part_path(table, part), columns)


def read_columns(store: Store, path: str, columns: list[str]) -> pa.Table:
    """Some columns of a file of a table, published or staged. Raises WriteError when it cannot be read."""
    try:
        with store.open_input(path) as source:
            return pq.ParquetFile(source).read(columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise WriteError(
            f"{store.uri}/{path} cannot be read: {error}. `datagen check {store.uri}` names all damage. A part that is removed is done "
            "again by the next run: of images from assets/ and regions/, of a clip from clips/ and tracks/, with its video's from assets/."
        ) from error


def remove_empty(store: Store, parts: Iterable[str]) -> list[str]:
    """Remove parts of `assets` that have no rows and so commit nothing, with the regions of the same name; returns their paths.

    Call it under the lease.
    """
    removed = [part_path(table, part) for part in parts for table in ("assets", "regions")]
    for path in removed:
        store.delete(path)
    return removed


def sweep(store: Store) -> list[str]:
    """Remove what a killed run left: parts without their commit mark, staged files, half-written files. Returns their paths.

    Call it under the lease and before anything is listed.
    """
    orphans = [part_path(table, part) for table in COMMITTED_BY for part in uncommitted_parts(store, table)]
    staged = [path for path, _ in store.list(STAGING)]
    for path in orphans:
        store.delete(path)
    debris = store.clean()
    store.delete_tree(STAGING)
    return [*orphans, *debris, *staged]


def part_ids(store: Store, table: str) -> Iterator[str]:
    """Names of a table's published parts, in order."""
    for path, _ in store.list(table):
        match = PART_NAME.match(path.removeprefix(f"{table}/"))
        if match:
            yield match["id"]


def uncommitted_parts(store: Store, table: str) -> Iterator[str]:
    """Names of the parts of `regions` or `tracks` that no part of the same name in `assets` or `clips` commits."""
    marks = part_ids(store, COMMITTED_BY[table])
    mark = next(marks, None)
    for part in part_ids(store, table):  # both come in the order of names, so none need be kept
        while mark is not None and mark < part:
            mark = next(marks, None)
        if mark != part:
            yield part


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
