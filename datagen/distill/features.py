"""What the frozen SAM 2 says of every region and track, once: the mask decoder's image side and the tokens for the perceiver.

Letters of shapes: d channels, G feature grid. A region has one entry per kind of prompt, so that the words do not depend on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datagen.distill.clips import ClipCorpus
from datagen.distill.corpus import Corpus, cached_arrays
from datagen.distill.prompts import BOX_LABELS, POINT_LABELS, inside_point
from datagen.distill.student import Student
from datagen.pam.front_end import FrontEnd
from datagen.pam.tracker import FrameFeatures, MemoryBank, StepOutput, Tracker
from datagen.perceive.tracking import ClipTracking
from datagen.records import Frame, Prompt

PROMPTS = ("box", "point")
_IMAGES_AT_ONCE = 8


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


class _RecordingTracker(Tracker):
    """A tracker that keeps what the decoder said in every frame: image side (K, d, G, G) and tokens (K, 2, d)."""

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__(front_end)
        self.found: dict[int, tuple[NDArray[np.float16], NDArray[np.float16]]] = {}

    def condition(self, bank: MemoryBank, features: FrameFeatures, frame_index: int, *args: Any) -> StepOutput:
        return self._keep(frame_index, super().condition(bank, features, frame_index, *args))

    def track(self, bank: MemoryBank, features: FrameFeatures, frame_index: int, *args: Any) -> StepOutput:
        return self._keep(frame_index, super().track(bank, features, frame_index, *args))

    def _keep(self, frame_index: int, step: StepOutput) -> StepOutput:
        decoded = step.decoded
        sides = decoded.image_embed.cpu().numpy().astype(np.float16), decoded.perceiver_tokens().cpu().numpy().astype(np.float16)
        self.found[frame_index] = sides
        return step


def _track_side(front_end: FrontEnd, corpus: ClipCorpus, tokens: list[NDArray[np.float16]]) -> Iterator[NDArray[np.float16]]:
    """Each track alone, prompted by its box in the first frame that shows it; frames before that one repeat it."""
    for track in corpus.tracks:
        first = next(index for index, box in enumerate(track.boxes) if box is not None)
        box, size = track.boxes[first], front_end.image_size
        prompt = Prompt(box=tuple(value * size for value in box))  # type: ignore[arg-type, union-attr]
        tracker = _RecordingTracker(front_end)
        count = len(track.frames) - first
        tracking = ClipTracking(tracker, [{0: prompt}], count, size, size)
        for number in range(count):
            for _ in tracking.push(Frame(number, float(number), np.asarray(corpus.pixels[track.frames[first + number]]))):
                pass
        for number in range(len(track.frames)):
            side, token = tracker.found[max(number - first, 0)]
            tokens.append(token[0])
            yield side[0]


def _digest(student: Student, masks: NDArray[np.uint8]) -> str:
    """What features follow from: the frozen weights, and the regions."""
    digest = hashlib.sha256(str(masks.shape).encode())
    for tensor in student.segmenter.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
