"""A perceive step without a model: made-up regions, the same for the same asset, for tests and overhead measurements."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from datagen.job import PerceiveOptions
from datagen.masks import Box, encode_mask, mask_area, rle_box
from datagen.perceive.clips import ClipFindings, ClipObject, ClipScene, NewTrackId, handover_prompt
from datagen.perceive.prompts import given_mask
from datagen.perceive.usable import CLIPPED, count_refused, refusal, usable_prompts
from datagen.records import RLE, Event, Handover, Prompt, Region, RegionTokens, Sample, Track, TrackFrame, TrackTokens
from datagen.spans import DecodedFrame

_REGIONS_WITHOUT_PROMPTS = 3
_IMAGE_TOKENS, _SEM_TOKENS, _CHANNELS = 4, 2, 8


class FakePerceiveStep:
    """One rectangular region per prompt, or three placed by the asset's id. Implements `guard.Step`; needs no torch."""

    def __init__(self, options: PerceiveOptions) -> None:
        self.options = options

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Invent regions and tokens, after `fake_delay_s` seconds for the whole batch."""
        time.sleep(self.options.fake_delay_s)
        for sample in samples:
            if sample.failure is None:
                _invent(sample)
        return samples

    def teardown(self) -> None:
        """Nothing to let go of."""


class FakeClipPerceiver:
    """Rectangles that stay where they are, one per object, or two new ones in a video's first clip. Needs no torch."""

    def __init__(self, options: PerceiveOptions, image_size: int) -> None:
        self.image_size = image_size
        self._options = options

    def perceive(
        self, scene: ClipScene, frames: Iterator[DecodedFrame], objects: Sequence[ClipObject], new_track_id: NewTrackId | None
    ) -> ClipFindings:
        """Read the frames, sleep `fake_delay_s`, invent the rest (see clips.ClipPerceiver)."""
        seen = [(frame.frame_index, frame.timestamp_s) for frame in frames]
        time.sleep(self._options.fake_delay_s)
        asked = list(objects)
        if new_track_id is not None and not objects:
            asked += [ClipObject(new_track_id(), {0: Prompt(box=_corner_box(n, scene), source="everything")}) for n in range(2)]
        found = ClipFindings()
        for number, item in enumerate(asked):
            track = self._track(number, item, seen, scene)
            found.tracks.append(track)
            prompt = handover_prompt(track.frames[-1], self._options.track.handover)
            if prompt is not None:
                found.handovers.append(Handover(track.track_id, prompt, item.object_id, track.frames[-1].timestamp_s))
        return found

    def _track(self, number: int, item: ClipObject, seen: Sequence[tuple[int, float]], scene: ClipScene) -> Track:
        first = item.prompts[min(item.prompts)] if item.prompts else item.last.prompt if item.last is not None else Prompt()
        rng = np.random.default_rng(number)
        frames = []
        for frame_index, timestamp_s in seen:
            region = _region(number, first, rng, scene.width, scene.height)
            frames.append(
                TrackFrame(number, frame_index, timestamp_s, region.mask, region.box_xyxy, region.object_score, region.predicted_iou)
            )
        prompts = {seen[position][0]: prompt for position, prompt in item.prompts.items()}
        return Track(number, prompts, frames, None, item.track_id, self._events(seen, scene, rng), [], item.object_id)

    def _events(self, seen: Sequence[tuple[int, float]], scene: ClipScene, rng: np.random.Generator) -> list[Event]:
        length, events = self._options.track.segment_frames or len(seen), []
        for start in range(0, len(seen), length):
            segment, following = seen[start : start + length], seen[start + length : start + length + 1]
            until_s = following[0][1] if following else scene.end_s
            events.append(Event(segment[0][1], until_s, segment[0][0], segment[-1][0], _tokens(segment, rng)))
        return events


def _corner_box(number: int, scene: ClipScene) -> Box:
    x, y = min(4 * number, scene.width - 1), min(4, scene.height - 1)
    return float(x), float(y), float(min(x + 12, scene.width)), float(min(y + 16, scene.height))


def _tokens(segment: Sequence[tuple[int, float]], rng: np.random.Generator) -> TrackTokens:
    return TrackTokens(
        frame_indices=[index for index, _ in segment],
        image_first=rng.standard_normal((_IMAGE_TOKENS, _CHANNELS), dtype=np.float32),
        image_later=rng.standard_normal((1, _SEM_TOKENS, _CHANNELS), dtype=np.float32),
        semantic=rng.standard_normal((2, _SEM_TOKENS, _CHANNELS), dtype=np.float32),
    )


def _invent(sample: Sample) -> None:
    width, height = sample.width or 64, sample.height or 64
    rng = np.random.default_rng(int(hashlib.sha256(sample.asset.asset_id.encode()).hexdigest()[:16], 16))
    usable = usable_prompts(sample)
    count_refused(sample, usable)
    sample.pixels = None
    if (failure := refusal(sample, usable)) is not None:
        sample.fail(failure.code, failure.message)
        return
    prompts = usable.prompts
    if prompts is None:
        prompts = [Prompt(box=_random_box(rng, width, height), source="everything") for _ in range(_REGIONS_WITHOUT_PROMPTS)]
    sample.regions = [_region(place, prompt, rng, width, height) for place, prompt in enumerate(prompts)]
    for region in sample.regions:
        region.flags += [CLIPPED] if region.region_index in usable.clipped else []
    if sample.regions:
        sample.tokens = RegionTokens(
            image=rng.standard_normal((len(prompts), _IMAGE_TOKENS, _CHANNELS), dtype=np.float32),
            semantic=rng.standard_normal((len(prompts), _SEM_TOKENS, _CHANNELS), dtype=np.float32),
        )


def _random_box(rng: np.random.Generator, width: int, height: int) -> Box:
    (x1, x2), (y1, y2) = (sorted(rng.integers(0, side, 2)) for side in (width, height))
    return float(x1), float(y1), float(x2 + 1), float(y2 + 1)


def _region(place: int, prompt: Prompt, rng: np.random.Generator, width: int, height: int) -> Region:
    """The given mask, or a rectangle where the prompt asks: its box, or a box around its first point, or at random."""
    mask, box, area = _rectangle(prompt, rng, width, height)
    source = "candidate" if prompt.source == "everything" else "prompt"
    given = given_mask(prompt)
    if given is not None:
        mask, box, area, source = given, rle_box(given) or box, mask_area(given), "given"
    return Region(
        region_index=place if prompt.index is None else prompt.index,
        prompt=prompt,
        mask=mask,
        box_xyxy=box,
        area_px=area,
        predicted_iou=float(rng.uniform(0.5, 1)),
        stability=float(rng.uniform(0.9, 1)),
        object_score=float(rng.uniform(0, 10)),
        mask_source=source,
    )


def _rectangle(prompt: Prompt, rng: np.random.Generator, width: int, height: int) -> tuple[RLE, Box, int]:
    if prompt.box is not None:
        x1, y1, x2, y2 = prompt.box
    elif prompt.points:
        (x, y), reach = prompt.points[0], max(1, min(width, height) // 8)
        x1, y1, x2, y2 = x - reach, y - reach, x + reach, y + reach
    else:
        x1, y1, x2, y2 = _random_box(rng, width, height)
    left, top = (min(max(int(low), 0), side - 1) for low, side in ((x1, width), (y1, height)))
    right, bottom = (min(max(round(high), low + 1), side) for high, low, side in ((x2, left, width), (y2, top, height)))
    piece = np.ones((bottom - top, right - left), dtype=bool)
    return encode_mask(piece, top, left, height, width), (float(left), float(top), float(right), float(bottom)), piece.size
