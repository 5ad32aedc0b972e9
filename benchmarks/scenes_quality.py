"""How well does a student know the rendered scenes? Held-out pictures, through the public door: `datagen run`, then `datagen eval`.

    python benchmarks/scenes_quality.py corpus/student [--images 200] [--clips 40] [--seed 7]

Draws the pictures and clips of a seed that no training may use and by which nothing was tuned (seed 2 was what tiny-shapes' recipe was
chosen by), runs the job of examples/tiny-shapes with box prompts, with point
prompts, without prompts, and on the clips; measures each run against the truth, and prints one table with the targets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from datagen.evaluate import evaluate
from datagen.job import load_job
from datagen.run import run_job
from datagen.scenes import write_scenes
from datagen.scenes.check import attributes_right

JOB = Path(__file__).resolve().parents[1] / "examples" / "tiny-shapes" / "job.yaml"
TRAINING_SEED = 1  # of examples/tiny-shapes/README.md
TARGETS: dict[str, float | None] = {
    "box: mean mask IoU": 0.90,
    "points: mean mask IoU": 0.85,
    "everything: recall at IoU 0.75": 0.85,
    "box: label exact match, en": 0.95,
    "box: label exact match, zh": 0.95,
    "box: caption exact match, en": 0.85,
    "box: description attributes right, en": 0.90,
    "box: description attributes right, zh": 0.90,
    "box: the same, if only the nearest shape is a neighbour, en": None,
    "box: the same, if only the nearest shape is a neighbour, zh": None,
    "clips: mean J": 0.80,
    "clips: event text exact match, en": 0.75,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.seed == TRAINING_SEED:
        parser.error(f"seed {TRAINING_SEED} is what the student was trained on")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.checkpoint, Path(folder), options.images, options.clips, options.seed)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("| held-out scenes | found | target |\n|---|---|---|")
        for name, target in TARGETS.items():
            print(f"| {name} | {found[name]:.3f} | {'' if target is None else f'{target:.2f}'} |")


def measure(checkpoint: str, folder: Path, num_images: int, num_clips: int, seed: int) -> dict[str, float]:
    """The numbers of TARGETS."""
    truth = folder / "truth"
    write_scenes(truth, num_images=num_images, num_clips=num_clips, seed=seed)
    reports = {kind: run(checkpoint, truth, folder / kind, kind) for kind in ("box", "points", "everything", "clips")}
    texts = reports["box"]["texts"]
    return {
        "box: mean mask IoU": reports["box"]["masks"]["mean_iou"],
        "points: mean mask IoU": reports["points"]["masks"]["mean_iou"],
        "everything: recall at IoU 0.75": reports["everything"]["masks"]["recall_75"],
        "box: label exact match, en": texts["label_en"]["exact_match"],
        "box: label exact match, zh": texts["label_zh"]["exact_match"],
        "box: caption exact match, en": texts["caption_en"]["exact_match"],
        "box: description attributes right, en": attributes_right(folder / "box", truth, "en", any_neighbour=True),
        "box: description attributes right, zh": attributes_right(folder / "box", truth, "zh", any_neighbour=True),
        "box: the same, if only the nearest shape is a neighbour, en": attributes_right(folder / "box", truth, "en"),
        "box: the same, if only the nearest shape is a neighbour, zh": attributes_right(folder / "box", truth, "zh"),
        "clips: mean J": reports["clips"]["clips"]["mean_j"],
        "clips: event text exact match, en": reports["clips"]["clips"]["texts"]["caption_en"]["exact_match"],
    }


def run(checkpoint: str, truth: Path, output: Path, kind: str) -> dict:
    # Segment-everything is measured by its masks alone.
    texts = {"describe.tasks": ["label"], "describe.languages": ["en"]} if kind == "everything" else {}
    values = {"source.input": str(truth / f"manifest-{kind}.jsonl"), "output": str(output), "model.checkpoint": checkpoint, **texts}
    run_job(load_job(JOB, values=values))
    return evaluate(str(output), str(truth))


if __name__ == "__main__":
    main()
