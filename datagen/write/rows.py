"""Rows of `assets` and `clips`, from samples; and the `assets` row of a video, from its clips."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from datagen.errors import SchemaError
from datagen.ids import clip_id_of, track_id_of
from datagen.records import SHOT_END, Asset, Clip, Handover, Prompt, Sample
from datagen.write.versions import track_number

# What every clip of a video says of the whole, as columns of `clips`, and their names in `assets`.
_VIDEO_COLUMNS = {
    **{name: name for name in ("width", "height", "stated_width", "stated_height", "fps", "duration_s", "size_bytes", "sha256")},
    **{name: name for name in ("uri", "license", "extra", "num_prompts", "prompts_hash")},
    "num_video_frames": "num_frames",
}


def asset_row(sample: Sample, part_id: str, run_id: str, finished_at: datetime) -> dict[str, Any]:
    """The row of `assets` of a finished image. Text from outside that UTF-8 cannot hold is escaped, not refused."""
    return {
        "asset_id": sample.asset.asset_id,
        "media_type": sample.asset.media_type,
        **_outcome(sample),
        "retries": sample.asset.retries,
        "num_regions": 0 if sample.failure else len(sample.regions),
        "num_tracks": None,
        "num_clips": None,
        "width": sample.width,
        "height": sample.height,
        **_stated_columns(sample.asset),
        "num_frames": sample.num_frames,
        "fps": None,
        "duration_s": None,
        **_file_columns(sample),
        "dropped": _dropped_column(sample.dropped),
        "part_id": part_id,
        "run_id": run_id,
        "finished_at": finished_at,
    }


def clip_row(sample: Sample, clip: Clip, part_id: str, run_id: str, finished_at: datetime) -> dict[str, Any]:
    """The row of `clips` of a finished clip. Raises SchemaError for a track id that is none."""
    asset_id = sample.asset.asset_id
    known = [*(track.track_id for track in sample.tracks), *(handover.track_id for handover in clip.handovers)]
    return {
        "clip_id": clip_id_of(asset_id, clip.clip_index),
        "asset_id": asset_id,
        "clip_index": clip.clip_index,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "num_frames": clip.num_frames,
        "num_tracks": 0 if sample.failure else len(sample.tracks),
        **_outcome(sample),
        "retries": sample.asset.retries,
        "is_last": clip.is_last,
        "truncated": clip.truncated,
        "missing_frames": clip.missing_frames,
        "flags": list(clip.flags),
        "handovers": [_handover_column(handover) for handover in clip.handovers],
        "next_track": max([clip.next_track, *(1 + _track_number(asset_id, track_id) for track_id in known)]),
        "width": sample.width,
        "height": sample.height,
        **_stated_columns(sample.asset),
        "fps": clip.fps,
        "duration_s": clip.duration_s,
        "num_video_frames": clip.num_video_frames,
        **_file_columns(sample),
        "dropped": _dropped_column(sample.dropped),
        "part_id": part_id,
        "run_id": run_id,
        "finished_at": finished_at,
    }


class VideoTotals:
    """The `assets` row of a video in the making: add its clips in order."""

    def __init__(self) -> None:
        self.num_clips = 0
        self.next_track = 0
        self.shot_start_s = 0.0
        self.is_complete = False
        self._columns: dict[str, Any] = dict.fromkeys(_VIDEO_COLUMNS.values())
        self._failure: tuple[int, str, str] | None = None
        self._attempts = 1
        self._retries = 0
        self._track_ids: set[str] = set()
        self._dropped: Counter[str] = Counter()
        self._last: Mapping[str, Any] = {}

    def add(self, clip: Mapping[str, Any], track_ids: Iterable[str]) -> None:
        """Take the next clip: its row of `clips` (the hand-overs may be left out), and the ids of its tracks."""
        for name, column in _VIDEO_COLUMNS.items():
            if self._columns[column] is None:  # a clip that failed early knows less than the others, one of schema v1 too
                self._columns[column] = clip.get(name)
        if clip["status"] == "failed" and self._failure is None:
            self._failure = clip["clip_index"], clip["error_code"], clip["error_message"]
        self.num_clips += 1
        self.next_track = max(self.next_track, clip["next_track"])
        self.is_complete = clip["is_last"]
        if SHOT_END in clip.get("flags", [SHOT_END]):  # v1 does not say; clips were cut as if each began a shot
            self.shot_start_s = clip["end_s"]
        self._attempts = max(self._attempts, clip["attempts"])
        self._retries = max(self._retries, clip["retries"])
        self._track_ids.update(track_ids)
        self._dropped.update({drop["reason"]: drop["count"] for drop in clip["dropped"]})
        self._last = {name: clip[name] for name in ("asset_id", "end_s", "run_id", "finished_at")}

    @property
    def prompts_hash(self) -> str | None:
        """Of the prompts that the clips so far were made with."""
        found: str | None = self._columns["prompts_hash"]
        return found

    @property
    def end_s(self) -> float:
        """Where the last clip so far ends, seconds; 0 before the first."""
        return float(self._last.get("end_s", 0.0))

    def asset_row(self) -> dict[str, Any]:
        """The row of `assets` without its `part_id`: a function of the clips alone, whichever run asks for it.

        failed when any clip failed, with the first failure; else ok when any clip has tracks; else empty.
        """
        index, code, message = self._failure or (0, None, None)
        found = "ok" if self._track_ids else "empty"
        return {
            "asset_id": self._last["asset_id"],
            "media_type": "video",
            "status": "failed" if self._failure else found,
            "error_code": code,
            "error_message": f"clip {index}: {message}" if message and self.num_clips > 1 else message,
            "attempts": self._attempts,
            "retries": self._retries,
            "num_regions": 0,
            "num_tracks": len(self._track_ids),
            "num_clips": self.num_clips,
            **self._columns,
            "dropped": _dropped_column(self._dropped),
            "run_id": self._last["run_id"],
            "finished_at": self._last["finished_at"],
        }


def _track_number(asset_id: str, track_id: str) -> int:
    number = track_number(asset_id, track_id)
    if number is None:
        message = f"found the track id {track_id!r}, expected {track_id_of(asset_id, 0)} or another number in at least six digits"
        raise SchemaError(message, asset_id=asset_id)
    return number


def _outcome(sample: Sample) -> dict[str, Any]:
    failure = sample.failure
    return {
        "status": sample.status,
        "error_code": failure and failure.code,
        "error_message": failure and _utf8(failure.message),
        "attempts": sample.attempts,
    }


def _file_columns(sample: Sample) -> dict[str, Any]:
    asset: Asset = sample.asset
    return {
        "size_bytes": sample.size_bytes,
        "sha256": sample.sha256,
        "uri": _utf8(asset.uri),
        "license": asset.license and _utf8(asset.license),
        "extra": _utf8(json.dumps(_plain(asset.extra), ensure_ascii=False, sort_keys=True)) if asset.extra else None,
        "num_prompts": asset.num_prompts,
        "prompts_hash": asset.prompts_hash,
    }


def _stated_columns(asset: Asset) -> dict[str, Any]:
    width, height = asset.stated_size or (None, None)
    return {"stated_width": width, "stated_height": height}


def _handover_column(handover: Handover) -> dict[str, Any]:
    return {
        "track_id": handover.track_id,
        "seen_s": handover.seen_s,
        "unseen_s": handover.unseen_s,
        "object_id": handover.object_id,
        "prompt": _prompt_column(handover.prompt),
    }


def _dropped_column(dropped: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"reason": reason, "count": count} for reason, count in sorted(dropped.items())]


def _prompt_column(prompt: Prompt) -> dict[str, Any]:
    return {
        "type": prompt.type,
        "source": prompt.source,
        "box": None if prompt.box is None else [float(n) for n in prompt.box],
        "points": [[float(x), float(y)] for x, y in prompt.points],
        "labels": [int(n) for n in prompt.labels],
        "mask": None if prompt.mask is None else {"size": [int(n) for n in prompt.mask["size"]], "counts": prompt.mask["counts"]},
    }


def _utf8(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    """What JSON can hold, from whatever an input file's columns gave: not-a-number is null, dates and the like are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _plain(value.tolist())
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
