"""What the frozen SAM 2 says of every region and track, once: the mask decoder's image side and the tokens for the perceiver.

Letters of shapes: d channels, G feature grid. A region has one entry per kind of prompt, so that the words do not depend on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datagen.distill.clips import ClipCorpus, TrackData
from datagen.distill.corpus import Corpus, cached_arrays
from datagen.distill.prompts import BOX_LABELS, POINT_LABELS, inside_point
from datagen.distill.student import Student
from datagen.pam.front_end import FrontEnd
from datagen.pam.tracker import MemoryBank, Tracker, TrackPrompts

PROMPTS = ("box", "point")
_IMAGES_AT_ONCE = 8
_TRACKS_AT_ONCE = 16


def region_features(student: Student, corpus: Corpus, cache: Path) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Image side (R, 2, d, G, G) and tokens (R, 2, 2, d) of all regions, in PROMPTS order; float16, memory-mapped."""
    front_end = student.front_end()
    dim, grid = student.perceiver.sem_tokens.embedding_dim, front_end.image_size // 16
    count, kinds = len(corpus.regions), len(PROMPTS)
    # One pass gives both; the tokens are small enough to wait for their turn.
    tokens: list[NDArray[np.float16]] = []
    arrays = {
        "image_side": ((count, kinds, dim, grid, grid), _image_side(front_end, corpus, tokens)),
        "tokens": ((count, kinds, 2, dim), iter(tokens)),
    }
    image_side, kept = cached_arrays(cache, _digest(student, corpus.masks), arrays, "float16")
    return image_side, kept


def track_features(student: Student, corpus: ClipCorpus, cache: Path) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Image side (G, d, G, G) and tokens (G, 2, d) of all tracks in all frames, in the order of the corpus's masks."""
    front_end = student.front_end()
    dim, grid = student.perceiver.sem_tokens.embedding_dim, front_end.image_size // 16
    tokens: list[NDArray[np.float16]] = []
    arrays = {
        "track_image_side": ((len(corpus.masks), dim, grid, grid), _track_side(front_end, corpus, tokens)),
        "track_tokens": ((len(corpus.masks), 2, dim), iter(tokens)),
    }
    image_side, kept = cached_arrays(cache, _digest(student, corpus.masks), arrays, "float16")
    return image_side, kept


def _image_side(front_end: FrontEnd, corpus: Corpus, tokens: list[NDArray[np.float16]]) -> Iterator[NDArray[np.float16]]:
    for start in range(0, len(corpus.of_image), _IMAGES_AT_ONCE):
        groups = corpus.of_image[start : start + _IMAGES_AT_ONCE]
        features = front_end.encode(torch.tensor(corpus.pixels[start : start + len(groups)]))
        regions = [region for group in groups for region in group]
        index = torch.tensor([slot for slot, group in enumerate(groups) for _ in group])
        sides, kinds = [], []
        for kind in PROMPTS:
            decoded = front_end.decode(features, index, *_prompts(corpus, regions, kind, front_end.image_size))
            sides.append(decoded.image_embed.cpu().numpy().astype(np.float16))
            kinds.append(decoded.perceiver_tokens().cpu().numpy().astype(np.float16))
        tokens.extend(np.stack(kinds, axis=1))
        yield from np.stack(sides, axis=1)


def _prompts(corpus: Corpus, regions: Sequence[int], kind: str, size: int) -> tuple[Tensor, Tensor]:
    """Points (P, N, 2) in model pixels, and their labels."""
    if kind == "box":
        points = np.asarray([corpus.regions[region].box for region in regions]).reshape(-1, 2, 2)
        labels: tuple[int, ...] = BOX_LABELS
    else:
        points = np.stack([inside_point(np.random.default_rng(region), np.asarray(corpus.masks[region])) for region in regions])
        labels = POINT_LABELS
    return torch.from_numpy((points * size).astype(np.float32)), torch.tensor([labels] * len(regions), dtype=torch.int32)


def _track_side(front_end: FrontEnd, corpus: ClipCorpus, tokens: list[NDArray[np.float16]]) -> Iterator[NDArray[np.float16]]:
    """Each track prompted by its box in the first frame that shows it; frames before that one repeat it."""
    tracker = Tracker(front_end)
    for tracks in _followed_together(corpus, tracker.pointer_reach + 1):
        firsts = [_first_seen(track) for track in tracks]
        followed = list(_follow(tracker, corpus, tracks, firsts))
        for slot, (track, first) in enumerate(zip(tracks, firsts, strict=True)):
            for number in range(len(track.frames)):
                sides, kinds = followed[max(number - first, 0)]
                tokens.append(kinds[slot])
                yield sides[slot]


def _followed_together(corpus: ClipCorpus, most: int) -> Iterator[list[TrackData]]:
    """Neighbouring tracks whose pointers' time codes are divided by the same number, a few at a time."""
    for _, alike in groupby(corpus.tracks, lambda track: min(len(track.frames) - _first_seen(track), most)):
        tracks = list(alike)
        yield from (tracks[start : start + _TRACKS_AT_ONCE] for start in range(0, len(tracks), _TRACKS_AT_ONCE))


def _first_seen(track: TrackData) -> int:
    return next(index for index, box in enumerate(track.boxes) if box is not None)


def _follow(
    tracker: Tracker, corpus: ClipCorpus, tracks: Sequence[TrackData], firsts: Sequence[int]
) -> Iterator[tuple[NDArray[np.float16], NDArray[np.float16]]]:
    """Image side (K, d, G, G) and tokens (K, 2, d) of K tracks, frame by frame from each one's first; a shorter track's last repeats."""
    counts = [len(track.frames) - first for track, first in zip(tracks, firsts, strict=True)]
    boxes = np.asarray([track.boxes[first] for track, first in zip(tracks, firsts, strict=True)], np.float32)
    points = torch.from_numpy(boxes.reshape(-1, 2, 2) * tracker.front_end.image_size)
    prompts = TrackPrompts(points=points, labels=torch.tensor([BOX_LABELS] * len(tracks), dtype=torch.int32))
    bank = MemoryBank()
    for number in range(max(counts)):
        rows = [track.frames[first + min(number, count - 1)] for track, first, count in zip(tracks, firsts, counts, strict=True)]
        different, which = np.unique(rows, return_inverse=True)
        features = tracker.encode_each(torch.tensor(corpus.pixels[different]), torch.from_numpy(which))
        if number == 0:
            step = tracker.condition(bank, features, 0, max(counts), [(list(range(len(tracks))), prompts)])
        else:
            step = tracker.track(bank, features, number, max(counts))
            bank.forget((number + 1,), tracker.feature_reach, tracker.pointer_reach)
        decoded = step.decoded
        yield decoded.image_embed.cpu().numpy().astype(np.float16), decoded.perceiver_tokens().cpu().numpy().astype(np.float16)


def _digest(student: Student, masks: NDArray[np.uint8]) -> str:
    """What features follow from: the frozen weights, and the regions."""
    digest = hashlib.sha256(str(masks.shape).encode())
    for tensor in student.segmenter.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
