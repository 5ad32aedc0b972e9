import json
from pathlib import Path

import numpy as np
import pytest
import render
import scenes
from PIL import Image
from pycocotools import mask as coco_mask

from datagen.job import SourceOptions
from datagen.sources import open_source

FOLDER = Path(render.__file__).parent
TRUTH = [json.loads(line) for line in (FOLDER / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
MANIFEST = [json.loads(line) for line in (FOLDER / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
SAMPLES = render.samples()


@pytest.mark.parametrize("index", range(len(SAMPLES)))
def test_the_committed_files_are_what_the_renderer_makes(index):
    sample = SAMPLES[index]
    rendered = scenes.render(sample.scene)
    assert render.truth_row(sample, rendered) == TRUTH[index]
    assert render.manifest_row(sample, rendered) == MANIFEST[index]
    committed = np.asarray(Image.open(FOLDER / sample.name).convert("RGB")).astype(int)
    assert abs(committed - rendered.pixels).mean() < (0.01 if sample.name.endswith("png") else 8)


def test_nothing_else_is_committed():
    assert len(TRUTH) == len(MANIFEST) == len(SAMPLES) == 12
    assert sorted(f"images/{path.name}" for path in (FOLDER / "images").iterdir()) == [sample.name for sample in SAMPLES]
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.*")) < 1_000_000


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        render.write_samples(tmp_path / name)
    files = [path.relative_to(tmp_path / "one") for path in sorted((tmp_path / "one").rglob("*")) if path.is_file()]
    assert len(files) == 14
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_masks_do_not_overlap_and_fit_their_facts():
    for row in TRUTH:
        masks = [coco_mask.decode({**o["mask"], "counts": o["mask"]["counts"].encode()}).astype(bool) for o in row["objects"]]
        assert np.sum(masks, axis=0).max() == 1
        for mask, o in zip(masks, row["objects"], strict=True):
            assert mask.shape == (row["height"], row["width"])
            assert mask.sum() == o["area_px"] > 100
            x1, y1, x2, y2 = o["box_xyxy"]
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
            assert all(edge.any() for edge in (mask[y1], mask[y2 - 1], mask[:, x1], mask[:, x2 - 1]))


def test_the_objects_have_the_colour_that_the_label_says():
    for row in TRUTH:
        pixels = np.asarray(Image.open(FOLDER / row["uri"]).convert("RGB")).astype(float)
        for o in row["objects"]:
            mask = coco_mask.decode({**o["mask"], "counts": o["mask"]["counts"].encode()}).astype(bool)
            distance = {name: np.abs(pixels[mask].mean(axis=0) - rgb).sum() for name, (rgb, _) in scenes.COLORS.items()}
            assert min(distance, key=distance.get) == o["attributes"]["color"]
            assert o["label"]["en"] == f"{o['attributes']['color']} {o['attributes']['shape']}"
            assert not o["label"]["zh"].isascii()


def test_prompts_point_at_their_object():
    kinds = set()
    for asset, row in zip(open_source(SourceOptions(input=str(FOLDER / "manifest.jsonl"))), TRUTH, strict=True):
        assert asset.failure is None
        if asset.prompts is None:
            kinds.add("everything")
            continue
        for prompt, o in zip(asset.prompts, row["objects"], strict=True):
            kinds.add(prompt.type)
            mask = coco_mask.decode({**o["mask"], "counts": o["mask"]["counts"].encode()}).astype(bool)
            assert prompt.box in (None, tuple(o["box_xyxy"]))
            assert [bool(mask[int(y), int(x)]) for x, y in prompt.points] == [label == 1 for label in prompt.labels]
    assert kinds == {"everything", "box", "points", "box+points"}


def test_the_pictures_vary():
    objects = [o for row in TRUTH for o in row["objects"]]
    for attribute, at_least in (("shape", 8), ("color", 8), ("size", 3)):
        assert len({o["attributes"][attribute] for o in objects}) >= at_least
    assert len({(row["width"], row["height"]) for row in TRUTH}) == 12
    assert len({row["background"] for row in MANIFEST}) >= 5


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_every_shape_lies_within_its_radius_and_fills_a_fair_part(kind):
    shape = scenes.Shape(kind, "red", "large", center=(50.0, 40.0), radius=30.0, angle_deg=10.0)
    rendered = scenes.render(scenes.Scene(100, 80, "gradient", scenes.TINTS[0], (shape,), seed=1))
    (mask,) = rendered.masks
    rows, columns = np.nonzero(mask)
    assert np.hypot(columns + 0.5 - 50, rows + 0.5 - 40).max() <= 30.75
    assert 0.2 < mask.sum() / (np.pi * 30**2) <= 1


def test_a_shape_in_front_hides_the_one_behind():
    behind = scenes.Shape("circle", "red", "large", (50.0, 40.0), 30.0)
    front = scenes.Shape("square", "blue", "small", (50.0, 40.0), 10.0)
    rendered = scenes.render(scenes.Scene(100, 80, "dots", scenes.TINTS[1], (behind, front), seed=1))
    assert rendered.masks[:, 40, 50].tolist() == [False, True]
    assert rendered.masks[0].any()
