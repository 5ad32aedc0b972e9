"""Counts of videos, their clips, tracks and events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.records import LANGUAGES
from datagen.stats.counts import TextCount, batches, distribution
from datagen.write.done import DoneSet, id_keys
from datagen.write.parts import part_ids, part_path
from datagen.write.store import Store

_CLIP_COLUMNS = ["asset_id", "status", "start_s", "end_s", "num_tracks"]
# Of a mask only its size is read: whether there is one is all that counts, and its counts are nearly all of the table.
_TRACK_COLUMNS = ["flags", "events", "frames.list.element.mask.size"]


@dataclass
class VideoCount:
    """Counts in the making: first all rows of videos in `assets`, then the clips. 16 bytes per video are kept."""

    statuses: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    num_objects: int = 0
    clip_statuses: Counter[str] = field(default_factory=Counter)
    clip_seconds: Counter[float] = field(default_factory=Counter)
    tracks_per_clip: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    num_frames: int = 0
    num_seen: int = 0
    events_per_track: Counter[int] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    texts: dict[str, TextCount] = field(default_factory=dict)
    num_parts: int = 0
    _finished: list[np.ndarray] = field(default_factory=list)
    _unfinished: set[str] = field(default_factory=set)

    def add_videos(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Count finished videos: rows of `assets`."""
        self.statuses.update(row["status"] for row in rows)
        self.failures.update(row["error_code"] for row in rows if row["error_code"])
        self.num_objects += sum(row["num_tracks"] or 0 for row in rows)
        for row in rows:
            self.dropped.update({drop["reason"]: drop["count"] for drop in row["dropped"]})
        self._finished.append(id_keys(row["asset_id"] for row in rows))

    def add_clips(self, store: Store) -> None:
        """Count all committed clips, and their tracks. Raises SourceError for a part that cannot be read."""
        finished = DoneSet(np.concatenate([np.empty((0, 2), dtype=np.uint64), *self._finished]))
        for part in part_ids(store, "clips"):
            self.num_parts += 1
            for batch in batches(store, part_path("clips", part), _CLIP_COLUMNS):
                for row in batch.to_pylist():
                    self._add_clip(row, row["asset_id"] in finished)
            if store.exists(part_path("tracks", part)):
                for batch in batches(store, part_path("tracks", part), _TRACK_COLUMNS):
                    self._add_tracks(batch)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; empty when there are neither videos nor clips."""
        if not self.statuses and not self.clip_statuses:
            return {}
        return {
            "num_videos": sum(self.statuses.values()),
            "num_unfinished": len(self._unfinished),
            "statuses": dict(self.statuses),
            "failures": dict(self.failures.most_common()),
            "hours": round(self.seconds / 3600, 4),
            "num_clips": sum(self.clip_statuses.values()),
            "clip_statuses": dict(self.clip_statuses),
            "clip_seconds": distribution(self.clip_seconds),
            "num_tracks": sum(self.events_per_track.values()),
            "num_objects": self.num_objects,
            "tracks_per_clip": distribution(self.tracks_per_clip),
            "visible_share": round(self.num_seen / self.num_frames, 3) if self.num_frames else None,
            "num_events": sum(n * count for n, count in self.events_per_track.items()),
            "events_per_track": distribution(self.events_per_track),
            "dropped": dict(self.dropped.most_common()),
            "flags": dict(self.flags.most_common()),
            "texts": {name: count.to_dict() for name, count in self.texts.items()},
        }

    def _add_clip(self, row: Mapping[str, Any], is_finished: bool) -> None:
        seconds = row["end_s"] - row["start_s"]
        self.seconds += seconds
        self.clip_statuses[row["status"]] += 1
        if row["status"] != "failed":
            self.clip_seconds[round(seconds, 1)] += 1
            self.tracks_per_clip[row["num_tracks"]] += 1
        if not is_finished:
            self._unfinished.add(row["asset_id"])

    def _add_tracks(self, batch: pa.RecordBatch) -> None:
        self.flags.update(pc.list_flatten(batch["flags"]).to_pylist())
        masks = pc.struct_field(pc.list_flatten(batch["frames"]), "mask")
        self.num_frames += len(masks)
        self.num_seen += len(masks) - masks.null_count
        self.events_per_track.update(pc.list_value_length(batch["events"]).to_pylist())
        events = pc.list_flatten(batch["events"])
        for language in LANGUAGES:
            texts = [text for text in pc.struct_field(events, f"text_{language}").to_pylist() if text is not None]
            if texts:
                count = self.texts.setdefault(f"event_{language}", TextCount())
                count.add(texts, pc.struct_field(events, f"text_{language}_finish").to_pylist(), language)
