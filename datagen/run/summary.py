"""What a run has done so far, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datagen.write import StagedPart

STATUSES = ("ok", "empty", "failed")


@dataclass
class RunSummary:
    """`listed` counts assets of the input, `done_before` those that earlier runs committed; `all_listed` once the input was read to its
    end, or as far as the run's limit.

    `statuses` and `failures` count assets (images, and videos once all their clips are committed); `clips` and `tracks` those that
    this run committed, also of videos that are not complete yet.

    diff: how the dataset changed, each asset of this run counted once. `new` and `changed` (its file is another than before) succeeded,
    `recovered` succeeded after it had failed in an earlier run; `failed` for the first time, or `failed_again`.
    failed_before: failed in earlier runs and left alone in this one.

    changed_prompts: done assets whose prompts differ from those of their row. redone: assets that were done under ids that do not tell a
    file's version, and are done again as source.reprocess_changed is on now. new_uris: the first new assets;
    where nothing of the input is done, other_ids says how many of them are files that are done under another id, same_names how many
    have the name of a done file in another place.

    interrupted: by Ctrl-C or SIGTERM. stopped: what ended the run early in good order, in words. gpu_hours: of all GPUs of the machine or
    cluster since the run's start; cost: at run.budget.gpu_hour_price, None without one.
    waiting: what the run waits for instead of going on, in words.
    estimate: what `datagen plan --sample` had foretold for as many assets, and how far off it was; None where there was none.
    """

    run_id: str
    output: str
    listed: int = 0
    all_listed: bool = False
    done_before: int = 0
    failed_before: int = 0
    diff: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    changed_prompts: int = 0
    redone: int = 0
    other_ids: int = 0
    same_names: int = 0
    new_uris: list[str] = field(default_factory=list, repr=False)
    todo: int = 0
    parts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    regions: int = 0
    videos: int = 0
    clips: int = 0
    tracks: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str | None = None
    waiting: str | None = None
    gpu_hours: float = 0.0
    cost: float | None = None
    estimate: dict[str, Any] | None = None
    counters: dict[str, int] = field(default_factory=dict)
    spans: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, part: StagedPart) -> None:
        """Count a published part: of images, or a clip."""
        self.parts += 1
        self.dropped.update(part.dropped)
        self.usage.update(part.usage)
        self.regions += part.num_regions
        self.tracks += part.num_tracks
        if part.clip is None:
            self.statuses.update(part.statuses)
            self.failures.update(part.failures)
        else:
            self.clips += 1

    def add_videos(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count the rows of finished videos."""
        for row in rows:
            self.videos += 1
            self.statuses[row["status"]] += 1
            if row["error_code"]:
                self.failures[row["error_code"]] += 1

    def states(self) -> dict[str, int]:
        """How many of this run's assets are committed, by status, and how many are `left`. Other threads may call it."""
        statuses = dict(self.statuses)
        return {**{status: statuses.get(status, 0) for status in STATUSES}, "left": self.todo - sum(statuses.values())}

    def in_flight(self) -> bool:
        """Whether workers have samples that were begun and are not committed, as far as the driver has heard. Other threads may call it."""
        counters, states = self.counters, self.states()
        begun = counters.get("decode", 0) + counters.get("clips_tracked", 0) - counters.get("left", 0)
        return begun > self.todo - states["left"] - self.videos + self.clips

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
        del values["new_uris"]
        return values
