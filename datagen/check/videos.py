"""The clips of videos: each there once, one after the other, with its tracks; and the video's row of `assets` is what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, groupby, islice, pairwise
from typing import Any, NamedTuple

from datagen.at_once import in_order
from datagen.check.parts import batches, damage
from datagen.check.report import CheckReport, Code
from datagen.check.runs import RunFacts
from datagen.check.tracks import TOLERANCE_S, Timeline, clip_problems, timeline_problems, track_problems
from datagen.write.done import DoneSet
from datagen.write.parts import clip_part_id
from datagen.write.rows import VideoTotals
from datagen.write.store import Store

_CODES: Mapping[str, Code] = {"num_tracks": "track_count", "status": "status"}


class _Tracks(NamedTuple):
    """The tracks of a clip. ids: None when they could not all be read. frames: numbers of the first and the last frame of any."""

    ids: list[str] | None
    frames: tuple[int, int] | None


class _Clip(NamedTuple):
    """What a clip is held against the others of its video."""

    part: str
    clip_id: str
    asset_id: str
    clip_index: int
    start_s: float
    end_s: float
    is_last: bool
    frames: tuple[int, int] | None


class _Read(NamedTuple):
    """A part of `clips` with its tracks. clip, row: None when the clip it is named for is not in it. track_ids: as in _Tracks."""

    report: CheckReport
    clip: _Clip | None
    row: Mapping[str, Any] | None
    track_ids: list[str] | None


class VideoCheck:
    """Checks videos one by one, in the order of `assets`; what is left of `clips` then belongs to unfinished ones.

    clips, tracks: names of the parts that there are. runs: what each run that left a record was asked for. deep: also decode the masks.
    num_complete: videos whose last clip is there, and no row in `assets` yet.
    A few parts are read at the same time; in memory are the track ids of one video, and of unfinished videos a few numbers per clip.
    """

    def __init__(
        self, store: Store, clips: set[str], tracks: set[str], runs: Mapping[str, RunFacts | None], deep: bool, report: CheckReport
    ) -> None:
        self._store, self._report = store, report
        self._clips, self._tracks, self._runs, self._deep = clips, tracks, runs, deep
        self._left = set(clips)
        self.num_complete = 0

    def check_finished(self, pool: ThreadPoolExecutor, rows: Sequence[Mapping[str, Any]], part: str) -> None:
        """Check the videos' rows in a part of `assets`, all their clips and the tracks of these."""
        videos = [(row, names) for row in rows if (names := self._taken(row)) is not None]
        reads = in_order(pool, self._read, (name for _, names in videos for name in names.values()))
        for row, names in videos:
            self._check_video(row, names, reads, part)

    def _taken(self, row: Mapping[str, Any]) -> dict[int, str] | None:
        """The parts of a video's clips, which belong to nobody else; None for one that is in `assets` twice, which is reported as that."""
        names = self._part_names(row["asset_id"], row["num_clips"] or 0)
        if not self._left.issuperset(names.values()):
            return None
        self._left.difference_update(names.values())
        return names

    def _check_video(self, row: Mapping[str, Any], names: Mapping[int, str], reads: Iterator[_Read], part: str) -> None:
        asset_id, num_clips = row["asset_id"], row["num_clips"] or 0
        is_counted = len(names) == num_clips and num_clips == max(names, default=-1) + 1 > 0
        if not is_counted:
            message = f"num_clips says {num_clips}, the clips are {_ranges(names) or 'none'}"
            self._report.add("clip_count", message, table="assets", part=part, id=asset_id)
        totals, clips = VideoTotals(), []
        for read in islice(reads, len(names)):
            self._report.take(read.report)
            if read.row is not None and read.track_ids is not None:
                totals.add(read.row, read.track_ids)
            if read.clip is not None:
                clips.append(read.clip)
        self._check_order(clips, ends=is_counted and len(clips) == num_clips)
        if is_counted and totals.num_clips == num_clips:
            self._compare(row, totals.asset_row(), part)

    def check_unfinished(self, pool: ThreadPoolExecutor, finished: DoneSet) -> None:
        """Check the clips that no row of `assets` has asked for. finished: the ids of all assets."""
        videos: dict[str, list[_Clip]] = {}
        for read in in_order(pool, self._read, sorted(self._left)):
            self._report.take(read.report)
            clip = read.clip
            if clip is None:
                continue
            if clip.asset_id in finished:
                message = "its asset has a row in assets and is finished without it"
                self._report.add("stray_clip", message, table="clips", part=clip.part, id=clip.clip_id)
            else:
                videos.setdefault(clip.asset_id, []).append(clip)
        self.num_complete = sum(any(clip.is_last for clip in clips) for clips in videos.values())
        for clips in videos.values():
            self._check_order(sorted(clips, key=lambda clip: clip.clip_index), ends=False)
        self._report.num_unfinished_videos = len(videos)
        self._report.num_unfinished_clips = sum(map(len, videos.values()))

    def _part_names(self, asset_id: str, num_clips: int) -> dict[int, str]:
        """Clip index -> part, of those that there are: below num_clips, and behind it without a gap."""
        names = {}
        for index in count():
            name = clip_part_id(asset_id, index)
            if name in self._clips:
                names[index] = name
            elif index >= min(num_clips, len(self._clips)):
                break
        return names

    def _read(self, part: str) -> _Read:
        """Check a clips part and the tracks part of the same name. In any thread; what it finds is in a report of its own."""
        report = self._report.of_a_piece()
        rows = [row for batch in batches(self._store, "clips", part, report) for row in batch]
        report.num_clips += len(rows)
        if not rows and not damage(report):
            report.add("empty_part", "there is no clip in it", table="clips", part=part)
        own = [row for row in rows if self._is_in_place(row, part, report)]
        if not own:
            return _Read(report, None, None, None)
        row = own[0]
        if len(own) > 1:
            report.add("duplicate_clip", f"there {len(own)} times in this part", table="clips", part=part, id=row["clip_id"])
        report.add_all(clip_problems(row, part, self._runs, self._deep), "clips", part)
        tracks = self._check_tracks(row, part, report)
        times = row["start_s"], row["end_s"]
        clip = _Clip(part, row["clip_id"], row["asset_id"], row["clip_index"], *times, row["is_last"], tracks.frames)
        return _Read(report, clip, row, tracks.ids)

    def _is_in_place(self, row: Mapping[str, Any], part: str, report: CheckReport) -> bool:
        name = clip_part_id(row["asset_id"], row["clip_index"])
        if name != part:
            message = f"the name should be part-{name}, from the clip in it: a part was renamed, copied or edited"
            report.add("part_name", message, table="clips", part=part, id=row["clip_id"])
            if name in self._clips:
                report.add("duplicate_clip", f"in 2 parts: {name}, {part}", table="clips", part=part, id=row["clip_id"])
        return name == part

    def _check_tracks(self, clip: Mapping[str, Any], part: str, report: CheckReport) -> _Tracks:
        before, found, timelines = damage(report), list[tuple[str, int]](), list[Timeline]()
        run = self._runs.get(clip["run_id"])
        for rows in batches(self._store, "tracks", part, report) if part in self._tracks else ():
            found += [(row["track_id"], row["object_index"]) for row in rows]
            timelines += map(Timeline.of, rows)
            report.add_all(track_problems(rows, clip, part, run, self._deep), "tracks", part)
        report.num_tracks += len(found)
        objects = dict(found)
        _check_repeats(found, objects, part, report)
        frames = [index for timeline in timelines for index, _ in timeline.frames]
        span = (min(frames), max(frames)) if frames else None
        report.add_all(timeline_problems(timelines, clip, run), "tracks", part)
        if damage(report) > before:
            return _Tracks(None, span)
        if part in self._tracks and not found:
            report.add("empty_part", "there is no track in it", table="tracks", part=part)
        if len(objects) != clip["num_tracks"]:
            message = f"num_tracks says {clip['num_tracks']}, the tracks part of the same name has {len(objects)}"
            report.add("track_count", message, table="clips", part=part, id=clip["clip_id"])
        return _Tracks(list(objects), span)

    def _check_order(self, clips: Sequence[_Clip], ends: bool) -> None:
        """Clips of one video in order: each begins where the one before ends, and only the last one `ends` the video, if it is there."""
        last_frame = -1
        for clip in clips:
            if clip.frames is not None:
                if clip.frames[0] <= last_frame:
                    message = f"its tracks begin at frame {clip.frames[0]} of the video, an earlier clip's end at {last_frame}"
                    self._report.add("frame_index", message, table="tracks", part=clip.part, id=clip.clip_id)
                last_frame = max(last_frame, clip.frames[1])
        for clip, following in pairwise(clips):
            if clip.is_last:
                message = f"is_last says that the video ends with it, but there is clip {following.clip_index}"
                self._report.add("last_clip", message, table="clips", part=clip.part, id=clip.clip_id)
            is_next = following.clip_index == clip.clip_index + 1
            if is_next and abs(following.start_s - clip.end_s) > TOLERANCE_S:
                message = f"it starts at {following.start_s} s, the clip before ends at {clip.end_s} s"
                self._report.add("clip_times", message, table="clips", part=following.part, id=following.clip_id)
        if ends and not clips[-1].is_last:
            message = "its video is finished, but is_last says that another clip follows"
            self._report.add("last_clip", message, table="clips", part=clips[-1].part, id=clips[-1].clip_id)

    def _compare(self, row: Mapping[str, Any], expected: Mapping[str, Any], part: str) -> None:
        """A finished video's row of `assets` against the one that its clips give."""
        wrong: dict[Code, list[str]] = {}
        for name, value in expected.items():
            if name in row and row[name] != value:  # schema v1 has fewer columns
                wrong.setdefault(_CODES.get(name, "video_row"), []).append(f"{name} is {row[name]!r}, from the clips {value!r}")
        for code, differences in wrong.items():
            self._report.add(code, "; ".join(differences), table="assets", part=part, id=row["asset_id"])


def _check_repeats(found: Sequence[tuple[str, int]], objects: Mapping[str, int], part: str, report: CheckReport) -> None:
    for track_id, times in Counter(track_id for track_id, _ in found).items():
        if times > 1:
            report.add("duplicate_track", f"there {times} times in this part", table="tracks", part=part, id=track_id)
    for index, times in Counter(objects.values()).items():
        if times > 1:
            report.add("object_index", f"{times} objects of the clip have number {index}", table="tracks", part=part)


def _ranges(numbers: Iterable[int]) -> str:
    """Rising numbers in few words: `0-4, 6`."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
