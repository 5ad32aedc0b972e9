"""What each stage trains, made from its options, the student and the dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from datagen.distill.clips import ClipCorpus, load_clips, require_captions
from datagen.distill.config import DescribeStage, EncodeStage, SegmentStage, Stage
from datagen.distill.corpus import Corpus, load_corpus, read_texts, require_texts
from datagen.distill.describe import DescribeTask
from datagen.distill.encode import EncodeTask
from datagen.distill.features import region_features, track_features
from datagen.distill.prompts import Seed
from datagen.distill.segment import SegmentTask
from datagen.distill.student import Student
from datagen.distill.teacher import Teacher, require_teacher
from datagen.distill.track import TrackTask
from datagen.pam.llm import tokenizer_fingerprint


class Task(Protocol):
    """What a stage trains. `head`: further parameters that are thrown away in the end. rates: the share of the learning rates that a
    module has, where it is not all of it.
    """

    head: nn.Module
    rates: dict[nn.Module, float]

    def modules(self) -> Iterator[nn.Module]:
        """The student's parts that are trained; parameters that belong to no part as a whole, as an nn.ParameterList."""

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
        self._teachers: dict[str, Teacher] = {}

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

    def teacher(self, table: str) -> Teacher:
        """What a teacher held likely, of the texts in `regions` or `tracks`."""
        if table not in self._teachers:
            self._teachers[table] = Teacher(self.dataset, table, self._cache)
        return self._teachers[table]

    def texts(self) -> list[str]:
        """Every text once, in the order of the alphabet."""
        regions, tracks = read_texts(self.dataset)
        return sorted({*regions, *tracks})


def require(options: Stage, student: Student, data: Data) -> None:
    """See that the dataset has what a stage learns from, before any stage begins. Raises SourceError naming what is missing."""
    if not isinstance(options, DescribeStage):
        return
    tables = [table for table, share in (("regions", 1 - options.clip_share), ("tracks", options.clip_share)) if share > 0]
    if "regions" in tables:
        require_texts(data.regions(), options.tasks, options.languages, data.dataset)
    if "tracks" in tables:
        require_captions(data.clips(), options.languages, data.dataset)
    for table in tables if options.distill_weight else ():
        asked: list[tuple[Any, str]] = [(task, language) for task in options.tasks for language in options.languages]
        require_teacher(data.teacher(table), asked if table == "regions" else [], tokenizer_fingerprint(student.tokenizer), data.dataset)


def make_task(options: Stage, student: Student, data: Data, seed: Seed, cache: Path) -> Task:
    """The task of a stage; what it takes from the frozen parts is computed now, or found in `cache`. Raises SourceError."""
    if isinstance(options, EncodeStage):
        return EncodeTask(options, student, data.regions(), seed)
    if isinstance(options, SegmentStage):
        return SegmentTask(options, student, data.regions(), seed)
    if isinstance(options, DescribeStage):
        return _describe_task(options, student, data, seed, cache)
    return TrackTask(options, student, data.clips(), seed)


def _describe_task(options: DescribeStage, student: Student, data: Data, seed: Seed, cache: Path) -> DescribeTask:
    regions, tracks, teachers = None, None, dict[str, Teacher]()
    if options.clip_share < 1:
        regions = data.regions(), region_features(student, data.regions(), cache)
    if options.clip_share > 0:
        tracks = data.clips(), track_features(student, data.clips(), cache)
    if options.distill_weight:
        teachers = {name: data.teacher(name) for name, corpus in (("regions", regions), ("tracks", tracks)) if corpus is not None}
    return DescribeTask(options, student, seed, regions, tracks, teachers)


def trainable(task: Task) -> list[nn.Parameter]:
    """Switch on what the task trains, and list it; a module whose rate is 0 stays frozen."""
    weights: dict[int, nn.Parameter] = {}
    modules = [module for module in task.modules() if task.rates.get(module, 1.0) > 0]
    for module in modules:
        module.train()
    for module in (*modules, task.head):
        for weight in module.parameters():
            weight.requires_grad = True
            weights[id(weight)] = weight
    return list(weights.values())
