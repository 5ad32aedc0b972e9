"""What each stage trains, made from its options, the student and the dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from datagen.distill.clips import ClipCorpus, load_clips
from datagen.distill.config import DescribeStage, SegmentStage, Stage
from datagen.distill.corpus import Corpus, load_corpus, read_texts, require_texts
from datagen.distill.describe import DescribeTask
from datagen.distill.features import region_features, track_features
from datagen.distill.segment import SegmentTask
from datagen.distill.student import Student
from datagen.distill.track import TrackTask


class Task(Protocol):
    """What a stage trains. `head`: further parameters that are thrown away in the end."""

    head: nn.Module

    def modules(self) -> Iterator[nn.Module]:
        """The student's parts that are trained."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Trained parameters that belong to no module as a whole."""

    def batch(self, step: int) -> Any:
        """The batch of one step: a function of seed and step alone."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and what to report of it."""


class Data:
    """The dataset's two kinds of examples, each read when a stage first needs it."""

    def __init__(self, dataset: str, cache: Path, image_size: int) -> None:
        self.dataset, self._cache, self._size = dataset, cache, image_size
        self._regions: Corpus | None = None
        self._clips: ClipCorpus | None = None

    def regions(self) -> Corpus:
        """Images with their regions."""
        if self._regions is None:
            self._regions = load_corpus(self.dataset, self._cache, self._size)
        return self._regions

    def clips(self) -> ClipCorpus:
        """Clips with their tracks."""
        if self._clips is None:
            self._clips = load_clips(self.dataset, self._cache, self._size)
        return self._clips

    def texts(self) -> list[str]:
        """Every text once, in the order of the alphabet."""
        regions, tracks = read_texts(self.dataset)
        return sorted({*regions, *tracks})


def make_task(options: Stage, student: Student, data: Data, seed: int, cache: Path) -> Task:
    """The task of a stage; what it takes from the frozen parts is computed now, or found in `cache`. Raises SourceError."""
    if isinstance(options, SegmentStage):
        return SegmentTask(options, student, data.regions(), seed)
    if isinstance(options, DescribeStage):
        return _describe_task(options, student, data, seed, cache)
    return TrackTask(options, student, data.clips(), seed)


def _describe_task(options: DescribeStage, student: Student, data: Data, seed: int, cache: Path) -> DescribeTask:
    regions = tracks = None
    if options.clip_share < 1:
        require_texts(data.regions(), options.tasks, options.languages, data.dataset)
        regions = data.regions(), region_features(student, data.regions(), cache)
    if options.clip_share > 0:
        tracks = data.clips(), track_features(student, data.clips(), cache)
    return DescribeTask(options, student, seed, regions, tracks)


def trainable(task: Task) -> list[nn.Parameter]:
    """Switch on what the task trains, and list it."""
    weights: dict[int, nn.Parameter] = {}
    for module in task.modules():
        module.train()
    for weight in (*(p for module in (*task.modules(), task.head) for p in module.parameters()), *task.parameters()):
        weight.requires_grad = True
        weights[id(weight)] = weight
    return list(weights.values())
