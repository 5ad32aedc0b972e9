"""Videos clip by clip: what earlier runs committed, in which order clips are published, and when a video is finished.

The clip is the unit of commit, so a crash in hour two does not redo hour one. The clips of a video are published in order: what is
committed of it is always its beginning, made in one piece, and the next run goes on right behind with the objects handed over.
A video's row in `assets` is a function of its committed clips alone. It can be written at any time after the last of them, by
any run, and is the same row each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np

from datagen.errors import WriteError
from datagen.ids import track_id_of
from datagen.job import WriteOptions
from datagen.records import RLE, Clip, Handover, Prompt, ResumePoint
from datagen.write.done import DoneSet, done_assets, id_keys, read_parts
from datagen.write.parts import (
    StagedClip,
    StagedPart,
    clip_part_id,
    is_committed,
    part_id_of,
    part_ids,
    part_path,
    publish_part,
    read_part,
)
from datagen.write.parts_list import NO_LOG, MarksLog
from datagen.write.rows import VideoTotals
from datagen.write.schema import arrow_schema
from datagen.write.seals import parquet_bytes, seal_of
from datagen.write.store import Store
from datagen.write.versions import table_for, track_number

_NAMES_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class FinishedVideo:
    """A video whose clips are all committed: its row of `assets` without the `part_id`.

    index: `Sample.index` in this run; None when an earlier run published the last clip.
    """

    row: dict[str, Any]
    index: int | None


@dataclass(slots=True)
class _Video:
    """An unfinished video. committed: clips behind a gap, where a part was removed by hand. waiting: staged, behind one still to come."""

    totals: VideoTotals = field(default_factory=VideoTotals)
    committed: dict[int, StagedClip] = field(default_factory=dict)
    waiting: dict[int, StagedPart] = field(default_factory=dict)
    index: int | None = None


class VideoProgress:
    """The videos that have clips but no row in `assets` yet: those that earlier runs left, and those of this run.

    The driver has one, made after the sweep and under the lease. Memory is that of unfinished videos, a few small values per clip
    that waits and per object; finished ones leave nothing behind. Raises WriteError for a part that cannot be read.
    """

    def __init__(self, store: Store, done: DoneSet) -> None:
        self._store = store
        self._videos: dict[str, _Video] = {}
        self._finished: list[FinishedVideo] = []
        for clip in _open_clips(store, done):
            self._videos.setdefault(clip.asset_id, _Video()).committed[clip.clip_index] = clip
        for asset_id in list(self._videos):
            self._advance(asset_id)

    def resume_point(self, asset_id: str) -> ResumePoint | None:
        """Where to go on in a video; None when nothing of it is committed. Its objects come from the last committed clip."""
        video = self._videos.get(asset_id)
        if video is None or not video.totals.num_clips:
            return None
        totals = video.totals
        last = _read_clip(self._store, clip_part_id(asset_id, totals.num_clips - 1))
        return ResumePoint(totals.num_clips, totals.end_s, totals.next_track, last.handovers, totals.shot_start_s)

    def asked(self, asset_id: str) -> str | None:
        """The hash of the prompts that the committed clips of an unfinished video were made with; None where they do not say."""
        video = self._videos.get(asset_id)
        return None if video is None else video.totals.prompts_hash

    def is_committed(self, asset_id: str, clip_index: int) -> bool:
        """Whether a clip is published, by this run or an earlier one, its video finished or not."""
        return is_committed(self._store, "clips", clip_part_id(asset_id, clip_index))

    def publish(self, part: StagedPart) -> list[StagedPart]:
        """Commit a staged clip, and those that waited for it, once all clips before it are; returns what was committed.

        A clip that comes before its turn waits, staged, and is lost with this run. One that is committed already (a retried worker
        yields clips again) is left aside. Raises WriteError as publish_part does, and for a part that is no clip.
        """
        clip = part.clip
        if clip is None:
            raise WriteError(f"part {part.part_id} is no clip of a video; publish it with publish_part")
        if is_committed(self._store, "clips", part.part_id, part.files["clips"]):
            return []
        video = self._videos.setdefault(clip.asset_id, _Video())
        video.index = part.indices[0]
        video.waiting[clip.clip_index] = part
        return self._advance(clip.asset_id)

    def finished(self, minimum: int = 1) -> list[FinishedVideo]:
        """The videos completed since the last call, to be written by publish_video_assets; none while they are fewer than `minimum`."""
        if len(self._finished) < minimum:
            return []
        finished, self._finished = self._finished, []
        return finished

    @property
    def num_waiting(self) -> int:
        """Staged clips that wait for an earlier one."""
        return sum(len(video.waiting) for video in self._videos.values())

    def _advance(self, asset_id: str) -> list[StagedPart]:
        """Go on in a video as far as its clips reach without a gap."""
        video = self._videos[asset_id]
        totals = video.totals
        published: list[StagedPart] = []
        while not totals.is_complete:
            clip = video.committed.pop(totals.num_clips, None)
            if clip is None:
                part = video.waiting.pop(totals.num_clips, None)
                if part is None or part.clip is None:
                    return published
                publish_part(self._store, part)
                published.append(part)
                clip = part.clip
            totals.add(clip.row, clip.track_ids)
        self._finished.append(FinishedVideo(totals.asset_row(), video.index))
        del self._videos[asset_id]
        return published


def committed_clips(store: Store, asset_id: str, start: int) -> Iterator[Clip]:
    """The clips of a video from number `start` on that are committed by now, as far as they reach without a gap.

    Any process may ask: the driver publishes a video's clips in order. Raises WriteError for a part that cannot be read.
    """
    for index in count(start):
        part = clip_part_id(asset_id, index)
        if not is_committed(store, "clips", part):
            return
        yield _read_clip(store, part)


def resume_videos(
    store: Store,
    options: WriteOptions,
    log: MarksLog = NO_LOG,
    see: Callable[[str, str | None], None] = lambda part, seal: None,
) -> tuple[DoneSet, VideoProgress]:
    """What is done, and what is begun. Videos that a killed run completed without writing their rows get them now.

    Call it under the lease, after the sweep. log: is told of these rows. see: as in done_assets, of the parts there were
    before. Raises WriteError for a part that cannot be read or written.
    """
    done = done_assets(store, see)
    progress = VideoProgress(store, done)
    found = progress.finished()
    if found:
        publish_video_assets(store, [video.row for video in found], options, log)
        done = done_assets(store)
    return done, progress


def publish_video_assets(store: Store, rows: Sequence[Mapping[str, Any]], options: WriteOptions, log: MarksLog = NO_LOG) -> None:
    """Write these rows of finished videos to `assets`; failed ones in a part of their own, which a later run can take out again.

    Only the driver calls it. After a crash before it, the next run finds the videos complete.
    log: is told of the parts. Raises SchemaError, WriteError.
    """
    for is_failed in (False, True):
        some = [row for row in rows if (row["status"] == "failed") == is_failed]
        if some:
            write_assets(store, some, options, log)


def write_assets(store: Store, rows: Sequence[Mapping[str, Any]], options: WriteOptions, log: MarksLog = NO_LOG) -> None:
    """Write rows of `assets`, without their `part_id`, that commit no regions. Raises WriteError where rows of other assets are."""
    part_id = part_id_of(row["asset_id"] for row in rows)
    is_committed(store, "assets", part_id)
    data = parquet_bytes(table_for(store, "assets", [{**row, "part_id": part_id} for row in rows]), options, commits={})
    store.write(part_path("assets", part_id), data)
    log.committed("assets", part_id, seal_of(data))


def finished_clip_parts(store: Store) -> DoneSet:
    """Names of the clips parts of all videos that have a row in `assets`, without opening one of them. 16 bytes per clip."""
    keys = [np.empty((0, 2), dtype=np.uint64)]
    for table in read_parts(store, "assets", part_ids(store, "assets"), ["asset_id", "num_clips"]):
        clips = ((row["asset_id"], index) for row in table.to_pylist() for index in range(row["num_clips"] or 0))
        keys.append(id_keys(clip_part_id(asset_id, index) for asset_id, index in clips))
    return DoneSet(np.concatenate(keys))


def unfinished_clip_parts(store: Store, finished: DoneSet) -> Iterator[str]:
    """Names of the clips parts that are there and not among the finished ones."""
    parts = part_ids(store, "clips")
    while some := list(islice(parts, _NAMES_AT_ONCE)):
        yield from (part for part, known in zip(some, finished.contains(some), strict=True) if not known)


def _open_clips(store: Store, done: DoneSet) -> Iterator[StagedClip]:
    """The committed clips of videos without a row in `assets`. Only their parts are opened, however large the dataset is."""
    if next(part_ids(store, "clips"), None) is None:
        return
    columns = [name for name in arrow_schema("clips").names if name != "handovers"]
    for table in read_parts(store, "clips", unfinished_clip_parts(store, finished_clip_parts(store)), columns):
        for row in table.to_pylist():
            if row["asset_id"] not in done:
                yield StagedClip(row, _track_ids(store, row))


def _track_ids(store: Store, clip: Mapping[str, Any]) -> list[str]:
    if not clip["num_tracks"]:
        return []
    ids: list[str] = read_part(store, "tracks", clip["part_id"], ["track_id"])["track_id"].to_pylist()
    return ids


def _read_clip(store: Store, part: str) -> Clip:
    names = ("clip_index", "start_s", "end_s", "num_frames", "is_last", "truncated", "next_track", "missing_frames", "flags")
    row = read_part(store, "clips", part, ["asset_id", *names, "handovers"]).to_pylist()[
        0
    ]  # without the columns that its schema does not have
    asset_id, handovers = row.pop("asset_id"), row.pop("handovers")
    return Clip(**row, handovers=[_handover(asset_id, item) for item in handovers])


def _handover(asset_id: str, item: Mapping[str, Any]) -> Handover:
    more = {name: item[name] for name in ("object_id", "seen_s", "unseen_s") if name in item}
    number = track_number(asset_id, item["track_id"])
    return Handover(item["track_id"] if number is None else track_id_of(asset_id, number), _prompt(item["prompt"]), **more)


def _prompt(stored: Mapping[str, Any]) -> Prompt:
    box, mask = stored["box"], stored["mask"]
    rle: RLE | None = {"size": list(mask["size"]), "counts": mask["counts"]} if mask else None
    return Prompt(
        box=(box[0], box[1], box[2], box[3]) if box else None,
        points=[(x, y) for x, y in stored["points"]],
        labels=list(stored["labels"]),
        mask=rle,
        source=stored["source"],
    )
