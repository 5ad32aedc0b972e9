"""`datagen distill`: the stages one after another, each a plain loop of optimizer steps.

The loop is written out rather than taken from transformers' Trainer or Lightning: it trains parts of one model in turn on batches
that are a pure function of (seed, stage, step), so that resuming needs no sampler or random state and repeats the loss curve to
the last digit; neither trainer takes such batches without being bent, and each would be a heavy dependency for forty lines.

Beside the output lies `<output>.work/`: the cache of decoded media, `metrics.jsonl`, and `state.pt`, which is replaced whole.
A kill at any moment costs at most `save_every_s` of training.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datagen.distill.config import DistillConfig, Stage, StageOptions, parse_config
from datagen.distill.optimizer import make_optimizers
from datagen.distill.student import Student, image_size_of, new_student
from datagen.distill.tasks import Data, Task, make_task, require, trainable
from datagen.errors import JobError, OutputBusyError

_FLOOR = 0.05  # of the learning rate, at the end of a stage


@dataclass(slots=True)
class Sums:
    """Sums of what the steps of an epoch reported."""

    totals: dict[str, float]
    counts: dict[str, int]

    def add(self, report: dict[str, float]) -> None:
        """Count one step."""
        for name, value in report.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Mean of each value over the steps that reported it."""
        return {name: round(total / self.counts[name], 5) for name, total in sorted(self.totals.items())}


Progress = Callable[[dict[str, Any]], None]


def distill(config: DistillConfig, data: str, output: str | Path, progress: Progress = lambda _: None) -> Path:
    """Train a student from the dataset `data` and write it to the folder `output`; goes on with a training that was interrupted.

    progress is given each epoch's metrics. Raises JobError, SourceError or ModelLoadError for what is wrong or missing.
    """
    work = Path(f"{output}.work")
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        return _distill(config, data, Path(output), work, progress)


def _distill(config: DistillConfig, data: str, output: Path, work: Path, progress: Progress) -> Path:
    _refuse_other_training(config, data, work)
    corpora = Data(data, work / "cache", image_size_of(config.student))
    student = new_student(config.student, work / "tokenizer", corpora.texts(), config.seed).to(_device(config.device))
    for stage in config.stages:
        require(stage, student, corpora)
    training = _Training(config, work, student, corpora, progress)
    with _deterministic():
        for number in range(len(config.stages)):
            training.run(number)
    return student.export(output)


@contextmanager
def _deterministic() -> Iterator[None]:
    """The same sums in the same order, where the device can."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class _Training:
    """The state of a training: which stage and step it has reached."""

    def __init__(self, config: DistillConfig, work: Path, student: Student, data: Data, progress: Progress) -> None:
        self.config, self.work, self.student, self.data, self.progress = config, work, student, data, progress
        self.stage, self.step, self.sums = 0, 0, Sums({}, {})
        self._saved: dict[str, Any] = {}
        state = work / "state.pt"
        if state.is_file():
            self._saved = torch.load(state, map_location="cpu", weights_only=True)
            self.stage, self.step = self._saved["stage"], self._saved["step"]
            self.sums = Sums(self._saved["totals"], self._saved["counts"])
            student.load_state_dict(self._saved["student"])
        self._cut_metrics()

    def run(self, number: int) -> None:
        """Train stage `number` to its end, from where it was left; nothing when it is done."""
        if number < self.stage:
            return
        options = self.config.stages[number]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            task = make_task(options, self.student, self.data, (self.config.seed, number), self.work / "cache")
        task.head.to(self.student.device)
        weights = trainable(task)
        optimizers = make_optimizers(options, task.modules(), weights, task.rates)
        if self._saved and number == self._saved["stage"] and self._saved["step"]:
            task.head.load_state_dict(self._saved["head"])
            for optimizer, state in zip(optimizers, self._saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        self._saved = {}
        self._steps(options, task, weights, optimizers)
        self.student.requires_grad_(False).eval()
        if self.config.keep_stages:
            self.student.export(self.work / f"after-{number + 1}-{options.kind}")
        self.stage, self.step = number + 1, 0
        self._save(nn.Module(), [])

    def _steps(self, options: Stage, task: Task, weights: list[nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> None:
        started = saved = time.monotonic()
        while self.step < options.steps:
            self._one_step(options, task, weights, optimizers)
            if self.step % self.config.steps_per_epoch == 0 or self.step == options.steps:
                self._write_metrics(options.kind, time.monotonic() - started)
                started = time.monotonic()
            if time.monotonic() - saved > self.config.save_every_s:
                self._save(task.head, optimizers)
                saved = time.monotonic()

    def _one_step(self, options: Stage, task: Task, weights: list[nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> None:
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # dropout
        share = learning_share(options, self.step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
        with torch.autocast(self.student.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            loss, report = task.loss(task.batch(self.step))
        if not math.isfinite(report["loss"]):
            where = f"stage {self.stage} ({options.kind}) diverged at step {self.step}"
            raise JobError(f"{where}: the loss is {report['loss']}; lower its learning_rate, {options.learning_rate}")
        for weight in weights:
            weight.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, options.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        self.sums.add(report)
        self.step += 1

    def _write_metrics(self, kind: str, seconds: float) -> None:
        line = {"stage": self.stage, "kind": kind, "step": self.step, **self.sums.means(), "seconds": round(seconds, 1)}
        with (self.work / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.sums = Sums({}, {})
        self.progress(line)

    def _cut_metrics(self) -> None:
        """Drop what was written after the state was saved: it will be written again."""
        path = self.work / "metrics.jsonl"
        if path.is_file():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            kept = [line for line in lines if (json.loads(line)["stage"], json.loads(line)["step"]) <= (self.stage, self.step)]
            _replace(path, lambda aside: aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8"))

    def _save(self, head: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        state = {
            "stage": self.stage,
            "step": self.step,
            "totals": self.sums.totals,
            "counts": self.sums.counts,
            "student": self.student.state_dict(),
            "head": head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        _replace(self.work / "state.pt", lambda aside: torch.save(state, aside))


def learning_share(options: StageOptions, step: int) -> float:
    """How much of the learning rate a step uses: a linear rise, then a cosine down to a twentieth."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    part = (step - options.warmup_steps) / max(options.steps - options.warmup_steps, 1)
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * part))


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file aside, flush it to the disk, and give it its name."""
    aside = path.with_name(f".{path.name}.new")
    write(aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold a lock on the work folder, which dies with its holder. Raises OutputBusyError when another training holds it."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputBusyError(f"another training works in {work}; wait for it, or give another --output") from error
        yield


def _refuse_other_training(config: DistillConfig, data: str, work: Path) -> None:
    """The folder beside the output belongs to one training."""
    path = work / "config.json"
    mine = {"config": config.model_dump(mode="json"), "data": str(Path(data).absolute())}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        # What an earlier version did not know is as it is by default.
        found["config"] = parse_config(found["config"], str(path)).model_dump(mode="json")
        changed = [key for key in mine if found.get(key) != mine[key]]
        if changed:
            raise JobError(f"{work} holds a training with other {' and '.join(changed)}; give another --output, or delete that folder")
    else:
        _replace(path, lambda aside: aside.write_text(json.dumps(mine, indent=1), encoding="utf-8"))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
