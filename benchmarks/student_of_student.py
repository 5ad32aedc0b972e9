"""Does a corpus teach? A trained checkpoint captions fresh scenes, a still smaller student learns from that corpus alone, and both are
asked about scenes that neither has seen.

    python benchmarks/student_of_student.py corpus/student [--images 8000] [--held-out 200] [--work corpus/smaller]

Renders pictures; runs the job of examples/tiny-shapes on them with the teacher, with `describe.logprobs`; trains the student of
examples/tiny-shapes/smaller.yaml from its rows by `datagen distill`, its last stage twice: from the texts alone, and from the token
log-probabilities, too; and prints one table. The truth of the pictures trains nobody here. Everything lies in --work, and a second start
goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from scenes_quality import JOB, TRAINING_SEED

from datagen.distill.config import DescribeStage, DistillConfig, StudentOptions, load_config
from datagen.distill.student import new_student
from datagen.distill.train import Progress, distill
from datagen.evaluate import evaluate
from datagen.job import load_job
from datagen.run import run_job
from datagen.scenes import write_scenes

CONFIG = JOB.with_name("smaller.yaml")
TARGET = 0.90
MODELS = ("untrained", "student, texts", "student, distilled", "teacher")
TEXTS = ("label_en", "label_zh", "caption_en", "caption_zh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("teacher")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--work", type=Path, default=Path("corpus/smaller"))
    parser.add_argument("--images", type=int, default=8000, help="pictures that the teacher captions")
    parser.add_argument("--seed", type=int, default=3, help="of those pictures")
    parser.add_argument("--held-out", type=int, default=200, help="pictures that all are asked about")
    parser.add_argument("--held-out-seed", type=int, default=2)
    parser.add_argument("--logprobs", type=int, default=8, help="likeliest tokens stored at every place")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if len({TRAINING_SEED, options.seed, options.held_out_seed}) < 3:
        parser.error(f"{TRAINING_SEED} is the seed of the teacher's training; give --seed and --held-out-seed others, one each")
    found = measure(options)
    print(json.dumps(found, indent=2) if options.json else table(found))


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Model -> what it is worth on held-out scenes."""
    work, tasks = options.work, {"describe.tasks": ["label", "caption"]}
    scenes, truth, corpus = work / "scenes", work / "truth", work / "corpus"
    write_scenes(scenes, num_images=options.images, seed=options.seed)
    write_scenes(truth, num_images=options.held_out, seed=options.held_out_seed)
    caption(options.teacher, scenes, corpus, {**tasks, "describe.logprobs": options.logprobs})
    found = {}
    for name, checkpoint in checkpoints(load_config(options.config), options.teacher, corpus, work).items():
        output = work / f"found-{name.replace(', ', '-')}"
        caption(str(checkpoint), truth, output, tasks)
        report = evaluate(str(output), str(truth))
        found[name] = {f"{text} exact": report["texts"][text]["exact_match"] for text in TEXTS} | {"box IoU": report["masks"]["mean_iou"]}
    return found


def caption(checkpoint: str, scenes: Path, output: Path, values: dict[str, Any]) -> None:
    """`datagen run` on the scenes, each object prompted by its box."""
    source = {"source.input": str(scenes / "manifest-box.jsonl"), "output": str(output), "model.checkpoint": checkpoint}
    run_job(load_job(JOB, values={**source, **values}))


def checkpoints(config: DistillConfig, teacher: str, corpus: Path, work: Path) -> dict[str, str | Path]:
    """The models that are compared, trained where they have to be; both students see alike, and differ in how they learned to tell."""
    options = config.student.model_copy(update={"tokenizer": teacher})
    telling = [stage for stage in config.stages if isinstance(stage, DescribeStage)]
    seeing = [stage for stage in config.stages if not isinstance(stage, DescribeStage)]
    new = new_student(options, work / "untrained.work", [], config.seed).export(work / "untrained")
    sight = distill(config.model_copy(update={"student": options, "stages": tuple(seeing)}), str(corpus), work / "sight", progress("sight"))
    found: list[str | Path] = [new]
    for name, changes in (("texts", {"distill_weight": 0.0}), ("distilled", {})):
        stages = tuple(stage.model_copy(update=changes) for stage in telling)
        taught = config.model_copy(update={"student": StudentOptions(init=str(sight)), "stages": stages})
        found.append(distill(taught, str(corpus), work / name, progress(name)))
    return dict(zip(MODELS, (*found, teacher), strict=True))


def progress(name: str) -> Progress:
    return lambda line: print(f"{name}: {json.dumps(line)}", flush=True)


def table(found: dict[str, dict[str, float]]) -> str:
    """One row per measure, one column per model, and what the students recover of their teacher's labels."""
    lines = [f"| held-out scenes | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    lines += [f"| {name} | {' | '.join(f'{of[name]:.3f}' for of in found.values())} |" for name in found["teacher"]]
    recovered = " | ".join(share(of, found["teacher"]) for of in found.values())
    return "\n".join([*lines, f"| share of the teacher's label accuracy (target {TARGET:.2f}) | {recovered} |"])


def share(model: dict[str, float], teacher: dict[str, float]) -> str:
    """Mean label accuracy over both languages, relative to the teacher's."""
    of_model, of_teacher = (of["label_en exact"] + of["label_zh exact"] for of in (model, teacher))
    return f"{of_model / of_teacher:.3f}" if of_teacher else "teacher knows none"


if __name__ == "__main__":
    main()
