"""Clips of a dataset against gold: every object of every clip of gold counts, whatever became of its video.

An object is paired over its whole video where both were asked for by the same prompt; else clip by clip with the track that overlaps it
best, each once. Numbers of tracks, objects and clips are never compared: frames are, by their number in the video.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datagen.evaluate.gold import Gold
from datagen.evaluate.items import EVENTS, Medium, TrackItem
from datagen.evaluate.matching import sizes_differ, unmatched
from datagen.evaluate.pairing import TEXT_IOU
from datagen.evaluate.text_metrics import Embedder
from datagen.evaluate.texts import columns_of, mean, text_numbers
from datagen.masks import mask_iou
from datagen.records import RLE

Masks = Mapping[int, RLE | None]


@dataclass(slots=True)
class Answer:
    """An object of a clip of gold, and the track that answers it. j: None where gold never shows the object. counts: its texts do."""

    gold: TrackItem
    found: _Followed | None
    j: float | None
    agreeing: int
    counts: bool


@dataclass(slots=True)
class _Followed:
    """One track of a dataset through all clips of its video: frame -> mask, and what is told of it in each clip."""

    masks: dict[int, RLE | None] = field(default_factory=dict)
    clips: list[TrackItem] = field(default_factory=list)

    def texts(self, frames: Mapping[int, Any]) -> Mapping[str, list[str]]:
        """Of the clip that has most of these frames."""
        return max(self.clips, key=lambda clip: len(frames.keys() & clip.masks.keys())).texts


def clip_numbers(
    gold: Gold,
    pairs: Mapping[str, Medium],
    found: Mapping[str, Medium],
    tracks: Mapping[str, Sequence[TrackItem]],
    asked: set[str],
    embedder: Embedder | None,
) -> dict[str, Any]:
    """The report on clips. pairs: gold's key -> the dataset's video. found, tracks: of the dataset, by asset id. asked: text columns.

    mean_j: mean IoU over the frames in which gold shows the object, then over objects of clips. presence: share of gold's frames in which
    the track says as gold does whether the object is there. Frames, tracks and videos that are missing are wrong in both. Source of J:
    Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", 2016.
    """
    answers: list[Answer] = []
    counts: Counter[str] = Counter()
    problems: list[str] = []
    for video in gold.videos:
        there, truth = pairs.get(video.key), gold.tracks.get(video.key, [])
        here = tracks.get(there.key, ()) if there else ()
        if there is None:
            counts["missing_videos"] += 1
        elif problem := _size_problem(video, there, truth, here):
            counts["other_size_videos"] += 1
            problems.append(problem)
            here = ()
        elif there.failed:
            counts["failed_videos"] += 1
        of_video = _followed(here)
        answered = pair_tracks(truth, of_video)
        answers += answered
        counts["extra_tracks"] += len(of_video) - len({id(one.found) for one in answered if one.found is not None})
        counts["missing_clips"] += len({item.clip_index for item in truth} - {one.gold.clip_index for one in answered if one.found})
    columns = [column for column in EVENTS if column in asked]
    texts = columns_of(((one.gold.texts, _told(one)) for one in answers), columns)
    js = [one.j for one in answers if one.j is not None]
    frames = sum(len(one.gold.masks) for one in answers)
    names = ("missing_videos", "failed_videos", "other_size_videos", "missing_clips", "extra_tracks")
    return {
        "videos": len(gold.videos),
        "clips": len({(one.gold.asset_id, one.gold.clip_index) for one in answers}),
        "tracks": len(answers),
        **{name: counts[name] for name in names},
        "missing_tracks": sum(one.found is None for one in answers),
        "videos_not_in_gold": unmatched(found, pairs),
        "problems": problems,
        "mean_j": mean(js),
        "presence": sum(one.agreeing for one in answers) / frames if frames else 0.0,
        "texts": text_numbers(texts, EVENTS, embedder),
    }


def pair_tracks(gold: Sequence[TrackItem], found: Sequence[_Followed]) -> list[Answer]:
    """The answer to each object of each clip of one video."""
    by_prompt = dict(_by_prompt(gold, found))
    taken_for = {id(track) for track in by_prompt.values()}
    free = [track for track in found if id(track) not in taken_for]
    answers = []
    by_clip: dict[int, list[TrackItem]] = defaultdict(list)
    for item in gold:
        by_clip[item.clip_index].append(item)
    for items in by_clip.values():
        rest = [item for item in items if item.track_id not in by_prompt]
        by_mask = _by_overlap(rest, free)
        for item in items:
            asked_for = by_prompt.get(item.track_id)
            track = asked_for or by_mask.get(item.track_id)
            if track is not None and asked_for is not None and not track.masks.keys() & item.masks.keys():
                track = None  # it was not followed into this clip
            answers.append(_answer(item, track, asked_for is not None))
    return answers


def _by_prompt(gold: Sequence[TrackItem], found: Sequence[_Followed]) -> Iterator[tuple[str, _Followed]]:
    """Gold's track id -> the track that the same prompts asked for, where these name one on both sides."""
    truths: dict[str, list[TrackItem]] = defaultdict(list)
    for item in gold:
        truths[item.track_id].append(item)
    names = {track_id: _signature(items) for track_id, items in truths.items()}
    tracks = [(_signature(track.clips), track) for track in found]
    counts = Counter(names.values()), Counter(name for name, _ in tracks)
    for track_id, name in names.items():
        if name is not None and counts[0][name] == counts[1][name] == 1:
            yield track_id, next(track for other, track in tracks if other == name)


def _signature(items: Sequence[TrackItem]) -> tuple[Any, ...] | None:
    asked = sorted({repr(one.signature) for item in items for one in item.asked if one.signature is not None})
    return tuple(asked) or None


def _by_overlap(gold: Sequence[TrackItem], found: Sequence[_Followed]) -> dict[str, _Followed]:
    """Gold's track id -> track, in one clip, best J first, each once; last, what neither ever shows."""
    fits = [(-_fit(item.masks, track.masks), row, column) for row, item in enumerate(gold) for column, track in enumerate(found)]
    paired: dict[str, _Followed] = {}
    taken: set[int] = set()
    for fit, row, column in sorted(fits):
        if fit < 0 and gold[row].track_id not in paired and column not in taken:
            paired[gold[row].track_id] = found[column]
            taken.add(column)
    return paired


def _fit(gold: Masks, found: Masks) -> float:
    """J; less than any, but not 0, where both look at the same frames and see nothing."""
    j = _j(gold, found)
    if j is not None:
        return j
    return 1e-9 if _agreeing(gold, found) == len(gold) else 0.0


def _agreeing(gold: Masks, found: Masks) -> int:
    """Frames in which both say the same of whether the object is there."""
    return sum(index in found and bool(found[index]) == bool(mask) for index, mask in gold.items())


def _answer(item: TrackItem, track: _Followed | None, asked_for: bool) -> Answer:
    masks: Masks = track.masks if track else {}
    j = _j(item.masks, masks)
    return Answer(item, track, j, _agreeing(item.masks, masks), asked_for or j is None or j >= TEXT_IOU)


def _told(answer: Answer) -> Mapping[str, list[str]] | None:
    return answer.found.texts(answer.gold.masks) if answer.found is not None and answer.counts else None


def _j(gold: Masks, found: Masks) -> float | None:
    """None where gold never shows the object."""
    shown = {index: mask for index, mask in gold.items() if mask}
    if not shown:
        return None
    answers = [(mask, found.get(index)) for index, mask in shown.items()]
    return sum(float(mask_iou([there], [mask])[0, 0]) for mask, there in answers if there) / len(answers)


def _followed(items: Sequence[TrackItem]) -> list[_Followed]:
    tracks: dict[str, _Followed] = defaultdict(_Followed)
    for item in items:
        tracks[item.track_id].masks |= item.masks
        tracks[item.track_id].clips.append(item)
    return list(tracks.values())


def _size_problem(video: Medium, there: Medium, gold: Sequence[TrackItem], found: Sequence[TrackItem]) -> str | None:
    if problem := sizes_differ(video, there):
        return problem
    sizes = {(mask["size"][1], mask["size"][0]) for item in (*gold, *found) for mask in item.masks.values() if mask}
    if len(sizes) < 2:
        return None
    return f"{there.names[0]} has masks of {' and '.join(f'{w} x {h}' for w, h in sorted(sizes))} (width x height), here and in gold"
