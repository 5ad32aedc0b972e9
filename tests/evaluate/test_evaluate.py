"""`datagen eval` on datasets whose errors are known, against gold of both kinds."""

import json

import numpy as np
import pytest
from gold_datasets import HALF_OF_LEFT, LEFT, RIGHT, SIDE, SMALL, region, track, write_dataset
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from datagen.cli import app
from datagen.errors import SourceError
from datagen.evaluate import evaluate


@pytest.fixture
def gold(tmp_path):
    label = ("label", "en")
    regions = [region(0, LEFT, {label: "red circle"}), region(1, RIGHT, {label: "blue ring"}), region(2, SMALL, {label: "red circle"})]
    return write_dataset(tmp_path / "gold", {"a.png": regions})


def test_regions_of_one_prompt_are_paired_by_mask_and_a_missing_one_is_wrong(tmp_path, gold):
    label = ("label", "en")
    found = [region(0, HALF_OF_LEFT, {label: "red ring"}), region(1, RIGHT, {label: "Blue ring"})]
    report = evaluate(write_dataset(tmp_path / "found", {"a.png": found}), gold)
    assert report["objects"] == 3
    assert report["masks"] == pytest.approx({"mean_iou": 1.5 / 3, "recall_50": 2 / 3, "recall_75": 1 / 3, "recall_90": 1 / 3})
    scores = report["texts"]["label_en"]
    assert scores["count"] == 3
    assert scores["exact_match"] == pytest.approx(1 / 3)
    assert scores["semantic_iou"] == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert scores["semantic_similarity"] is None
    circle, ring = report["categories"]
    assert (circle["category"], circle["count"], circle["label_exact"]) == ("red circle", 2, 0)
    assert circle["mean_iou"] == pytest.approx(0.25)
    assert (ring["category"], ring["mean_iou"], ring["label_exact"]) == ("blue ring", 1.0, 1.0)


def test_regions_of_a_whole_image_are_paired_by_mask_best_first(tmp_path, gold):
    label = ("label", "en")
    found = [
        region(0, RIGHT, {label: "blue ring"}, "everything"),
        region(1, HALF_OF_LEFT, {label: "red"}, "everything"),
        region(2, LEFT, {label: "red circle"}, "everything"),
    ]
    report = evaluate(write_dataset(tmp_path / "found", {"a.png": found}), gold)
    assert report["masks"]["mean_iou"] == pytest.approx(2 / 3)
    assert report["extra_regions"] == 1
    assert (report["missing_objects"], report["texts"]["label_en"]["missing"]) == (1, 1)
    assert report["texts"]["label_en"]["count"] == 3
    assert report["texts"]["label_en"]["exact_match"] == pytest.approx(2 / 3)


def test_an_image_in_which_nothing_was_found_costs_masks_and_texts(tmp_path):
    label = ("label", "en")
    gold = write_dataset(tmp_path / "gold", {name: [region(0, LEFT, {label: "red circle"})] for name in ("a.png", "b.png")})
    found = {"a.png": [region(0, LEFT, {label: "red circle"}, "everything")], "b.png": []}
    report = evaluate(write_dataset(tmp_path / "found", found), gold)
    assert report["masks"]["mean_iou"] == 0.5
    assert (report["texts"]["label_en"]["count"], report["texts"]["label_en"]["exact_match"]) == (2, 0.5)


def test_a_text_that_was_not_asked_for_is_not_measured(tmp_path, gold):
    report = evaluate(write_dataset(tmp_path / "found", {"a.png": [region(0, LEFT, {("caption", "en"): "A red circle."})]}), gold)
    assert report["texts"] == {}


def test_gold_may_be_a_coco_or_lvis_file(tmp_path):
    rle = coco_mask.encode(np.asfortranarray(RIGHT.astype(np.uint8)))
    document = {
        "images": [{"id": 7, "file_name": "val/a.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": 1, "name": "traffic_light"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 2,
                "segmentation": {"size": [SIDE, SIDE], "counts": rle["counts"].decode()},
                "sentences": [{"sent": "the dog"}, {"sent": "brown dog"}],
            },
        ],
    }
    path = tmp_path / "gold.json"
    path.write_text(json.dumps(document))
    texts = {("label", "en"): "traffic light", ("caption", "en"): ""}, {("label", "en"): "cat", ("caption", "en"): "brown dog"}
    regions = [region(0, LEFT, texts[0]), region(1, RIGHT, texts[1])]
    for extra in ({}, {"a.png": {"coco_image_id": 7}}):
        name = f"found{len(extra)}"
        report = evaluate(write_dataset(tmp_path / name, {"a.png": regions}, extra), str(path))
        assert report["masks"]["mean_iou"] == 1
        assert report["texts"]["label_en"]["exact_match"] == 0.5
        assert report["texts"]["caption_en"]["count"] == 1
        assert report["texts"]["caption_en"]["exact_match"] == 1


def test_clips_are_measured_over_the_frames_that_show_the_object(tmp_path):
    truth = [track(0, [LEFT, None], "The cat sits."), track(1, [RIGHT, RIGHT], "The dog runs.")]
    found = [track(0, [HALF_OF_LEFT, RIGHT], "The cat sits.")]
    report = evaluate(write_dataset(tmp_path / "found", {}, tracks=found), write_dataset(tmp_path / "gold", {}, tracks=truth))
    clips = report["clips"]
    assert (clips["clips"], clips["tracks"]) == (1, 2)
    assert clips["mean_j"] == pytest.approx((0.5 + 0) / 2)
    assert clips["presence"] == pytest.approx(1 / 4)
    assert clips["texts"]["caption_en"]["exact_match"] == 0.5


def test_the_command_prints_tables_and_json(tmp_path, gold):
    shown = CliRunner().invoke(app, ["eval", gold, "--gold", gold])
    assert shown.exit_code == 0, shown.output
    assert "mean_iou" in shown.output
    assert "blue ring" in shown.output
    plain = CliRunner().invoke(app, ["eval", gold, "--gold", gold, "--json"])
    report = json.loads(plain.stdout)
    assert report["masks"]["mean_iou"] == 1
    assert report["texts"]["label_en"]["exact_match"] == 1


def test_the_command_says_what_was_not_there(tmp_path, gold):
    (tmp_path / "gold.json").write_text(
        json.dumps(
            {
                "images": [
                    {"id": n, "file_name": f"{name}.png", "width": 2 * SIDE if name == "b" else SIDE, "height": SIDE}
                    for n, name in enumerate("abc")
                ],
                "annotations": [
                    {"id": n, "image_id": n, "bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]} for n in range(3)
                ]
                + [{"id": 9, "image_id": 0, "segmentation": []}],
            }
        )
    )
    found = write_dataset(tmp_path / "found", {"a.png": [region(0, LEFT, {})], "b.png": [region(0, LEFT, {})], "z.png": []})
    shown = CliRunner().invoke(app, ["eval", found, "--gold", str(tmp_path / "gold.json")])
    text = " ".join(shown.output.split())
    assert "3 objects of 3 images" in text
    assert "1 images missing, 1 images of another size, 2 objects without a region, 1 images not in gold" in text
    assert "gold that cannot be used: 1 prompt_empty" in text
    assert "/pictures/b.png is 20 x 20, gold says 40 x 20 (width x height)" in text


def test_what_has_nothing_in_common_is_refused(tmp_path, gold):
    other = write_dataset(tmp_path / "other", {"b.png": [region(0, LEFT, {})]})
    with pytest.raises(SourceError, match="no image or clip in common"):
        evaluate(other, gold)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read the gold"),
        ('{"images": []}', "no COCO or LVIS file"),
        ('{"images": [], "annotations": []}', "no object to measure"),
        (
            '{"images": [{"id": 1, "width": 2, "height": 2}], "annotations": [{"id": 3, "image_id": 1, "segmentation": [[1]]}]}',
            "annotation 3 has no usable",
        ),
        ('{"images": [], "annotations": [{"id": 3, "image_id": 9}]}', "annotation 3 is of image 9"),
    ],
)
def test_gold_that_cannot_be_used_is_named(tmp_path, gold, content, message):
    path = tmp_path / "gold.json"
    path.write_text(content)
    with pytest.raises(SourceError, match=message):
        evaluate(gold, str(path))
