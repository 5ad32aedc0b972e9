"""What a run commits: parts that workers staged become visible here, in the driver, and nowhere else.

Every listed asset has an index, and each index is ticked off exactly once, so a lost or doubled asset is an error on the spot and
not a surprise in the dataset.
"""

from __future__ import annotations

from collections.abc import Iterable

from datagen.errors import ClusterError
from datagen.interrupts import held_back
from datagen.job import WriteOptions
from datagen.summary import RunSummary
from datagen.write import StagedPart, Store, VideoProgress, publish_part, publish_video_assets


class Committer:
    """Publishes staged parts and counts them in the summary; Ctrl-C waits until a commit is whole.

    Raises ClusterError for an asset that comes back twice, WriteError.
    """

    def __init__(self, store: Store, videos: VideoProgress, options: WriteOptions, summary: RunSummary) -> None:
        self._store, self._videos, self._options, self._summary = store, videos, options, summary
        self._open = _Tally()

    def expect(self, index: int) -> None:
        """Asset number `index` is handed to the workers."""
        self._open.add(index)

    @held_back()
    def images(self, part: StagedPart) -> None:
        """Commit a part of images."""
        self._open.tick(part.indices)
        publish_part(self._store, part)
        self._summary.add(part)

    @held_back()
    def clip(self, part: StagedPart) -> None:
        """Commit a clip once those before it are; and the rows of finished videos, as soon as there are enough for a part."""
        for published in self._videos.publish(part):
            self._summary.add(published)
        self.videos(minimum=self._options.assets_per_part)

    @held_back()
    def videos(self, minimum: int = 1) -> None:
        """Write the rows of the videos that are complete. After a crash before this, the next run finds them complete."""
        finished = self._videos.finished(minimum)
        if not finished:
            return
        self._open.tick(video.index for video in finished if video.index is not None)
        publish_video_assets(self._store, [video.row for video in finished], self._options)
        self._summary.add_videos([video.row for video in finished])

    def close(self) -> None:
        """After the last part. Raises ClusterError when assets are missing."""
        if self._open.count:
            message = f"{self._open.count} assets did not come back from the workers. Rerun the same command: only they are done again."
            raise ClusterError(message)


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
