import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.records import Prompt
from datagen.sources import Source, open_source

POLYGON = [2.0, 1.0, 8.0, 1.0, 8.0, 5.0, 2.0, 5.0]


def annotation(annotation_id: int, image_id: int = 1, **fields) -> dict:
    return {"id": annotation_id, "image_id": image_id, "category_id": 3, "bbox": [2, 1, 6, 4], "segmentation": [POLYGON], **fields}


def coco(folder: Path, *annotations: dict, **fields) -> Path:
    document = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 12, "height": 8, "license": 4},
            {"id": 2, "file_name": "sub/b.jpg", "width": 12, "height": 8},
        ],
        "annotations": list(annotations),
        "categories": [{"id": 3, "name": "étoile"}],
        "licenses": [{"id": 4, "name": "CC BY"}],
        **fields,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def source_of(path: Path, **options) -> Source:
    return open_source(SourceOptions(input=str(path), **options))


def decoded(prompt: Prompt) -> np.ndarray:
    return coco_mask.decode({"size": prompt.mask["size"], "counts": prompt.mask["counts"].encode()})


def test_annotations_become_boxes_in_order(tmp_path):
    path = coco(tmp_path, annotation(11), annotation(12, bbox=[0, 0, 3.5, 2], iscrowd=1))
    first, second = source_of(path)
    assert first.uri == str(tmp_path / "a.jpg")
    assert first.prompts == [Prompt(box=(2.0, 1.0, 8.0, 5.0), source="coco"), Prompt(box=(0.0, 0.0, 3.5, 2.0), source="coco")]
    assert first.license == "CC BY"
    assert first.extra == {
        "coco_image_id": 1,
        "coco_annotations": [
            {"id": 11, "category": "étoile", "iscrowd": False},
            {"id": 12, "category": "étoile", "iscrowd": True},
        ],
    }
    assert second.uri == str(tmp_path / "sub/b.jpg")
    assert second.prompts is None
    assert second.extra == {"coco_image_id": 2, "coco_annotations": []}


def test_the_three_kinds_of_segmentation_become_masks(tmp_path):
    expected = np.zeros((8, 12), np.uint8)
    expected[1:5, 2:8] = 1
    compressed = coco_mask.encode(np.asfortranarray(expected))
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate(([2], expected.T.ravel(), [2]))))).tolist()
    segmentations = [[POLYGON], {"size": [8, 12], "counts": compressed["counts"].decode()}, {"size": [8, 12], "counts": runs}]
    path = coco(tmp_path, *(annotation(i, segmentation=value) for i, value in enumerate(segmentations)))
    first, _ = source_of(path, coco_prompt="mask")
    assert [prompt.type for prompt in first.prompts] == ["mask"] * 3
    for prompt in first.prompts:
        np.testing.assert_array_equal(decoded(prompt), expected)


def test_several_polygons_are_one_object(tmp_path):
    other = [9.0, 5.0, 12.0, 5.0, 12.0, 8.0, 9.0, 8.0]
    first, _ = source_of(coco(tmp_path, annotation(1, segmentation=[POLYGON, other])), coco_prompt="mask")
    assert len(first.prompts) == 1
    assert decoded(first.prompts[0]).sum() == 24 + 9


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"bbox": [1, 2, 3]}, "box"),
        ({"bbox": None}, "box"),
        ({"segmentation": []}, "mask"),
        ({"segmentation": [[1, 2, 3, 4]]}, "mask"),
        ({"segmentation": [[1, 2, 3, 4, 5, 1e12]]}, "mask"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "mask"),
        ({"segmentation": {"size": [8, 12], "counts": [1, 2]}}, "mask"),
        ({"segmentation": {"size": [8, 12], "counts": "zzzz"}}, "mask"),
    ],
)
def test_an_annotation_that_makes_no_sense_fails_its_image(tmp_path, fields, kind):
    bad, good = source_of(coco(tmp_path, annotation(1), annotation(77, **fields), annotation(3, image_id=2)), coco_prompt=kind)
    assert bad.failure.code == "manifest_bad_prompts"
    assert "annotation 77" in bad.failure.message
    assert good.failure is None


def test_a_polygon_needs_the_pictures_size(tmp_path):
    path = coco(tmp_path, annotation(1), images=[{"id": 1, "file_name": "a.jpg"}])
    (asset,) = source_of(path, coco_prompt="mask")
    assert asset.failure.code == "manifest_bad_prompts"


def test_images_without_a_name_and_annotations_without_an_image(tmp_path):
    (tmp_path / "media").mkdir()
    path = coco(tmp_path, annotation(1, image_id=99), images=[{"id": 1}, {"id": 2, "file_name": "b.jpg"}])
    source = source_of(path, media_root=str(tmp_path / "media"))
    nameless, named = source
    assert nameless.failure.code == "manifest_no_uri"
    assert named.uri == str(tmp_path / "media/b.jpg")
    assert source.skipped == {"annotation of an unknown image": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "found list"),
        ('{"a": 1, "b": 2}', "found a, b"),
        ('{"images": [1]}', "every entry of `images`"),
        ('{"images": [{"id": [1]}]}', "ids are numbers"),
    ],
)
def test_a_json_file_that_is_not_coco(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SourceError, match=said):
        source_of(tmp_path / "x.json")
