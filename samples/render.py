"""The project's own pictures for the demo and the tests, with prompts and exact ground truth.

`python samples/render.py [FOLDER]` writes the images, `manifest.jsonl` (prompts) and `truth.jsonl` (masks, boxes, labels) again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scenes import Rendered, Scene, random_scene, render


def mask_box(mask: np.ndarray) -> list[int]:
    """XYXY box of a (H, W) mask, px, right and bottom exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def innermost_point(mask: np.ndarray) -> list[float]:
    """(x, y) px of a mask's pixel that is farthest from its edge."""
    inner = np.pad(mask, 1)
    while True:
        core = inner[1:-1, 1:-1]
        smaller = np.pad(core & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:], 1)
        if not smaller.any():
            rows, columns = np.nonzero(core)
            return [float(columns[len(columns) // 2]) + 0.5, float(rows[len(rows) // 2]) + 0.5]
        inner = smaller


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO RLE of a (H, W) mask, as JSON can hold it."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


@dataclass(frozen=True)
class Sample:
    """A file of this folder. prompts: `box`, `points` (one inside; one outside on a neighbour), `mixed` (a kind per object) or `none`."""

    name: str
    prompts: str
    scene: Scene


def samples() -> list[Sample]:
    """The committed pictures."""
    return [
        Sample("images/01.jpg", "box", random_scene(480, 360, 5, "clouds", 101)),
        Sample("images/02.jpg", "points", random_scene(400, 400, 5, "checker", 102)),
        Sample("images/03.png", "box", random_scene(320, 240, 4, "gradient", 103)),
        Sample("images/04.jpg", "mixed", random_scene(640, 360, 7, "stripes", 104)),
        Sample("images/05.jpg", "none", random_scene(384, 288, 4, "clouds", 105, closeness=1.05)),
        Sample("images/06.jpg", "box", random_scene(270, 480, 6, "dots", 106)),
        Sample("images/07.jpg", "points", random_scene(720, 240, 6, "clouds", 107)),
        Sample("images/08.jpg", "mixed", random_scene(512, 512, 8, "grain", 108, closeness=0.7)),
        Sample("images/09.png", "points", random_scene(256, 256, 3, "stripes", 109)),
        Sample("images/10.jpg", "none", random_scene(448, 252, 5, "gradient", 110, closeness=1.05)),
        Sample("images/11.jpg", "box", random_scene(240, 600, 6, "checker", 111)),
        Sample("images/12.jpg", "mixed", random_scene(600, 450, 9, "dots", 112, closeness=0.7)),
    ]


def manifest_row(sample: Sample, rendered: Rendered) -> dict[str, Any]:
    """The sample's row of manifest.jsonl; prompts follow the order of the shapes."""
    row: dict[str, Any] = {"uri": sample.name, "license": "Apache-2.0", "background": sample.scene.background}
    if sample.prompts != "none":
        kinds = {"box": ["box"], "points": ["points"], "mixed": ["box", "points", "box+points"]}[sample.prompts]
        row["prompts"] = [_prompt(rendered.masks, index, kinds[index % len(kinds)]) for index in range(len(rendered.masks))]
    return row


def _prompt(masks: np.ndarray, index: int, kind: str) -> dict[str, Any]:
    prompt: dict[str, Any] = {}
    if "box" in kind:
        prompt["box"] = mask_box(masks[index])
    if "points" in kind:
        neighbour = masks[(index + 1) % len(masks)]
        prompt["points"] = [innermost_point(masks[index]), innermost_point(neighbour)]
        prompt["labels"] = [1, 0]
    return prompt


def truth_row(sample: Sample, rendered: Rendered) -> dict[str, Any]:
    """The sample's row of truth.jsonl; objects follow the order of the shapes, so object i answers prompt i."""
    objects = [
        {
            "label": shape.label,
            "caption": shape.caption,
            "attributes": {"shape": shape.kind, "color": shape.color, "size": shape.size},
            "box_xyxy": mask_box(mask),
            "area_px": int(mask.sum()),
            "mask": encode_mask(mask),
        }
        for shape, mask in zip(sample.scene.shapes, rendered.masks, strict=True)
    ]
    return {"uri": sample.name, "width": sample.scene.width, "height": sample.scene.height, "objects": objects}


def write_samples(folder: Path) -> None:
    """Write all images, manifest.jsonl and truth.jsonl into `folder`."""
    manifest, truth = [], []
    for sample in samples():
        rendered = render(sample.scene)
        path = folder / sample.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rendered.pixels).save(path, quality=90)
        manifest.append(manifest_row(sample, rendered))
        truth.append(truth_row(sample, rendered))
    for name, rows in (("manifest.jsonl", manifest), ("truth.jsonl", truth)):
        (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
