import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.records import Prompt
from datagen.sources import Source, open_source

POLYGON = [2.0, 1.0, 8.0, 1.0, 8.0, 5.0, 2.0, 5.0]
SIZE = {"width": 12, "height": 8}


def annotation(annotation_id: int, image_id: int = 1, **fields) -> dict:
    return {"id": annotation_id, "image_id": image_id, "category_id": 3, "bbox": [2, 1, 6, 4], "segmentation": [POLYGON], **fields}


def picture(path: Path, size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def coco(folder: Path, *annotations: dict, encoding: str = "utf-8", **fields) -> Path:
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "license": 4, **SIZE}, {"id": 2, "file_name": "sub/b.jpg", **SIZE}],
        "annotations": list(annotations),
        "categories": [{"id": 3, "name": "étoile"}],
        "licenses": [{"id": 4, "name": "CC BY"}],
        **fields,
    }
    for name in ("a.jpg", "sub/b.jpg"):
        picture(folder / name)
    path = folder / "instances.json"
    path.write_text(json.dumps(document), encoding=encoding)
    return path


def source_of(path: Path, **options) -> Source:
    return open_source(SourceOptions(input=str(path), **options))


def decoded(prompt: Prompt) -> np.ndarray:
    return coco_mask.decode({"size": prompt.mask["size"], "counts": prompt.mask["counts"].encode()})


def test_annotations_become_boxes_in_order_and_crowds_do_not(tmp_path):
    crowd, last = annotation(12, bbox=[0, 0, 3.5, 2], iscrowd=1), annotation(13, bbox=[0, 0, 3.5, 2])
    first, second = source_of(coco(tmp_path, annotation(11), crowd, last))
    assert first.uri == str(tmp_path / "a.jpg")
    assert first.prompts == [
        Prompt(box=(2.0, 1.0, 8.0, 5.0), source="coco", id="11", index=0),
        Prompt(box=(0.0, 0.0, 3.5, 2.0), source="coco", id="13", index=2),
    ]
    assert first.dropped == {"crowd": 1}
    assert first.license == "CC BY"
    assert first.stated_size == (12, 8)
    assert first.extra == {
        "coco_image_id": 1,
        "coco_annotations": [
            {"id": 11, "category": "étoile", "category_id": 3, "iscrowd": False},
            {"id": 12, "category": "étoile", "category_id": 3, "iscrowd": True, "dropped": "crowd"},
            {"id": 13, "category": "étoile", "category_id": 3, "iscrowd": False},
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


def test_a_mask_of_other_sides_is_not_turned(tmp_path):
    """[height, width] down the columns: one that is no square and has no symmetry stays as it is."""
    expected = np.zeros((8, 12), np.uint8)
    expected[0:2, 3:11] = 1
    expected[2:7, 3] = 1
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate(([2], expected.T.ravel(), [2]))))).tolist()
    ring = [3, 0, 11, 0, 11, 2, 4, 2, 4, 7, 3, 7]
    path = coco(tmp_path, annotation(1, segmentation={"size": [8, 12], "counts": runs}), annotation(2, segmentation=[ring]))
    first, _ = source_of(path, coco_prompt="mask")
    for prompt in first.prompts:
        np.testing.assert_array_equal(decoded(prompt), expected)


def test_several_polygons_are_one_object(tmp_path):
    other = [9.0, 5.0, 12.0, 5.0, 12.0, 8.0, 9.0, 8.0]
    first, _ = source_of(coco(tmp_path, annotation(1, segmentation=[POLYGON, other])), coco_prompt="mask")
    assert len(first.prompts) == 1
    assert decoded(first.prompts[0]).sum() == 24 + 9


HUGE = "HUGE"  # becomes a number of five thousand digits, which Python does not write itself
POOR = [
    ({"bbox": [1, 2, 3]}, "box", "prompt_malformed"),
    ({"bbox": {"x": 1}}, "box", "prompt_malformed"),
    ({"bbox": None}, "box", "prompt_empty"),
    ({"bbox": [1, 2, 3, 0.0]}, "box", "prompt_inverted"),
    ({"bbox": [1, 2, float("nan"), 1]}, "box", "prompt_nan"),
    ({"bbox": [1, 2, float("inf"), 1]}, "box", "prompt_outside"),
    ({"bbox": [HUGE, 2, 1, 1]}, "box", "prompt_outside"),
    ({"bbox": [0.25, 0.5, 0.5, 0.25]}, "box", "prompt_shares"),
    ({"segmentation": [[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]]}, "mask", "prompt_shares"),
    ({"segmentation": []}, "mask", "prompt_empty"),
    ({"segmentation": [[1, 2, 3, 4]]}, "mask", "prompt_mask"),
    ({"segmentation": [[128.0, 28.0], POLYGON]}, "mask", "prompt_mask"),
    ({"segmentation": [[1, 2, 3, 4, 5, 1e12]]}, "mask", "prompt_mask"),
    ({"segmentation": [[1, 2, 3, 4, 5, HUGE]]}, "mask", "prompt_mask"),
    ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "mask", "prompt_mask"),
    ({"segmentation": [[[1, 2], [3, 4], [5, 6]]]}, "mask", "prompt_mask"),
    ({"segmentation": [[0, 0, 24, 8] * 100_000]}, "mask", "prompt_mask"),
    ({"segmentation": [[5.2, 3.3, 6.1, 3.3, 6.1, 3.4]]}, "mask", "prompt_empty"),
    ({"segmentation": {"size": [8, 12], "counts": [1, 2]}}, "mask", "prompt_mask"),
    ({"segmentation": {"size": [8, 12], "counts": [-4, 100]}}, "mask", "prompt_mask"),
    ({"segmentation": {"size": [8, 12], "counts": [HUGE]}}, "mask", "prompt_mask"),
    ({"segmentation": {"size": [65536, 65536], "counts": [2**32]}}, "mask", "prompt_mask"),
    ({"segmentation": {"size": [8, 12], "counts": "zzzz"}}, "mask", "prompt_mask"),
    ({"segmentation": {"size": [12, 8], "counts": [10, 20, 66]}}, "mask", "prompt_mask_size"),
]


@pytest.mark.parametrize(("fields", "kind", "code"), POOR, ids=[f"{code}-{n}" for n, (_, _, code) in enumerate(POOR)])
def test_a_poor_annotation_costs_itself_and_the_others_keep_their_places(tmp_path, fields, kind, code):
    path = coco(tmp_path, annotation(1), annotation(77, **fields), annotation(3))
    path.write_text(path.read_text().replace('"HUGE"', "1" + "0" * 5000))
    first, _ = source_of(path, coco_prompt=kind)
    assert first.failure is None
    assert [(prompt.id, prompt.index) for prompt in first.prompts] == [("1", 0), ("3", 2)]
    assert first.dropped == {code: 1}
    assert [told.get("dropped") for told in first.extra["coco_annotations"]] == [None, code, None]


def test_a_field_may_be_nested_but_not_without_end(tmp_path):
    path = coco(tmp_path, annotation(1), annotation(2, attributes="DEEP"), annotation(3, attributes={"colour": ["red"]}))
    for depth in (100, 700, 100_000):
        deep = coco(tmp_path, annotation(1), annotation(2, attributes="DEEP"), annotation(3, attributes={"colour": ["red"]}))
        deep.write_text(path.read_text().replace('"DEEP"', "[" * depth + "]" * depth))
        first, _ = source_of(deep)
        assert first.dropped == {"prompt_nested": 1}
        assert first.extra["coco_annotations"][2]["attributes"] == {"colour": ["red"]}


def test_an_image_that_makes_no_sense_costs_itself(tmp_path):
    images = [
        {"id": 1, "file_name": "a.jpg", "x": "DEEP"},
        {"id": 2, "file_name": "sub/b.jpg", "width": "12", "height": 8.0},
        "c.jpg",
        {"id": [4], "file_name": "a.jpg"},
        {"id": 5, "file_name": "a.jpg", "width": "wide", "height": 8},
        {"id": 6},
        {"id": "DEEP", "file_name": "a.jpg"},
        {"id": 8, "file_name": "a.jpg", "license": "DEEP"},
    ]
    path = coco(tmp_path, annotation(1, 1), annotation(2, 2), images=images)
    path.write_text(path.read_text().replace('"DEEP"', "[" * 700 + "]" * 700))
    assets = list(source_of(path))
    assert [asset.failure and asset.failure.code for asset in assets] == [
        *("manifest_bad_row", None, "manifest_bad_row", "manifest_bad_row", "manifest_bad_row", "manifest_no_uri"),
        *("manifest_bad_row", "manifest_bad_row"),
    ]
    assert assets[1].stated_size == (12, 8)
    assert len(assets[1].prompts) == 1


def test_more_annotations_than_are_read_fail_their_image_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("datagen.sources.coco.MAX_PROMPTS", 2)
    many, few = source_of(coco(tmp_path, *(annotation(n) for n in range(3)), annotation(9, 2)))
    assert (many.failure.code, few.failure, len(few.prompts)) == ("row_too_large", None, 1)


def test_a_polygon_needs_the_pictures_size(tmp_path):
    path = coco(tmp_path, annotation(1), images=[{"id": 1, "file_name": "a.jpg", "width": None, "height": 0}])
    (asset,) = source_of(path, coco_prompt="mask")
    assert (asset.stated_size, asset.prompts, asset.dropped) == (None, [], {"prompt_mask": 1})
    assert asset.problem == "annotation 1: polygons need the picture's `width` and `height`, which the file does not say"


def test_corners_instead_of_sides_are_refused_where_they_can_only_be_that(tmp_path):
    corners = [[7, 1, 11, 7], [6, 4, 12, 8], [8, 2, 12.5, 6], [1, 1, 2, 2]]
    path = coco(tmp_path, *(annotation(n, bbox=box) for n, box in enumerate(corners)))
    with pytest.raises(SourceError, match=r"3 of its 4 boxes reach out .* none does as \[x1, y1, x2, y2\], such as \[7, 1, 11, 7\]"):
        source_of(path)
    assert len(next(iter(source_of(path, coco_prompt="mask"))).prompts) == 4
    for others in (corners[1:], [*corners, [5, 5, 2, 2]]):  # two alone may be annotated so; and one that is none as corners
        first, _ = source_of(coco(tmp_path, *(annotation(n, bbox=box) for n, box in enumerate(others))))
        assert len(first.prompts) == len(others)


@pytest.mark.parametrize(
    ("written", "is_crowd"), [("true", True), ("True", True), ("1", True), ("false", False), ("0", False), (1.0, True)]
)
def test_crowds_are_known_however_they_are_written(tmp_path, written, is_crowd):
    first, _ = source_of(coco(tmp_path, annotation(1, iscrowd=written), annotation(2)))
    assert first.dropped == ({"crowd": 1} if is_crowd else {})


def test_categories_without_an_id_or_a_name_are_told(tmp_path):
    source = source_of(coco(tmp_path, annotation(1), categories=["dog", {"name": "cat"}, {"id": 3, "name": "bird"}]))
    first, _ = source
    assert first.extra["coco_annotations"][0]["category"] == "bird"
    assert source.skipped == {"category without an id and a name": 2}


@pytest.mark.parametrize("written", [7, "7", " 7", 7.0])
def test_ids_are_the_same_as_text_and_as_numbers(tmp_path, written):
    images = [{"id": written, "file_name": "a.jpg", "license": "4"}]
    annotations = [annotation(1, 7), annotation(2, "7", category_id="3"), annotation("x-3", 7.0, category_id=3.0)]
    (asset,) = source_of(coco(tmp_path, *annotations, images=images))
    assert [(prompt.id, told["category"]) for prompt, told in zip(asset.prompts, asset.extra["coco_annotations"], strict=True)] == [
        *(("1", "étoile"), ("2", "étoile"), ("x-3", "étoile"))
    ]
    assert asset.license == "CC BY"


def test_two_images_of_one_id_are_refused_by_name(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": "1", "file_name": "sub/b.jpg"}]
    with pytest.raises(SourceError, match=r"two images have the id 1: 'a.jpg' and 'sub/b.jpg' \(entries 1 and 2\)"):
        source_of(coco(tmp_path, images=images))


def test_two_categories_of_one_id_are_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match="category id 3: 'étoile' and 'chat'"):
        source_of(coco(tmp_path, categories=[{"id": 3, "name": "étoile"}, {"name": "nobody"}, {"id": "3", "name": "chat"}]))


def test_two_entries_of_one_file_are_joined(tmp_path):
    images = [{"id": 1, "file_name": "a.jpg", **SIZE}, {"id": 2, "file_name": "./sub/../a.jpg", "camera": "left"}]
    (asset,) = source_of(coco(tmp_path, annotation(5, 2), annotation(6, 1), images=images))
    assert [(prompt.id, prompt.index) for prompt in asset.prompts] == [("6", 0), ("5", 1)]
    assert asset.stated_size == (12, 8)
    assert (asset.extra["coco_image_ids"], asset.extra["camera"]) == ([1, 2], "left")
    images[1] |= {"width": 24, "height": 16}
    (asset,) = source_of(coco(tmp_path, annotation(5, 2), annotation(6, 1), images=images))
    assert asset.failure.code == "stated_size"
    assert "12 x 8 and 24 x 16" in asset.failure.message


def test_an_entry_that_stands_twice_word_by_word_counts_once(tmp_path):
    (asset,) = source_of(coco(tmp_path, annotation(5), images=[{"id": 1, "file_name": "a.jpg"}] * 2))
    assert len(asset.prompts) == 1


def test_fields_pass_through(tmp_path):
    fields = {"attributes": {"occluded": True}, "caption": "a star", "score": 0.5, "track_id": 9, "sentences": [{"raw": "star"}]}
    image = {"id": 1, "file_name": "a.jpg", "neg_category_ids": [7, 8], "date_captured": "2013-11-14", "license": 99}
    (asset,) = source_of(coco(tmp_path, annotation(5, **fields), images=[image]))
    (told,) = asset.extra["coco_annotations"]
    assert told.items() >= fields.items()
    assert asset.extra["neg_category_ids"] == [7, 8]
    assert asset.extra["date_captured"] == "2013-11-14"
    assert (asset.license, asset.extra["license"]) == (None, 99)


def test_null_lists_and_a_byte_order_mark(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        first, second = source_of(coco(tmp_path, encoding=encoding, annotations=None, categories=None, licenses=None))
        assert (first.prompts, second.prompts) == (None, None)


def test_images_without_a_name_and_annotations_without_an_image(tmp_path):
    picture(tmp_path / "media/b.jpg")
    lost = [annotation(41, image_id=99), annotation(42, image_id=None), annotation(43, image_id=[1])]
    path = coco(tmp_path, *lost, images=[{"id": 1}, {"id": 2, "file_name": "b.jpg"}])
    source = source_of(path, media_root=str(tmp_path / "media"))
    nameless, named = source
    assert nameless.failure.code == "manifest_no_uri"
    assert named.uri == str(tmp_path / "media/b.jpg")
    assert source.skipped == {"annotation of an unknown image": 3}
    assert "annotation 41 is of image 99, which the file has not" in source.describe()


def test_the_usual_layout_is_found_where_only_one_folder_has_the_picture(tmp_path):
    path = coco(tmp_path / "annotations", annotation(1), images=[{"id": 1, "file_name": "0001.jpg"}])
    picture(tmp_path / "val2017/0001.jpg")
    (asset,) = source_of(path)
    assert (asset.uri, asset.failure) == (str(tmp_path / "val2017/0001.jpg"), None)
    picture(tmp_path / "train2017/0001.jpg")
    (asset,) = source_of(path)
    assert asset.failure.code == "missing_file"
    assert "train2017 and in" in asset.failure.message
    assert "source.media_root" in asset.failure.message
    (asset,) = source_of(path, media_root=str(tmp_path / "train2017"))
    assert (asset.uri, asset.failure) == (str(tmp_path / "train2017/0001.jpg"), None)


def test_the_url_says_which_of_two_folders(tmp_path):
    image = {"id": 1, "file_name": "0001.jpg", "coco_url": "http://images.cocodataset.org/val2017/0001.jpg"}
    path = coco(tmp_path / "annotations", annotation(1), images=[image])
    for folder in ("train2017", "val2017"):
        picture(tmp_path / folder / "0001.jpg")
    (asset,) = source_of(path)
    assert asset.uri == str(tmp_path / "val2017/0001.jpg")


@pytest.mark.parametrize(
    "image",
    [
        {"file_name": "val2017\\0001.jpg"},
        {"file_name": ".\\val2017\\0001.jpg"},
        {"file_name": "C:\\data\\coco\\val2017\\0001.jpg"},
        {"file_name": "http://example.org/val2017/0001.jpg?size=large"},
        {"file_name": "/home/somebody/coco/val2017/0001.jpg"},
        {"file_name": "file:///home/somebody/coco/val2017/0001.jpg"},
        {"file_name": "/data/local-files/?d=val2017/0001.jpg"},
        {"file_name": "http://localhost:8080/data/local-files/?d=val2017%2F0001.jpg"},
        {"file_name": "http://example.org/data/upload/val%32017/0001.jpg"},
        {"coco_url": "http://images.cocodataset.org/val2017/0001.jpg"},
    ],
)
def test_names_of_another_machine_are_found_below(tmp_path, image):
    path = coco(tmp_path, annotation(1), images=[{"id": 1, **image}])
    picture(tmp_path / "val2017/0001.jpg")
    for options in ({}, {"media_root": str(tmp_path)}):
        (asset,) = source_of(path, **options)
        assert (asset.uri, asset.failure) == (str(tmp_path / "val2017/0001.jpg"), None)
        assert len(asset.prompts) == 1


def test_a_whole_path_of_this_machine_or_a_bucket_is_what_it_is(tmp_path):
    url = "http://images.cocodataset.org/val2017/0001.jpg"
    here, bucket = str(tmp_path / "pictures/0001.jpg"), "s3://pictures/0001.jpg"
    images = [{"id": n, "file_name": name, "coco_url": url} for n, name in enumerate([here, bucket])]
    path = coco(tmp_path / "annotations", annotation(1, 0), images=images)
    for name in ("pictures/0001.jpg", "val2017/0001.jpg", "annotations/0001.jpg"):
        picture(tmp_path / name)
    assert [asset.uri for asset in source_of(path)] == [here, bucket]


def test_a_whole_path_that_is_nowhere_keeps_its_uri_and_names_the_option(tmp_path):
    path = coco(tmp_path, images=[{"id": 1, "file_name": "/home/somebody/coco/gone.jpg"}])
    (asset,) = source_of(path)
    assert (asset.uri, asset.failure.code) == ("/home/somebody/coco/gone.jpg", "missing_file")
    assert "source.media_root" in asset.failure.message
    (asset,) = source_of(path, media_root=str(tmp_path))
    assert asset.failure.code == "refused_uri"


def test_two_names_that_end_alike_are_never_one_file(tmp_path):
    images = [{"id": n, "file_name": f"D:\\{folder}\\0001.jpg"} for n, folder in enumerate("ab")]
    path = coco(tmp_path, annotation(1, 0), annotation(2, 1), images=images)
    picture(tmp_path / "0001.jpg")
    assert [asset.failure.code for asset in source_of(path)] == ["missing_file", "missing_file"]
    picture(tmp_path / "b/0001.jpg")
    first, second = source_of(path)
    assert first.failure.code == "missing_file"
    assert (second.uri, second.failure, second.prompts[0].id) == (str(tmp_path / "b/0001.jpg"), None, "2")


def test_a_file_may_really_have_a_backslash_in_its_name(tmp_path):
    path = coco(tmp_path, images=[{"id": 1, "file_name": "x\\y.jpg"}])
    picture(tmp_path / "x\\y.jpg")
    picture(tmp_path / "x/y.jpg")
    assert next(iter(source_of(path))).uri == str(tmp_path / "x\\y.jpg")


def test_a_picture_that_is_nowhere_fails_with_the_option_that_would_find_it(tmp_path):
    path = coco(
        tmp_path, annotation(1), images=[{"id": 1, "file_name": "gone.jpg"}, {"id": 2, "file_name": "file://" + str(tmp_path / "a.jpg")}]
    )
    gone, there = source_of(path)
    assert (gone.uri, gone.failure.code) == (str(tmp_path / "gone.jpg"), "missing_file")
    assert "source.media_root" in gone.failure.message
    assert (there.uri, there.failure) == (str(tmp_path / "a.jpg"), None)


def test_no_name_leaves_the_media_root(tmp_path):
    picture(tmp_path / "b.jpg")
    path = coco(tmp_path, images=[{"id": 1, "file_name": "../b.jpg"}, {"id": 2, "file_name": "..\\b.jpg"}])
    for asset in source_of(path, media_root=str(tmp_path / "sub")):
        assert asset.failure.code in ("refused_uri", "missing_file")
        assert asset.uri != str(tmp_path / "b.jpg") or asset.failure


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "found list"),
        ("[" * 100_000, "nested more than"),
        ('{"a": 1, "b": 2}', "found a, b"),
        ('{"images": [1]}', "every entry of `images`"),
        ('{"images": [{"id": [1]}]}', "ids are numbers"),
        ('{"images": [], "annotations": {"1": {}}}', "`annotations` is a list"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "COCO results file"),
        ('{"videos": [], "annotations": [], "categories": []}', "is of videos"),
        ('{"images": [], "annotations": [{"image_id": 1, "segments_info": []}]}', "panoptic"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "a dog"}]}', "captions file"),
        ('{"image": {"image_id": 1}, "annotations": []}', "SA-1B"),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [0.1, 0.2, 0.5, 1]}]}', "shares of the sides"),
        ('{"images": [{"id": 1}], "annotations": [{"image_id": 1, "segmentation": [[1, 2, 3, 4, 5, 6]]}]}', "coco_prompt to mask"),
    ],
)
def test_a_json_file_that_is_not_coco(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SourceError, match=said):
        source_of(tmp_path / "x.json", kind="coco")  # `auto` takes a list of videos for what it is


def test_masks_are_asked_of_a_file_that_has_only_boxes(tmp_path):
    with pytest.raises(SourceError, match=r"set source\.coco_prompt to box"):
        source_of(coco(tmp_path, annotation(1, segmentation=[])), coco_prompt="mask")
