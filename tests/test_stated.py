"""The size that the input states is held against the decoded picture or video, whatever the prompts are and wherever they come from."""

import json
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image
from video_files import numbered, write_video

from datagen.decode.reader import VideoReader
from datagen.decode.step import DecodeStep
from datagen.job import DecodeOptions, PerceiveOptions, SourceOptions
from datagen.perceive.fake import FakeClipPerceiver, FakePerceiveStep
from datagen.perceive.video import VideoPerceiveStep
from datagen.records import Asset, Prompt, Sample
from datagen.sources import open_source

TURNED = 6  # EXIF: shown a quarter turn clockwise
WIDTH, HEIGHT = 40, 20


def picture(path: Path, orientation: int | None = None) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(path, exif=exif)


def seen(source) -> list[Sample]:
    step = DecodeStep(DecodeOptions(), 32)
    step.setup()
    try:
        samples = step.process([Sample(index, asset) for index, asset in enumerate(source)])
    finally:
        step.teardown()
    return FakePerceiveStep(PerceiveOptions()).process(samples)


def coco(folder: Path, name: str, stated: dict, *annotations: dict) -> Path:
    path = folder / "x.json"
    path.write_text(
        json.dumps({"images": [{"id": 1, "file_name": name, **stated}], "annotations": [{"image_id": 1, **a} for a in annotations]})
    )
    return path


BOX = {"id": 5, "bbox": [2, 3, 8, 9], "segmentation": [[2, 3, 10, 3, 10, 12, 2, 12]]}


@pytest.mark.parametrize("prompt", ["box", "mask"])
@pytest.mark.parametrize(
    ("stated", "orientation", "name", "said"),
    [
        ((WIDTH, HEIGHT), None, "a.png", None),
        ((80, 40), None, "a.png", "states 80 x 40 px (`width`, `height`), and it is 40 x 20 as displayed: the prompts are of another"),
        ((HEIGHT, WIDTH), None, "a.png", "width and height are exchanged"),
        (
            (WIDTH, HEIGHT),
            TURNED,
            "a.jpg",
            "states 40 x 20 px (`width`, `height`), and it is 20 x 40 as displayed: that is its size as stored",
        ),
        ((WIDTH, HEIGHT), TURNED, "a.tif", "its size as stored"),
        ((HEIGHT, WIDTH), TURNED, "a.jpg", None),
        ((80, 40), TURNED, "a.jpg", "prompts are of another picture"),
    ],
)
def test_prompts_for_another_size_fail_the_picture(tmp_path, prompt, stated, orientation, name, said):
    picture(tmp_path / name, orientation)
    path = coco(tmp_path, name, {"width": stated[0], "height": stated[1]}, BOX)
    (sample,) = seen(open_source(SourceOptions(input=str(path), coco_prompt=prompt)))
    assert sample.asset.stated_size == stated
    if said is None:
        assert (sample.failure, len(sample.regions)) == (None, 1)
    else:
        assert sample.failure.code == "stated_size"
        assert said in sample.failure.message
        assert sample.width is not None


@pytest.mark.parametrize("passed", [("width", "height"), ("width",), ()])
def test_columns_of_another_meaning_are_no_size_of_the_picture(tmp_path, passed):
    """Here the size of the box."""
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"uri": "a.png", "box": [2, 2, 12, 8], "width": 10, "height": 6}))
    (sample,) = seen(open_source(SourceOptions(input=str(path), pass_through=passed)))
    assert sample.asset.extra == {"width": 10, "height": 6}
    if passed:
        assert (sample.failure, sample.asset.stated_size) == (None, None)
    else:
        assert sample.failure.code == "stated_size"
        assert "source.pass_through" in sample.failure.message


def test_without_prompts_the_stated_size_harms_nobody(tmp_path):
    picture(tmp_path / "a.png")
    (sample,) = seen(open_source(SourceOptions(input=str(coco(tmp_path, "a.png", {"width": 1, "height": 1})))))
    assert (sample.failure, sample.asset.stated_size) == (None, (1, 1))


def test_a_manifest_states_sizes_in_columns(tmp_path):
    picture(tmp_path / "a.png")
    rows = [{"width": 40, "height": "20"}, {"width": 400, "height": 200}, {"width": "wide", "height": 3}, {"width": 400, "height": None}]
    for row, code in zip(rows, (None, "stated_size", None, None), strict=True):
        (tmp_path / "m.jsonl").write_text(json.dumps({"uri": "a.png", "prompts": [{"box": [2, 3, 8, 9]}], **row}))
        (sample,) = seen(open_source(SourceOptions(input=str(tmp_path / "m.jsonl"))))
        assert (sample.failure and sample.failure.code) == code
        assert sample.asset.extra == row


def test_a_picture_of_crowds_alone_is_empty_and_no_failure(tmp_path):
    picture(tmp_path / "a.png")
    (sample,) = seen(open_source(SourceOptions(input=str(coco(tmp_path, "a.png", {}, {**BOX, "iscrowd": 1})))))
    assert (sample.status, sample.dropped) == ("empty", {"crowd": 1})
    (sample,) = seen(
        open_source(SourceOptions(input=str(coco(tmp_path, "a.png", {}, {**BOX, "iscrowd": 1}, {"id": 6, "bbox": [1, 1, 0, 4]}))))
    )
    assert sample.failure.code == "prompt_inverted"


def test_places_among_the_annotations_are_the_regions_numbers(tmp_path):
    picture(tmp_path / "a.png")
    poor, outside, partly = {"id": 1, "bbox": [3, 3, 0, 1]}, {"id": 3, "bbox": [90, 90, 5, 5]}, {"id": 4, "bbox": [-4, 3, 10, 10]}
    (sample,) = seen(open_source(SourceOptions(input=str(coco(tmp_path, "a.png", {}, poor, {**BOX, "id": 2}, outside, partly)))))
    assert [(region.region_index, region.prompt.id) for region in sample.regions] == [(1, "2"), (3, "4")]
    assert sample.dropped == {"prompt_inverted": 1, "prompt_outside": 1}


def test_pixels_that_are_not_square_explain_another_size_of_a_video(tmp_path):
    path = tmp_path / "wide.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for index in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(index), format="rgb24")))
        container.mux(stream.encode(None))
    assert_said(path, (128, 48), "its pixels are not square (width over height 2)")
    assert_said(path, (64, 48), None)


@pytest.mark.parametrize(
    ("stated", "turn", "said"),
    [((64, 48), 0, None), ((32, 24), 0, "prompts are of another picture"), ((64, 48), 90, "its size as stored"), ((48, 64), 90, None)],
)
def test_prompts_for_another_size_fail_the_video(tmp_path, stated, turn, said):
    assert_said(write_video(tmp_path / "v.mp4", [numbered(index) for index in range(3)], turn=(turn, False)), stated, said)


def assert_said(path, stated, said):
    step = VideoPerceiveStep(lambda: FakeClipPerceiver(PerceiveOptions(), 32), lambda size: VideoReader(DecodeOptions(), size))
    step.setup()
    try:
        asset = Asset("v", str(path), "video", [Prompt(box=(1, 1, 20, 20))], stated_size=stated)
        (sample,) = step.clips(Sample(0, asset))
    finally:
        step.teardown()
    if said is None:
        assert sample.failure is None
    else:
        assert sample.failure.code == "stated_size"
        assert said in sample.failure.message
