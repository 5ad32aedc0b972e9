"""Rows of one file become one asset with the prompts of all, in every format; what contradicts is a row that says so."""

import csv
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.records import Asset
from datagen.sources import joining, open_source
from datagen.sources.prompts import note_prompts

BOXES = [[10, 10, 30, 30], [100, 50, 130, 80], [5, 5, 9, 9]]


def listed(path, **options):
    return list(open_source(SourceOptions(input=str(path), **options)))


def write(folder, kind, rows):
    path = folder / f"m.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: json.dumps(v) if isinstance(v, list) else v for name, v in row.items()} for row in rows)
    return path


@pytest.fixture(params=["jsonl", "csv", "parquet"])
def kind(request):
    return request.param


def boxes_of(asset):
    return [list(map(int, prompt.box)) for prompt in asset.prompts]


def test_one_row_per_box(tmp_path, kind):
    rows = [{"uri": name, "box": box, "tag": "t"} for box in BOXES for name in ("a.jpg", "b.jpg")]
    a, b = listed(write(tmp_path, kind, rows))
    assert (a.uri, b.uri) == (f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg")
    for asset in (a, b):
        assert boxes_of(asset) == BOXES
        assert [prompt.index for prompt in asset.prompts] == [0, 1, 2]
        assert (asset.num_prompts, asset.extra, asset.failure) == (3, {"tag": "t"}, None)


def test_what_differs_between_the_rows_is_kept_by_row(tmp_path, kind):
    rows = [
        {"uri": "a.jpg", "box": BOXES[0], "category": "dog", "site": "x", "license": "CC0"},
        {"uri": "b.jpg", "box": BOXES[0], "category": "dog", "site": "x", "license": "CC0"},
        {"uri": "a.jpg", "box": BOXES[1], "category": "cat", "site": "x", "license": "CC-BY-4.0"},
    ]
    b, a = listed(write(tmp_path, kind, rows))
    assert (b.license, b.extra) == ("CC0", {"category": "dog", "site": "x"})
    assert a.license == "CC0; CC-BY-4.0"
    assert a.extra["site"] == "x"
    assert a.extra["manifest_rows"] == [
        {"row": 1, "num_prompts": 1, "category": "dog", "license": "CC0"},
        {"row": 3, "num_prompts": 1, "category": "cat", "license": "CC-BY-4.0"},
    ]


def test_flat_columns_of_videos(tmp_path, kind):
    rows = [
        {"uri": "v.mp4", "box": BOXES[0], "frame": 3, "object_id": 7},
        {"uri": "v.mp4", "box": BOXES[1], "frame": 12, "object_id": 8},
    ]
    (asset,) = listed(write(tmp_path, kind, rows))
    assert [(prompt.frame_index, prompt.object_id) for prompt in asset.prompts] == [(3, 7), (12, 8)]
    (asset,) = listed(write(tmp_path, kind, [{"uri": "v.mp4", "points": [[4, 5]], "labels": [1], "time_s": 1.5}]))
    assert (asset.prompts[0].time_s, asset.prompts[0].points, asset.prompts[0].labels) == (1.5, [(4.0, 5.0)], [1])
    (asset,) = listed(write(tmp_path, kind, [{"uri": "a.png", "box": BOXES[0], "frame": 3}]))
    assert asset.failure is None
    assert int(asset.extra["frame"]) == 3  # of a picture, an ordinary column


def test_a_mask_is_a_shorthand(tmp_path):
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "mask": {"size": [4, 3], "counts": [5, 2, 5]}}]))
    assert asset.prompts[0].type == "mask"
    assert asset.extra == {}
    (bad,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "mask": "masks/a.png"}]))
    assert bad.failure.code == "manifest_bad_prompts"
    (passed,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "mask": "masks/a.png"}]), pass_through=("mask",))
    assert (passed.failure, passed.extra) == (None, {"mask": "masks/a.png"})


def test_a_bad_prompt_costs_itself_and_keeps_its_place(tmp_path, kind):
    rows = [{"uri": "a.jpg", "box": box} for box in (BOXES[0], [1, 2, 3], [0.1, 0.2, 0.3, 0.4], BOXES[1])]
    (asset,) = listed(write(tmp_path, kind, rows))
    assert boxes_of(asset) == BOXES[:2]
    assert [prompt.index for prompt in asset.prompts] == [0, 3]
    assert asset.dropped == {"prompt_malformed": 1, "prompt_shares": 1}
    assert asset.num_prompts == 4
    (asset,) = listed(write(tmp_path, kind, rows[1:3]))
    assert asset.failure.code == "manifest_bad_prompts"
    assert "none of its 2 prompts" in asset.failure.message
    assert asset.prompts is None


def test_clicks_beside_the_object_alone_are_refused_in_images(tmp_path):
    click, inside = {"points": [[9, 9]], "labels": [0]}, {"points": [[9, 9], [5, 5]], "labels": [0, 1]}
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "prompts": [click, inside, {"box": BOXES[0], **click}]}]))
    assert [prompt.index for prompt in asset.prompts] == [1, 2]
    assert asset.dropped == {"prompt_negative": 1}
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "prompts": [click]}]))
    assert "a point inside it (label 1)" in asset.failure.message
    (video,) = listed(
        write(tmp_path, "jsonl", [{"uri": "a.mp4", "prompts": [{"box": BOXES[0], "object_id": 0}, {**click, "object_id": 0}]}])
    )
    assert len(video.prompts) == 2


def test_a_list_with_a_bad_prompt(tmp_path):
    good = {"box": BOXES[0], "id": "x-1"}
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "prompts": [{"box": "?"}, good, {"points": [[0.5, 0.5]]}]}]))
    assert [(prompt.index, prompt.id) for prompt in asset.prompts] == [(1, "x-1")]
    assert asset.dropped == {"prompt_malformed": 1, "prompt_shares": 1}


@pytest.mark.parametrize(
    ("prompt", "is_share"),
    [
        ({"box": [0.05, 0.1, 0.15, 0.3]}, True),
        ({"box": [0, 0, 1, 1]}, True),
        ({"box": [-0.01, 0.5, 1.02, 0.9]}, True),
        ({"points": [[0.5, 0.5], [1, 0]], "labels": [1, 0]}, True),
        ({"points": [[0, 0]]}, False),
        ({"points": [[1, 1]]}, False),
        ({"box": [0, 0, 2, 1]}, False),
        ({"box": [0.5, 0.5, 3.5, 2.5]}, False),
        ({"box": [10, 10, 60, 60], "points": [[0.5, 0.5]]}, True),
        ({"box": [0, 0, 60, 60], "points": [[30, 30]]}, False),
    ],
)
def test_shares_of_the_sides_are_refused(tmp_path, prompt, is_share):
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "prompts": [prompt]}]))
    assert (asset.failure is not None) == is_share
    if is_share:
        assert "pixels are expected" in asset.failure.message


def test_identical_rows_are_one_asset_said_again(tmp_path, kind):
    rows = [{"uri": "a.jpg", "box": BOXES[0]}, {"uri": "b.jpg", "box": BOXES[1]}, {"uri": "a.jpg", "box": BOXES[0]}]
    assets = listed(write(tmp_path, kind, rows))
    assert [asset.uri[-5:] for asset in assets] == ["b.jpg", "a.jpg", "a.jpg"]
    assert assets[1] == assets[2]
    assert boxes_of(assets[1]) == [BOXES[0]]


def test_a_row_that_asks_for_everything_contradicts_one_that_does_not(tmp_path, kind):
    rows = [{"uri": "a.jpg", "box": BOXES[0]}, {"uri": "a.jpg", "box": None}, {"uri": "a.jpg", "box": BOXES[1]}]
    asset, failed = listed(write(tmp_path, kind, rows))
    assert boxes_of(asset) == BOXES[:2]
    assert failed.failure.code == "manifest_rows_conflict"
    assert "row 2" in failed.failure.message
    assert failed.asset_id != asset.asset_id


def test_other_ids_of_one_file_are_other_assets(tmp_path, kind):
    rows = [{"uri": "a.jpg", "asset_id": name, "box": box} for name, box in zip("xyx", BOXES, strict=True)]
    y, x = listed(write(tmp_path, kind, rows))
    assert (y.asset_id, boxes_of(y)) == ("y", [BOXES[1]])
    assert (x.asset_id, boxes_of(x)) == ("x", [BOXES[0], BOXES[2]])


def test_more_prompts_than_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("datagen.sources.prompts.MAX_PROMPTS", 3)
    monkeypatch.setattr(joining, "MAX_PROMPTS", 3)
    rows = [{"uri": "a.jpg", "box": [n, 0, n + 5, 5]} for n in range(9)]
    (asset,) = listed(write(tmp_path, "jsonl", rows))
    assert asset.failure.code == "row_too_large"
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "prompts": [{"box": row["box"]} for row in rows]}]))
    assert asset.failure.code == "row_too_large"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 10**6)), max_size=60, unique=True), st.integers(1, 2000))
def test_no_box_is_lost_however_rows_stand_and_however_little_is_in_memory(tmp_path_factory, pairs, size):
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "_SPOOL_BYTES", size)
        assets = listed(write(folder, "jsonl", [{"uri": f"{name}.jpg", "box": [0, 0, x, 9]} for name, x in pairs]))
    expected = {}
    for name, x in pairs:
        expected.setdefault(f"{folder}/{name}.jpg", []).append(x)
    assert {asset.uri: [int(prompt.box[2]) for prompt in asset.prompts] for asset in assets} == expected
    last = {uri: max(place for place, (name, _) in enumerate(pairs) if uri.endswith(f"/{name}.jpg")) for uri in expected}
    assert [asset.uri for asset in assets] == sorted(expected, key=last.__getitem__)


def test_two_files_of_one_key_stay_two(tmp_path, monkeypatch):
    real = joining.key_of
    monkeypatch.setattr(joining, "key_of", lambda row: None if real(row) is None else 1)
    monkeypatch.setattr("datagen.sources.manifest.key_of", joining.key_of)
    assets = listed(write(tmp_path, "jsonl", [{"uri": name, "box": BOXES[0]} for name in ("a.jpg", "b.jpg", "c.jpg")]))
    assert [asset.uri[-5:] for asset in assets] == ["a.jpg", "b.jpg", "c.jpg"]


def test_the_hash_tells_every_change_and_nothing_else(tmp_path):
    def hash_of(*prompts):
        (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "prompts": list(prompts)}]))
        return asset.prompts_hash

    box, points = {"box": BOXES[0]}, {"points": [[4, 5]]}
    hashes = [
        hash_of(box),
        hash_of(points),
        hash_of(box, points),
        hash_of(points, box),
        hash_of({**box, "id": 7}),
        hash_of({"points": [[4, 5]], "labels": [0]}),
        hash_of(box, {"box": "?"}),
        hash_of({"box": "?"}, box),
        hash_of(),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hashes[-1] is None
    assert hash_of({"box": [10.0, 10, 30, 30]}) == hashes[0]
    flat = listed(write(tmp_path, "csv", [{"uri": "a.jpg", "box": BOXES[0]}]))
    assert flat[0].prompts_hash == hashes[0]
    assert note_prompts(Asset("x", "y")).num_prompts is None
    nothing = note_prompts(Asset("x", "y", prompts=[]))  # annotations that ask for nothing, as masks without a pixel do
    assert (nothing.num_prompts, nothing.prompts_hash is None) == (0, False)


LOOK_ALIKES = [
    *("bbox", "boxes", "BBoxes", "bounding_box", "prompt", "point", "x1", "xmin", "x_min", "segmentation", "rle", "polygon", "masks"),
    *("Box", "Prompts", "box ", "bbox_x1", "annotations", "keypoints", "URI"),
    *("gt_boxes", "pred_bboxes", "bbox_norm", "input_boxes", "inputPoints", "input_labels", "boundingBoxAnnotations", "box_0", "points_2d"),
    *("negative_points", "mask_path", "person_polygons", "promts"),
]


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_columns_that_look_like_prompts_stop_the_job(tmp_path, kind, name):
    path = write(tmp_path, kind, [{"uri": "a.jpg", name: "[10, 10, 30, 30]"}])
    with pytest.raises(SourceError, match=r"look like prompts.*write `(box|points|mask|prompts|uri)`") as caught:
        listed(path)
    assert f"`{name}`" in caught.value.message
    assert f"source.pass_through: [{name}]" in caught.value.message
    (asset,) = listed(path, pass_through=(name,))
    assert asset.extra == {name: "[10, 10, 30, 30]"}


@pytest.mark.parametrize(
    "names",
    [
        *(("x1", "y1", "x2", "y2"), ("left", "top", "right", "bottom"), ("x", "y"), ("xmin", "ymin", "xmax", "ymax")),
        *(("xtl", "ytl", "xbr", "ybr"), ("cx", "cy", "w", "h")),
    ],
)
def test_corners_in_columns_of_their_own(tmp_path, names):
    with pytest.raises(SourceError, match="look like prompts"):
        listed(write(tmp_path, "csv", [{"uri": "a.jpg", **dict.fromkeys(names, 3)}]))


@pytest.mark.parametrize(
    "row",
    [
        {"width": 3, "height": 4},
        {"label": "dog", "labels": "dog"},
        {"frame": 3, "frame_index": 4, "timestamp": 1.5},
        {"x": 1, "y": 2, "z": 3},
        {"region": "EU", "caption": "a box", "title": "point"},
    ],
)
def test_ordinary_columns_are_ordinary(tmp_path, row):
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", **row}]))
    assert (asset.extra, asset.failure) == (row, None)


def test_a_column_that_comes_late_is_seen_before_anything_is_done(tmp_path):
    rows = [{"uri": f"{number}.jpg"} for number in range(500)] + [{"uri": "last.jpg", "bbox": [1, 2, 3, 4]}]
    source = open_source(SourceOptions(input=str(write(tmp_path, "jsonl", rows))))
    with pytest.raises(SourceError, match=r"row 501 of .*`bbox`"):
        next(iter(source))


@pytest.mark.parametrize("name", ["frame_index", "timestamp", "track_id", "Frame"])
def test_the_frames_of_videos_have_look_alikes_too(tmp_path, name):
    with pytest.raises(SourceError, match=r"write `(frame|time_s|object_id)`"):
        listed(write(tmp_path, "csv", [{"uri": "v.mp4", "box": [1, 2, 30, 40], name: 3}]))
    (asset,) = listed(write(tmp_path, "csv", [{"uri": "a.jpg", "box": [1, 2, 30, 40], name: 3}]))
    assert asset.extra == {name: "3"}


@pytest.mark.parametrize("labels", [["dog", "cat"], "dog", [3, 5], ["1"]])
def test_names_of_classes_are_no_labels_of_points(tmp_path, labels):
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "box": [1, 2, 30, 40], "labels": labels}]))
    assert (asset.failure, asset.extra, asset.num_prompts) == (None, {"labels": labels}, 1)


def test_names_of_classes_beside_points(tmp_path):
    (asset,) = listed(write(tmp_path, "jsonl", [{"uri": "a.jpg", "points": [[4, 5], [6, 7]], "labels": ["dog", "cat"]}]))
    assert (asset.prompts[0].labels, asset.extra) == ([1, 1], {"labels": ["dog", "cat"]})


def test_shuffled_rows_of_many_files(tmp_path):
    pairs = [(file, box) for file in range(300) for box in range(7)]
    random.Random(3).shuffle(pairs)
    path = write(tmp_path, "csv", [{"uri": f"{file}.jpg", "box": [box, 0, box + 9, 9]} for file, box in pairs])
    assets = listed(path)
    assert len(assets) == 300
    assert all(sorted(prompt.box[0] for prompt in asset.prompts) == list(range(7)) for asset in assets)


ORDINARY = [
    *(
        "num_boxes",
        "has_mask",
        "box_office",
        "mask_type",
        "bbox_area",
        "box_label",
        "mailbox",
        "data_points",
        "keypoint_count",
        "face_mask",
    ),
    *("prompt_id", "prompter", "system_prompt", "3d_boxes", "inbox", "cx", "region"),
]


@pytest.mark.parametrize("name", ORDINARY)
def test_columns_that_only_say_something_of_boxes_are_ordinary(tmp_path, kind, name):
    (asset,) = listed(write(tmp_path, kind, [{"uri": "a.jpg", name: "7"}]))
    assert asset.extra == {name: "7"}


@pytest.mark.parametrize(
    "value",
    [
        {"detections": [{"label": "dog", "bounding_box": [0.1, 0.1, 0.2, 0.2]}]},
        {"instances": [{"bbox": [1, 2, 30, 40], "label": 0}]},
        [{"shape": {"polygon": [[1, 2], [3, 4], [5, 6]]}}],
    ],
)
def test_boxes_further_in_are_named_where_a_row_asks_for_nothing(tmp_path, value):
    rows = [{"uri": "a.jpg", "gt": value}, {"uri": "b.jpg", "gt": value, "box": [1, 2, 30, 40]}, {"uri": "c.jpg", "gt": json.dumps(value)}]
    source = open_source(SourceOptions(input=str(write(tmp_path, "jsonl", rows))))
    assert [asset.extra["gt"] for asset in source] == [value, value, json.dumps(value)]
    for _ in range(2):
        assert len(list(source)) == 3
        assert source.skipped == {"column `gt`, passed through and not read as a prompt": 2}
    passed = open_source(SourceOptions(input=source._source.path, pass_through=("gt",)))
    assert len(list(passed)) == 3
    assert not passed.skipped


def test_a_column_of_other_things_is_not_named(tmp_path):
    value = {"caption": "a box", "tags": ["bbox", "polygon"], "bbox": None, "size": {"width": 3}}
    source = open_source(
        SourceOptions(input=str(write(tmp_path, "jsonl", [{"uri": "a.jpg", "gt": value, "text": '"a box" in a "bbox" '}])))
    )
    assert len(list(source)) == 1
    assert not source.skipped


def test_of_very_many_columns_only_the_first_are_told_apart(tmp_path):
    rows = [{"uri": f"{i}.jpg", f"object {i}": {"bbox": [1, 2, 3, 4]}} for i in range(300)]
    source = open_source(SourceOptions(input=str(write(tmp_path, "jsonl", rows))))
    assert len(list(source)) == 300
    assert (len(source.skipped), source.skipped.total()) == (101, 300)
