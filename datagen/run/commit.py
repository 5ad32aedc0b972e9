"""What a run commits: parts that workers staged become visible here, in the driver, and nowhere else.

Every listed asset has an index, and each index is ticked off exactly once, so a lost or doubled asset is an error on the spot and
not a surprise in the dataset.
"""

from __future__ import annotations

from collections.abc import Iterable
from logging import WARNING
from typing import Any, Literal

from datagen.errors import ClusterError
from datagen.events import log_event
from datagen.interrupts import held_back
from datagen.job import WriteOptions
from datagen.run.summary import RunSummary
from datagen.write import StagedPart, Store, VideoProgress, publish_part, publish_video_assets
from datagen.write.parts_list import NO_LOG, MarksLog

# What an asset is for this run: never seen, seen with another content, or seen and failed.
Kind = Literal["new", "changed", "retried"]


class Committer:
    """Publishes staged parts and counts them in the summary; Ctrl-C waits until a commit is whole.

    Raises ClusterError for an asset that comes back twice, WriteError.
    """

    def __init__(self, store: Store, videos: VideoProgress, options: WriteOptions, summary: RunSummary, log: MarksLog = NO_LOG) -> None:
        self._store, self._videos, self._options, self._summary, self._marks = store, videos, options, summary, log
        self._open = _Tally()
        self._kinds: dict[int, Kind] = {}

    def expect(self, index: int, kind: Kind = "new") -> None:
        """Asset number `index` is handed to the workers."""
        self._open.add(index)
        if kind != "new":
            self._kinds[index] = kind

    def note_changed_prompts(self) -> None:
        """A video goes on with other prompts than its committed clips had."""
        self._summary.changed_prompts += 1

    @held_back()
    def images(self, part: StagedPart) -> None:
        """Commit a part of images."""
        self._open.tick(part.indices)
        publish_part(self._store, part)
        self._marks.committed("assets", part.part_id, part.seal)
        self._summary.add(part)
        _log(part)
        for index in part.indices:  # failed images come in parts of their own
            self._compare(index, "failed" in part.statuses)

    @held_back()
    def clip(self, part: StagedPart) -> None:
        """Commit a clip once those before it are; and the rows of finished videos, as soon as there are enough for a part."""
        for published in self._videos.publish(part):
            self._marks.committed("clips", published.part_id, published.seal)
            self._summary.add(published)
            _log(published)
        self.videos(minimum=self._options.assets_per_part)

    @held_back()
    def videos(self, minimum: int = 1) -> None:
        """Write the rows of the videos that are complete. After a crash before this, the next run finds them complete."""
        finished = self._videos.finished(minimum)
        if not finished:
            return
        self._open.tick(video.index for video in finished if video.index is not None)
        publish_video_assets(self._store, [video.row for video in finished], self._options, self._marks)
        self._summary.add_videos([video.row for video in finished])
        log_event("videos_committed", f"{len(finished)} videos are complete", step="write", asset_ids=[v.row["asset_id"] for v in finished])
        for video in finished:
            if video.index is not None:
                self._compare(video.index, video.row["status"] == "failed")

    def _compare(self, index: int, failed: bool) -> None:
        kind = self._kinds.pop(index, "new")
        if failed:
            self._summary.diff["failed_again" if kind == "retried" else "failed"] += 1
        else:
            self._summary.diff["recovered" if kind == "retried" else kind] += 1

    def close(self) -> None:
        """After the last part. Raises ClusterError when assets are missing."""
        if self._open.count:
            message = f"{self._open.count} assets did not come back from the workers. Rerun the same command: only they are done again."
            raise ClusterError(message)


def _log(part: StagedPart) -> None:
    facts: dict[str, Any] = {"part_id": part.part_id, "statuses": part.statuses, "regions": part.num_regions, "tracks": part.num_tracks}
    if part.clip is not None:
        facts |= {"asset_id": part.clip.asset_id, "clip_index": part.clip.clip_index}
    log_event("part_committed", f"part {part.part_id} is in the dataset", step="write", **facts)
    for failed in part.failed:
        log_event("asset_failed", level=WARNING, **failed._asdict())


class _Tally:
    """A set of indices, at one bit each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0

    def add(self, index: int) -> None:
        if index // 8 >= len(self._bits):
            self._bits.extend(bytes(max(4096, index // 8 + 1 - len(self._bits))))
        self._bits[index // 8] |= 1 << index % 8
        self.count += 1

    def tick(self, indices: Iterable[int]) -> None:
        """Take indices out. Raises ClusterError, before anything changes, when one is not in."""
        indices = list(indices)
        for index in indices:
            if index // 8 >= len(self._bits) or not self._bits[index // 8] >> index % 8 & 1:
                raise ClusterError(f"asset number {index} came back twice; nothing of that part was published. Please report this.")
        for index in indices:
            self._bits[index // 8] &= ~(1 << index % 8)
        self.count -= len(indices)
