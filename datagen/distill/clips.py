"""The tracks of a datagen dataset as training data: the sampled frames of its clips, each object's masks, and what is told of it.

S is the student's image size, M = S/2 the size of the stored masks.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datagen.decode.copies import LocalCopies
from datagen.decode.reader import VideoReader
from datagen.distill.corpus import Box, cached_arrays, relative_box, small_mask, table_rows
from datagen.errors import DecodeError, SourceError
from datagen.job import DecodeOptions, S3Options
from datagen.records import LANGUAGES, Language
from datagen.sources.uris import Roots
from datagen.write import open_dataset
from datagen.write.marker import check_marker
from datagen.write.store import Store

_SAME_TIME_S = 1e-3


@dataclass(frozen=True, slots=True)
class Told:
    """One text per language about a track in its frames [start, stop), counted from 0 in the clip.

    event: its number; None: of the whole clip. history: language -> the caption before; absent: none.
    """

    event: int | None
    start: int
    stop: int
    texts: Mapping[str, str]
    history: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TrackData:
    """One object of one clip. frames: rows of `ClipCorpus.pixels`, in time order. masks: rows of `ClipCorpus.masks`, one per frame.

    row: (track_id, clip_index). boxes: one per frame; None where the object is not seen.
    """

    row: tuple[str, int]
    frames: range
    masks: range
    boxes: list[Box | None]
    told: list[Told]


@dataclass(frozen=True, slots=True)
class ClipCorpus:
    """pixels: (F, S, S, 3) uint8 RGB, frames of all clips. masks: (G, M, M) uint8, share of each cell covered, 255 all."""

    pixels: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    tracks: list[TrackData]


def load_clips(dataset: str, cache: Path, image_size: int) -> ClipCorpus:
    """The clips and tracks of a dataset, through the cache.

    Raises SourceError when there is no dataset, no track, or a file that is missing or cannot be decoded; WriteError for another
    format or schema version.
    """
    store = open_dataset(dataset)
    check_marker(store)
    clips = {(row["asset_id"], row["clip_index"]): row for row in table_rows(store, "clips", _CLIP_COLUMNS) if row["status"] == "ok"}
    rows = [row for row in table_rows(store, "tracks", _TRACK_COLUMNS) if (row["asset_id"], row["clip_index"]) in clips and _is_seen(row)]
    rows.sort(key=lambda row: (row["asset_id"], row["clip_index"], row["object_index"]))
    if not rows:
        raise SourceError(f"{store.uri} has no track of a clip to learn from: its `tracks` table is empty, or shows none of its objects")
    used = [clips[key] for key in dict.fromkeys((row["asset_id"], row["clip_index"]) for row in rows)]
    times = {(row["asset_id"], row["clip_index"]): [frame["timestamp_s"] for frame in row["frames"]] for row in rows}
    frames, masks = cached_arrays(
        cache,
        _digest(image_size, used, rows),
        {
            "frames": (
                (sum(len(of_clip) for of_clip in times.values()), image_size, image_size, 3),
                _decoded(store, used, times, image_size),
            ),
            "frame_masks": ((sum(len(row["frames"]) for row in rows), image_size // 2, image_size // 2), _masks(rows, image_size // 2)),
        },
    )
    return ClipCorpus(frames, masks, list(_tracks(rows, clips, times)))


def require_captions(corpus: ClipCorpus, languages: Sequence[Language], dataset: str) -> None:
    """Raise SourceError naming the first language in which nothing is told of any track."""
    for language in languages:
        if not any(language in told.texts for track in corpus.tracks for told in track.told):
            raise SourceError(
                f"{dataset} has no caption_{language} and no event with a text_{language} to learn from in `tracks`. Leave {language} "
                "out of the describe stage's languages, or run the job that made the dataset with describe.languages that hold it"
            )


_CLIP_COLUMNS = ["asset_id", "clip_index", "uri", "status", "start_s", "end_s", "width", "height", "sha256"]
_CAPTIONS = [f"caption_{language}" for language in LANGUAGES]
_TRACK_COLUMNS = ["track_id", "asset_id", "clip_index", "object_index", "frames", "events", *_CAPTIONS]
Times = Mapping[tuple[str, int], Sequence[float]]


def _tracks(rows: Sequence[Mapping[str, Any]], clips: Mapping[tuple[str, int], Mapping[str, Any]], times: Times) -> Iterator[TrackData]:
    starts, first = {}, 0
    for key, of_clip in times.items():
        starts[key] = first
        first += len(of_clip)
    first = 0
    for row in rows:
        key = (row["asset_id"], row["clip_index"])
        if len(row["frames"]) != len(times[key]):
            raise SourceError(f"clip {key[1]} of {key[0]}: its tracks have different numbers of frames; `datagen check` the dataset")
        width, height = clips[key]["width"], clips[key]["height"]
        boxes = [None if box is None else relative_box(box, width, height) for box in (frame["box_xyxy"] for frame in row["frames"])]
        frames = range(starts[key], starts[key] + len(boxes))
        yield TrackData((row["track_id"], row["clip_index"]), frames, range(first, first + len(boxes)), boxes, _told(row))
        first += len(boxes)


def _told(row: Mapping[str, Any]) -> list[Told]:
    """What can be learned to tell: each event in its frames, and the whole clip where its caption is not that of the last event."""
    numbers = [frame["frame_index"] for frame in row["frames"]]
    told = [
        Told(
            number,
            bisect_left(numbers, event["start_frame"]),
            bisect_right(numbers, event["end_frame"]),
            {language: event[f"text_{language}"] for language in LANGUAGES if event[f"text_{language}"]},
            {language: event[f"history_{language}"] for language in LANGUAGES if event[f"history_{language}"]},
        )
        for number, event in enumerate(row["events"])
    ]
    whole = {language: row[f"caption_{language}"] for language in LANGUAGES if row[f"caption_{language}"]}
    if whole and (not told or any(told[-1].texts.get(language) != text for language, text in whole.items())):
        told.append(Told(None, 0, len(row["frames"]), whole, {}))
    return [item for item in told if item.texts]


def _is_seen(row: Mapping[str, Any]) -> bool:
    return any(frame["box_xyxy"] is not None for frame in row["frames"])


def _masks(rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[NDArray[np.uint8]]:
    for row in rows:
        for frame in row["frames"]:
            yield np.zeros((size, size), np.uint8) if frame["mask"] is None else small_mask(frame["mask"], size)


def _decoded(store: Store, clips: Sequence[Mapping[str, Any]], times: Times, size: int) -> Iterator[NDArray[np.uint8]]:
    options = DecodeOptions()
    reader, copies, place = VideoReader(options, size), LocalCopies(S3Options(), int(options.max_file_gib * 2**30)), Roots(store.uri)
    reader.start()
    try:
        for uri, of_video in groupby(clips, lambda clip: str(clip["uri"])):
            try:
                with copies.copy(place.resolve(uri)) as path:
                    for clip in of_video:
                        yield from _frames(reader, path, clip, times[clip["asset_id"], clip["clip_index"]])
            except DecodeError as error:
                raise SourceError(f"{store.uri} names {uri}, but its frames are not at hand: {error.message}") from error
    finally:
        reader.close()
        copies.close()


def _frames(reader: VideoReader, path: str, clip: Mapping[str, Any], wanted: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
    """The frames of a clip that appear at the wanted times, seconds."""
    left = list(wanted)
    for frame in reader.open(path, clip["uri"], clip["start_s"], clip["end_s"]):
        if left and abs(frame.timestamp_s - left[0]) < _SAME_TIME_S:
            left.pop(0)
            yield frame.pixels
    if left:
        raise SourceError(f"{clip['uri']} has no frame at {left[0]:.3f} s, where the dataset has one; is it another file than then?")


def _digest(size: int, clips: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(f"{size}".encode())
    for item in (*(clip["sha256"] for clip in clips), *([row["frames"]] for row in rows)):
        digest.update(json.dumps(item).encode())
    return digest.hexdigest()
