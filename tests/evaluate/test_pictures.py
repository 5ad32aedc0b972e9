"""What `datagen eval` makes of pictures: who answers whom, and what counts as wrong."""

import json
from itertools import groupby
from pathlib import Path

import pytest
from gold_datasets import (
    FAILED,
    HALF_OF_LEFT,
    LEFT,
    RIGHT,
    SIDE,
    SMALL,
    clip,
    image,
    rectangle,
    region,
    track,
    write_dataset,
    write_samples,
)
from pycocotools import mask as coco_mask

from datagen.errors import SourceError
from datagen.evaluate import evaluate
from datagen.job import DescribeOptions, Job
from datagen.masks import encode_mask
from datagen.records import Prompt

LABEL = ("label", "en")
BOXES = {"left": (0, 0, 10, 10), "right": (10, 0, 20, 10), "small": (0, 15, 4, 19)}
MASKS = {"left": LEFT, "right": RIGHT, "small": SMALL}
IDS = {"left": 11, "right": 12, "small": 13}


def asked(index, name, mask=None, source="coco", prompt_id=None, label=None):
    """A region that the box of this object asked for."""
    prompt = Prompt(box=BOXES[name], source=source, id=prompt_id)
    return region(index, MASKS[name] if mask is None else mask, {LABEL: label or name}, prompt=prompt)


def annotation(name, image_id=1, **fields):
    x1, y1, x2, y2 = BOXES[name]
    category = list(BOXES).index(name)
    polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    box = [x1, y1, x2 - x1, y2 - y1]
    return {"id": IDS[name], "image_id": image_id, "category_id": category, "bbox": box, "segmentation": [polygon], **fields}


def coco(folder: Path, annotations, images=None, **fields) -> str:
    document = {
        "images": images or [{"id": 1, "file_name": "a.png", "width": SIDE, "height": SIDE}],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(BOXES)],
        **fields,
    }
    path = folder / "gold.json"
    path.write_text(json.dumps(document))
    return str(path)


def numbers(report):
    return report["masks"]["mean_iou"], report["texts"]["label_en"]["exact_match"]


LISTED = {"coco_image_id": 1, "coco_annotations": [{"id": IDS[name]} for name in BOXES]}


def test_a_box_that_leaves_the_picture_is_known_as_it_was_asked(tmp_path):
    wide = {"bbox": [-30, 0, 40, 10]}  # of LEFT, whose prompt was cut to the picture
    found = write_samples(tmp_path / "found", [image("a.png", [asked(0, "left", mask=RIGHT, prompt_id="11")])])
    report = evaluate(found, coco(tmp_path, [annotation("left", **wide), annotation("right")]))
    assert (report["objects"], report["missing_objects"], numbers(report)) == (2, 1, (0, 0.5))


def test_label_studios_names_are_paths(tmp_path):
    found = write_samples(tmp_path / "found", [image("pics/a.png", [asked(n, name) for n, name in enumerate(BOXES)])])
    images = [{"id": 1, "file_name": "/data/local-files/?d=pics%2Fa.png", "width": SIDE, "height": SIDE}]
    assert numbers(evaluate(found, coco(tmp_path, [annotation(name) for name in BOXES], images))) == (1, 1)


def test_two_entries_of_one_file_are_one_picture_however_it_is_spelled(tmp_path):
    found = write_samples(tmp_path / "found", [image("a.png", [asked(n, name) for n, name in enumerate(BOXES)])])
    images = [{"id": n, "file_name": name, "width": SIDE, "height": SIDE} for n, name in enumerate(["a.png", "./a.png", "x/../a.png"])]
    report = evaluate(found, coco(tmp_path, [annotation("left", 0), annotation("right", 1), annotation("small", 2)], images))
    assert (report["images"], numbers(report)) == (1, (1, 1))


@pytest.mark.parametrize("order", [["left", "right", "small"], ["small", "right", "left"]])
@pytest.mark.parametrize("version", [1, 2])
def test_the_order_of_gold_does_not_matter(tmp_path, order, version):
    regions = [asked(n, name, prompt_id=str(IDS[name])) for n, name in enumerate(BOXES)]
    found = write_samples(tmp_path / "found", [image("a.png", regions, extra=LISTED)], version=version)
    assert numbers(evaluate(found, coco(tmp_path, [annotation(name) for name in order]))) == (1, 1)


@pytest.mark.parametrize("version", [1, 2])
def test_an_annotation_is_measured_against_itself_though_another_mask_fits_better(tmp_path, version):
    """Both regions came out wrong: each has the other's mask."""
    regions = [asked(0, "left", RIGHT, prompt_id="11"), asked(1, "right", LEFT, prompt_id="12")]
    found = write_samples(tmp_path / "found", [image("a.png", regions, extra=LISTED)], version=version)
    assert numbers(evaluate(found, coco(tmp_path, [annotation("right"), annotation("left")]))) == (0, 1)


def test_prompts_of_a_manifest_are_paired_by_their_boxes(tmp_path):
    regions = [asked(0, "small", LEFT, source="manifest"), asked(1, "right", source="manifest"), asked(2, "left", SMALL, source="manifest")]
    found = write_dataset(tmp_path / "found", {"a.png": regions})
    report = evaluate(found, coco(tmp_path, [annotation(name) for name in BOXES]))
    assert numbers(report) == (pytest.approx(1 / 3), 1)


def test_ids_that_another_file_gave_are_not_believed(tmp_path):
    """The same numbers, the other way round: what the prompts ask for is the truth."""
    regions = [asked(0, "left", prompt_id="12"), asked(1, "right", prompt_id="11")]
    found = write_dataset(tmp_path / "found", {"a.png": regions})
    assert numbers(evaluate(found, coco(tmp_path, [annotation("left"), annotation("right")]))) == (1, 1)


def test_masks_ask_for_objects_too(tmp_path):
    def given(index, name, answer):
        return region(index, answer, {LABEL: name}, prompt=Prompt(mask=encode_mask(MASKS[name]), source="coco"))

    found = write_dataset(tmp_path / "found", {"a.png": [given(0, "right", LEFT), given(1, "left", RIGHT)]})
    assert numbers(evaluate(found, coco(tmp_path, [annotation("left"), annotation("right")]))) == (0, 1)


def test_points_ask_for_the_object_that_they_are_in(tmp_path):
    def pointed(index, point, answer, name):
        prompt = Prompt(points=[point, (19.0, 19.0)], labels=[1, 0])
        return region(index, answer, {LABEL: name}, prompt=prompt)

    regions = [pointed(0, (15.0, 5.0), LEFT, "right"), pointed(1, (5.0, 5.0), RIGHT, "left")]
    found = write_dataset(tmp_path / "found", {"a.png": regions})
    assert numbers(evaluate(found, coco(tmp_path, [annotation("left"), annotation("right")]))) == (0, 1)


def test_a_dataset_against_a_dataset_is_paired_by_the_same_prompts(tmp_path):
    gold = write_dataset(tmp_path / "gold", {"a.png": [asked(n, name) for n, name in enumerate(BOXES)]})
    found = write_dataset(tmp_path / "found", {"a.png": [asked(n, name, LEFT) for n, name in enumerate(reversed(BOXES))]})
    assert numbers(evaluate(found, gold)) == (pytest.approx(1 / 3), 1)


@pytest.mark.parametrize(("mask", "exact"), [(HALF_OF_LEFT, 1), (rectangle(0, 0, 5, 9), 0)])
def test_words_about_a_mask_count_from_an_overlap_of_a_half_on(tmp_path, mask, exact):
    gold = write_dataset(tmp_path / "gold", {"a.png": [asked(0, "left")]})
    found = write_dataset(tmp_path / "found", {"a.png": [region(0, mask, {LABEL: "left"}, "everything")]})
    report = evaluate(found, gold)
    assert report["texts"]["label_en"] == report["texts"]["label_en"] | {"count": 1, "exact_match": exact, "missing": 1 - exact}
    assert report["masks"]["mean_iou"] == pytest.approx(mask.sum() / 100)


def test_half_of_the_pictures_is_half_of_everything(tmp_path):
    names = [f"{n}.png" for n in range(4)]
    whole = {name: [asked(0, "left"), asked(1, "right")] for name in names}
    gold = write_dataset(tmp_path / "gold", whole)
    assert numbers(evaluate(gold, gold)) == (1, 1)
    half = evaluate(write_dataset(tmp_path / "half", {name: whole[name] for name in names[:2]}), gold)
    assert numbers(half) == (0.5, 0.5)
    assert (half["images"], half["objects"], half["missing_images"], half["missing_objects"]) == (4, 8, 2, 4)
    thinned = evaluate(write_dataset(tmp_path / "thinned", {name: whole[name][:1] for name in names}), gold)
    assert numbers(thinned) == (0.5, 0.5)
    failed = evaluate(write_samples(tmp_path / "f", [image(n, FAILED if n in names[:2] else whole[n]) for n in names]), gold)
    assert numbers(failed) == (0.5, 0.5)
    assert (failed["missing_images"], failed["failed_images"]) == (0, 2)


def test_nothing_but_failures_scores_nothing(tmp_path):
    gold = write_dataset(tmp_path / "gold", {"a.png": [asked(0, "left")]})
    job = Job(describe=DescribeOptions(tasks=("label",), languages=("en",)))
    for name in ("a.png", "elsewhere.png"):
        report = evaluate(write_samples(tmp_path / name, [image(name, FAILED)], job=job), gold)
        assert numbers(report) == (0, 0)
        assert report["failed_images"] + report["missing_images"] == 1


def test_other_sizes_fail_the_picture_and_are_named(tmp_path):
    images = [{"id": n, "file_name": f"{name}.png", "width": side, "height": SIDE} for n, name, side in ((1, "a", 40), (2, "b", SIDE))]
    found = write_samples(tmp_path / "found", [image(f"{name}.png", [asked(0, "left")]) for name in "ab"])
    report = evaluate(found, coco(tmp_path, [annotation("left", 1), annotation("left", 2)], images))
    assert numbers(report) == (0.5, 0.5)
    assert report["other_size_images"] == 1
    assert report["problems"] == ["/pictures/a.png is 20 x 20, gold says 40 x 20 (width x height)"]


def test_masks_of_another_size_fail_the_picture_too(tmp_path):
    gold = write_samples(tmp_path / "gold", [image("a.png", [region(0, rectangle(0, 0, 9, 9, 30, 10), {})])])
    report = evaluate(write_dataset(tmp_path / "found", {"a.png": [asked(0, "left")]}), gold)
    assert (report["masks"]["mean_iou"], report["other_size_images"]) == (0, 1)
    assert "20 x 20 and 30 x 10" in report["problems"][0]


def test_a_mask_is_not_turned(tmp_path):
    """Not square and of no symmetry, as a polygon, as runs and compressed: all of one picture."""
    width, height = 30, 10
    mask = rectangle(2, 1, 25, 3, width, height) | rectangle(2, 1, 4, 9, width, height)
    ring = [2, 1, 25, 1, 25, 3, 4, 3, 4, 9, 2, 9]
    rle = encode_mask(mask)
    runs = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()}).flatten(order="F").tolist()
    lengths = [len(list(group)) for _, group in groupby(runs)]
    forms = [[ring], dict(rle), {"size": [height, width], "counts": lengths}]
    found = write_samples(tmp_path / "found", [image("a.png", [region(0, mask, {})], size=(width, height))])
    for form in forms:
        images = [{"id": 1, "file_name": "a.png", "width": width, "height": height}]
        assert evaluate(found, coco(tmp_path, [annotation("left", bbox=None, segmentation=form)], images))["masks"]["mean_iou"] == 1


def test_crowds_are_no_objects_and_what_is_in_them_is_no_mistake(tmp_path):
    crowd = annotation("right", id=99, iscrowd=1, segmentation=encode_mask(RIGHT))
    inside, half_out = rectangle(12, 2, 16, 8), rectangle(8, 0, 12, 10)
    regions = [asked(0, "left", prompt_id="11"), region(1, inside, {}, "everything"), region(2, half_out, {}, "everything")]
    regions += [region(3, SMALL, {}, "everything"), asked(4, "right", SMALL, prompt_id="99")]
    report = evaluate(write_dataset(tmp_path / "found", {"a.png": regions}), coco(tmp_path, [annotation("left"), crowd]))
    assert (report["objects"], report["masks"]["mean_iou"]) == (1, 1)
    assert (report["extra_regions"], report["ignored_regions"]) == (1, 3)


def test_pictures_are_matched_by_the_longest_common_path(tmp_path):
    images = [{"id": n, "file_name": f"{folder}/a.png", "width": SIDE, "height": SIDE} for n, folder in enumerate(("x", "y"))]
    gold = coco(tmp_path, [annotation("left", 0), annotation("right", 1)], images)
    samples = [image("1", [asked(0, "right")], uri="/data/y/a.png"), image("2", [asked(0, "left")], uri="/data/x/a.png")]
    assert numbers(evaluate(write_samples(tmp_path / "found", samples), gold)) == (1, 1)
    other = [image("1", [asked(0, "right")], uri="/data/z/a.png")]
    with pytest.raises(SourceError, match=r"x/a\.png and y/a\.png, images of gold, fit the image of the dataset /data/z/a\.png equally"):
        evaluate(write_samples(tmp_path / "other", other), gold)


def test_two_files_of_a_dataset_for_one_of_gold_are_refused(tmp_path):
    gold = coco(tmp_path, [annotation("left")])
    samples = [image(name, [asked(0, "left")], uri=f"/data/{name}/a.png") for name in ("x", "y")]
    with pytest.raises(SourceError, match=r"/data/x/a\.png and /data/y/a\.png, images of the dataset, fit the image of gold a\.png"):
        evaluate(write_samples(tmp_path / "found", samples), gold)
    samples = [image("x", [asked(0, "left")], uri="/data/x/a.png", extra={"coco_image_id": 1}), samples[1]]
    report = evaluate(write_samples(tmp_path / "listed", samples), gold)
    assert (report["masks"]["mean_iou"], report["images_not_in_gold"]) == (1, 1)


def test_an_id_is_believed_only_where_the_names_agree(tmp_path):
    images = [
        {"id": 1, "file_name": "b.png", "width": SIDE, "height": SIDE},
        {"id": 2, "file_name": "a.png", "width": SIDE, "height": SIDE},
    ]
    gold = coco(tmp_path, [annotation("right", 1), annotation("left", 2)], images)
    found = write_samples(tmp_path / "found", [image("a.png", [asked(0, "left")], asset_id="1", extra={"coco_image_id": 1})])
    report = evaluate(found, gold)
    assert (report["masks"]["mean_iou"], report["missing_images"]) == (0.5, 1)
    same = write_samples(tmp_path / "same", [image("b.png", [asked(0, "left")], asset_id="1")])
    assert evaluate(found, found)["masks"]["mean_iou"] == 1
    with pytest.raises(SourceError, match="no image or clip in common"):
        evaluate(same, found)


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("cats/1.png", "/data/shards/0.tar#cats/1.png"),
        ("val\\1.png", "/data/val/1.png"),
        ("http://images.cocodataset.org/val/1.png", "s3://bucket/val/1.png"),
        ("1.png", "file:///data/%FF/1.png"),
    ],
)
def test_names_in_every_writing(tmp_path, name, uri):
    images = [{"id": 5, "coco_url" if "://" in name else "file_name": name, "width": SIDE, "height": SIDE}]
    found = write_samples(tmp_path / "found", [image("x", [asked(0, "left")], uri=uri)])
    assert evaluate(found, coco(tmp_path, [annotation("left", 5)], images))["masks"]["mean_iou"] == 1


def test_rows_of_tables_are_matched_with_their_table(tmp_path):
    gold = write_samples(tmp_path / "gold", [image(str(n), [asked(0, "left")], uri=f"/g/train-{n}.parquet#image[3]") for n in range(2)])
    found = write_samples(tmp_path / "found", [image(f"f{n}", [asked(0, "left")], uri=f"/f/train-{n}.parquet#image[3]") for n in (1, 2)])
    report = evaluate(found, gold)
    assert (report["masks"]["mean_iou"], report["missing_images"], report["images_not_in_gold"]) == (0.5, 1, 1)


def test_gold_as_tools_write_it(tmp_path):
    whole = [{"id": 1, "file_name": "a.png", "width": str(SIDE), "height": float(SIDE)}]
    found = write_dataset(tmp_path / "found", {"a.png": [asked(0, "left", prompt_id="11")]})
    spoken = {"sentences": [{"raw": "the left"}, "left one"], "captions": None, "caption": "left"}
    for fields in ({}, {"sentences": None}, spoken, {"image_id": "1"}, {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]], "bbox": None}):
        assert evaluate(found, coco(tmp_path, [annotation("left", **fields)], whole))["masks"]["mean_iou"] == 1
    deep = Path(coco(tmp_path, [annotation("left", sentences="DEEP")], whole))
    deep.write_text(deep.read_text().replace('"DEEP"', "[" * 900 + "]" * 900))
    assert evaluate(found, str(deep))["masks"]["mean_iou"] == 1
    for categories in (None, [{"name": "left"}], [{"id": "0", "name": "left"}]):
        report = evaluate(found, coco(tmp_path, [annotation("left")], whole, categories=categories))
        assert report["texts"].get("label_en", {}).get("exact_match") == (1 if categories and "id" in categories[0] else None)
    path = Path(coco(tmp_path, [annotation("left")], [{"id": 1, "file_name": "a.png"}]))
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert evaluate(found, str(path))["masks"]["mean_iou"] == 1


POOR = [
    ({"segmentation": [[float("nan"), 0, 9, 0, 9, 9]]}, "prompt_mask"),
    ({"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]}, "prompt_mask"),
    ({"segmentation": [[0, 0, 39, 19] * 60_000]}, "prompt_mask"),
    ({"segmentation": {"size": [SIDE, SIDE], "counts": [-5, 405]}}, "prompt_mask"),
    ({"segmentation": {"size": [65536, 65536], "counts": [2**32]}}, "prompt_mask"),
    ({"segmentation": {"size": [SIDE, 2 * SIDE], "counts": [800]}}, "prompt_mask_size"),
    ({"segmentation": []}, "prompt_empty"),
]


@pytest.mark.parametrize(("fields", "code"), POOR)
def test_a_poor_annotation_of_gold_is_counted_and_named(tmp_path, fields, code):
    found = write_dataset(tmp_path / "found", {"a.png": [asked(0, "left")]})
    report = evaluate(found, coco(tmp_path, [annotation("left"), annotation("right", **fields), annotation("small", 77)]))
    assert (report["objects"], report["masks"]["mean_iou"]) == (1, 1)
    assert report["unusable_gold"] == {"annotation of an unknown image": 1, code: 1}
    assert any("annotation 12 has no usable segmentation" in problem for problem in report["problems"])
    assert any("annotation 13 is of image 77" in problem for problem in report["problems"])


def test_gold_of_a_kind_that_the_dataset_has_not_is_said_not_to_be_measured(tmp_path):
    gold = write_samples(tmp_path / "gold", [image("a.png", [asked(0, "left")])], [clip([track(0, [LEFT], "x")])])
    report = evaluate(write_dataset(tmp_path / "found", {"a.png": [asked(0, "left")]}), gold)
    assert "clips" not in report
    assert report["not_measured"] == {"video": 1}


def test_a_damaged_mask_of_a_dataset_is_named_and_never_compared(tmp_path):
    broken = asked(0, "left")
    broken.mask["counts"] = broken.mask["counts"][:-2]
    found = write_dataset(tmp_path / "found", {"a.png": [broken]})
    with pytest.raises(SourceError, match="has a damaged mask"):
        evaluate(found, coco(tmp_path, [annotation("left")]))
