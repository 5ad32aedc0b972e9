"""What a check found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from datagen.write.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from datagen.check.hashes import Hashes

MAX_LISTED = 10_000

Code = Literal[
    # the folder
    "marker",
    "debris",
    "unexpected_file",
    "orphan_part",
    "unreadable_part",
    "schema",
    "empty_part",
    "changed_part",
    "lost_part",
    "run_record",
    "crash_file",
    "meta_file",
    # rows of any table
    "part_name",
    "part_id",
    "unknown_run",
    "mixed_runs",
    "value",
    "extra",
    "dropped",
    "flags",
    "prompt",
    # assets
    "lost_asset",
    "duplicate_asset",
    "duplicate_uri",
    "media_type",
    "status",
    "failed_row",
    "asset_size",
    "region_count",
    "prompt_count",
    "track_count",
    "clip_count",
    "video_row",
    # regions, and the masks of regions and tracks
    "duplicate_region",
    "stray_region",
    "region_id",
    "mask",
    "area",
    "box",
    "score",
    "object_score",
    "text",
    "logprob",
    "token_logprobs",
    # clips
    "duplicate_clip",
    "stray_clip",
    "clip_id",
    "clip_times",
    "last_clip",
    "handover",
    # tracks
    "duplicate_track",
    "stray_track",
    "track_id",
    "object_index",
    "track_times",
    "frame_index",
    "frame_gap",
    "timestamp",
    "prompt_frame",
    "event",
    "caption",
]

Problem = tuple[Code, str, str | None]
"""(code, message, id of the row)"""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise. `code` is stable; table, part and id say where, as far as it is about one."""

    code: Code
    message: str
    table: str | None = None
    part: str | None = None
    id: str | None = None

    def __str__(self) -> str:
        where = " ".join(word for word in (self.table, self.part, self.id) if word)
        return f"{self.code}: {where + ': ' if where else ''}{self.message}"


@dataclass
class CheckReport:
    """What was looked at and what was wrong. `violations` holds the first 10,000; `by_code` counts all of them.

    num_parts: commit marks, in `assets` and in `clips`. num_unfinished_videos, num_unfinished_clips: videos that have clips but no
    row in `assets` yet, and those clips. token_logprobs: whether `regions` and `tracks` have this optional column; None: not known.
    schema_version: of all tables, as the marker says. num_unproven_parts: files without a content hash, as earlier versions wrote them;
    num_unlisted_parts: commit marks with one that no run's list has, as a killed run leaves them until the next.
    """

    dataset: str
    violations: list[Violation] = field(default_factory=list)
    by_code: Counter[str] = field(default_factory=Counter)
    num_parts: int = 0
    num_assets: int = 0
    num_regions: int = 0
    num_clips: int = 0
    num_tracks: int = 0
    num_unfinished_videos: int = 0
    num_unfinished_clips: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    token_logprobs: bool | None = None
    schema_version: int = SCHEMA_VERSION
    num_unproven_parts: int = 0
    num_unlisted_parts: int = 0
    hashes: Hashes | None = field(default=None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.by_code

    def add(self, code: Code, message: str, *, table: str | None = None, part: str | None = None, id: str | None = None) -> None:
        """Note a violation."""
        self.by_code[code] += 1
        if len(self.violations) < MAX_LISTED:
            self.violations.append(Violation(code, message, table, part, id))

    def add_all(self, problems: Iterable[Problem], table: str, part: str) -> None:
        """Note what is wrong with rows of a part."""
        for code, message, row_id in problems:
            self.add(code, message, table=table, part=part, id=row_id)

    def of_a_piece(self) -> CheckReport:
        """An empty report of the same dataset, for a part of it; `take` adds it."""
        return CheckReport(self.dataset, token_logprobs=self.token_logprobs, schema_version=self.schema_version, hashes=self.hashes)

    def take(self, piece: CheckReport) -> None:
        """Add what a report of a part of the dataset has found."""
        self.violations += piece.violations[: MAX_LISTED - len(self.violations)]
        self.by_code.update(piece.by_code)
        self.statuses.update(piece.statuses)
        self.num_assets += piece.num_assets
        self.num_regions += piece.num_regions
        self.num_clips += piece.num_clips
        self.num_tracks += piece.num_tracks
        self.num_unproven_parts += piece.num_unproven_parts

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        numbers = asdict(replace(self, hashes=None))
        del numbers["hashes"]
        return {"ok": self.ok, **numbers, "by_code": dict(self.by_code), "statuses": dict(self.statuses)}
