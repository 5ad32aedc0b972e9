"""Video segmentation datasets: folders of numbered pictures, in the layouts of DAVIS, MOSE, SA-V and YouTube-VIS, here and in a bucket."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import call_with
from PIL import Image
from s3_server import new_bucket, options_of
from video_files import SIZE, clip, number_of, numbered

from datagen import s3
from datagen.check import check_dataset
from datagen.decode.reader import VideoReader
from datagen.errors import DecodeError, SourceError
from datagen.frame_names import in_order
from datagen.job import DecodeOptions, S3Options, SourceOptions
from datagen.masks import decode_mask, encode_mask
from datagen.records import Asset
from datagen.sources import open_source

H, W = 48, 64
Put = Callable[[str, bytes], None]


def square(left: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[8:20, left : left + 10] = True
    return mask


def picture(index: int, image_format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbered(index, W, H)).save(buffer, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    return buffer.getvalue()


def annotation(objects: dict[int, np.ndarray], palette: bool = True) -> bytes:
    values = np.zeros((H, W), np.uint8)
    for value, mask in objects.items():
        values[mask] = value
    image = Image.fromarray(values, "L")
    if palette:
        image = image.convert("P")
        image.putdata(values.flatten().tolist())
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, S3Options, Put]:
    """(a folder or prefix, options, a function that puts a file there)."""
    if request.param == "folder":

        def put_here(name: str, data: bytes) -> None:
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(data)

        return str(tmp_path / "in"), S3Options(), put_here
    options = options_of(request.getfixturevalue("s3_address"))
    bucket = new_bucket(options)
    return f"s3://{bucket}/in", options, lambda name, data: s3.client(options).put_object(Bucket=bucket, Key=f"in/{name}", Body=data)


def put_davis(put: Put, root: str = "", num_frames: int = 6) -> None:
    """Two videos: in `bear` object 1 is there from the start and 2 from the fourth frame on, `camel` has no annotation."""
    for index in range(num_frames):
        put(f"{root}JPEGImages/480p/bear/{index:05d}.jpg", picture(index))
        put(f"{root}JPEGImages/480p/camel/{index:05d}.jpg", picture(index + 50))
        seen = {1: square(2 * index)} | ({2: square(40)} if index >= 3 else {})
        put(f"{root}Annotations/480p/bear/{index:05d}.png", annotation(seen | {255: square(54)}))
    put(f"{root}ImageSets/2017/train.txt", b"bear\ncamel\n")


def listed(place: str, options: S3Options, **more: object) -> tuple[list[Asset], dict[str, int]]:
    source = open_source(SourceOptions.model_validate({"input": place, "kind": "frames", **more}), options)
    return list(source), dict(source.skipped)


def test_frames_are_in_the_order_of_their_numbers() -> None:
    assert in_order(["10.jpg", "2.jpg", "notes.txt", "1.JPG", ".3.jpg", "a9.png", "a10.png"]) == [
        "1.JPG",
        "2.jpg",
        "10.jpg",
        "a9.png",
        "a10.png",
    ]


def test_davis(place: tuple[str, S3Options, Put]) -> None:
    root, options, put = place
    put_davis(put)
    [bear, camel], skipped = listed(root, options)

    assert (bear.uri, camel.uri) == (f"{root}/JPEGImages/480p/bear/", f"{root}/JPEGImages/480p/camel/")
    assert {asset.media_type for asset in (bear, camel)} == {"video"}
    # 255 marks what belongs to no object.
    assert [(p.object_id, p.frame_index, p.type, p.index, p.source) for p in bear.prompts] == [
        (1, 0, "mask", 0, "annotation"),
        (2, 3, "mask", 1, "annotation"),
    ]
    assert np.array_equal(decode_mask(bear.prompts[0].mask), square(0))
    assert np.array_equal(decode_mask(bear.prompts[1].mask), square(40))
    assert (bear.num_prompts, bear.dropped, camel.prompts, camel.num_prompts) == (2, {}, None, None)
    assert skipped == {"annotation": 6, "other file": 1}

    reader = VideoReader(DecodeOptions(frames_fps=4), SIZE, options)
    video = reader.open_video(bear.uri)
    info = video.info
    assert (info.width, info.height, info.num_frames, info.fps, info.duration_s) == (W, H, 6, 4.0, 1.5)
    frames = list(reader.open(video.path, bear.uri))
    assert [(frame.frame_index, number_of(frame.pixels), frame.timestamp_s) for frame in frames] == [(i, i, i / 4) for i in range(6)]
    span = list(reader.open(video.path, bear.uri, 0.5, 1.0))
    assert [number_of(frame.pixels) for frame in span] == [2, 3]
    assert video.frames_at([0.0, 0.26, 1.4991]) == [0, 1, 5]
    assert video.size_bytes == sum(len(picture(index)) for index in range(6))
    reader.close()


def test_the_checksum_of_a_folder_is_that_of_its_frames_wherever_it_lies(tmp_path: Path, s3_address: str) -> None:
    options = options_of(s3_address)
    bucket = new_bucket(options)
    (tmp_path / "v").mkdir()
    for index in (2, 9, 10):
        (tmp_path / "v" / f"{index}.png").write_bytes(picture(index, "PNG"))
        s3.client(options).put_object(Bucket=bucket, Key=f"v/{index}.png", Body=picture(index, "PNG"))
    found = []
    for uri in (f"{tmp_path}/v/", f"s3://{bucket}/v/"):
        reader = VideoReader(DecodeOptions(), SIZE, options)
        video = reader.open_video(uri)
        assert [number_of(frame.pixels) for frame in reader.open(video.path, uri)] == [2, 9, 10]
        found.append((video.sha256, video.size_bytes))
        reader.close()
    assert found[0] == found[1]


def test_one_object_of_255_as_davis_had_it_first(place: tuple[str, S3Options, Put]) -> None:
    root, options, put = place
    for index in range(2):
        put(f"JPEGImages/bear/{index}.png", picture(index, "PNG"))
        put(f"Annotations/bear/{index}.png", annotation({255: square(3)}, palette=False))
    [bear], _ = listed(root, options)
    assert [(p.object_id, p.frame_index) for p in bear.prompts] == [(255, 0)]


def test_sav_frames_with_a_folder_per_object(place: tuple[str, S3Options, Put]) -> None:
    root, options, put = place
    for index in range(9):
        put(f"JPEGImages_24fps/sav_1/{index:05d}.jpg", picture(index))
    for index in (0, 4, 8):
        put(f"Annotations_6fps/sav_1/000/{index:05d}.png", annotation({1: square(index)}))
        put(f"Annotations_6fps/sav_1/001/{index:05d}.png", annotation({1: square(40)} if index == 8 else {}))
    put("Annotations_6fps/sav_1/001/00077.png", annotation({1: square(40)}))
    [video], skipped = listed(root, options)
    assert [(p.object_id, p.frame_index) for p in video.prompts] == [(0, 0), (1, 8)]
    assert skipped == {"annotation": 7, "annotation of no frame": 1}


def sav_json(num_frames: int) -> bytes:
    def rle(mask: np.ndarray) -> dict[str, object]:
        return dict(encode_mask(mask))

    nothing = rle(np.zeros((H, W), bool))
    masks = [
        [rle(square(index)), rle(square(40)) if index else nothing, {"size": [H, W], "counts": "damaged"}]
        for index in range(num_frames // 4)
    ]
    document = {"video_id": "sav_1", "video_frame_count": num_frames, "masklet_id": [3, 5, 8], "masklet_num": 3, "masklet": masks}
    return json.dumps(document).encode()


def test_sav_videos_with_json_beside_them(place: tuple[str, S3Options, Put], tmp_path: Path) -> None:
    root, options, put = place
    data = clip(tmp_path, 12, "sav_1.mp4").read_bytes()
    put("sav_000/sav_1.mp4", data)
    put("sav_000/sav_1_manual.json", sav_json(12))
    put("sav_000/sav_1_auto.json", b"[]")
    put("sav_000/sav_2.mp4", data)
    put("sav_000/sav_2_auto.json", b"not JSON")
    put("sav_000/sav_3.mp4", data)
    [first, second, third], skipped = listed(root, options)
    assert first.uri == f"{root}/sav_000/sav_1.mp4"
    assert [(p.object_id, p.frame_index) for p in first.prompts] == [(3, 0), (5, 4)]
    assert np.array_equal(decode_mask(first.prompts[1].mask), square(40))
    assert (first.dropped, first.num_prompts) == ({"bad_annotation": 1}, 3)
    assert (second.prompts, second.dropped) == (None, {"bad_annotation": 1})
    assert (third.prompts, third.dropped, skipped) == (None, {}, {})
    assert [asset.prompts for asset in listed(root, options, annotations="none")[0]] == [None] * 3


def put_youtube(put: Put) -> dict[str, object]:
    for index in (0, 5, 10, 15):
        put(f"train/JPEGImages/aa11/{index:05d}.jpg", picture(index))
        put(f"train/JPEGImages/bb22/{index:05d}.jpg", picture(index + 100))
    polygon = [[40, 8, 50, 8, 50, 20, 40, 20]]
    videos = [
        {"id": number, "width": W, "height": H, "file_names": [f"{name}/{index:05d}.jpg" for index in (0, 5, 15)]}
        for number, name in ((1, "aa11"), (2, "bb22"))
    ]
    videos[1]["file_names"].append("bb22/00099.jpg")
    videos += [{"id": 3, "file_names": ["cc33/00000.jpg"]}, {"id": 1, "file_names": ["aa11/00000.jpg"]}, {"id": 4, "file_names": None}]
    annotations = [
        {"id": 7, "video_id": 1, "category_id": 2, "segmentations": [None, None, polygon]},
        {"id": 8, "video_id": 1, "category_id": 9, "segmentations": [dict(encode_mask(square(3))), None, None]},
        {"id": 9, "video_id": 1, "category_id": 2, "segmentations": [None, [[0, 0, 1e9, 0, 3, 3]], None]},
        {"id": 10, "video_id": 1, "category_id": 2, "segmentations": [None, None, None]},
        {"id": 11, "video_id": 1, "category_id": 2, "iscrowd": 1, "segmentations": [polygon, None, None]},
        {"id": 12, "video_id": 66, "category_id": 2, "segmentations": [polygon]},
    ]
    return {"info": {}, "videos": videos, "categories": [{"id": 2, "name": "bear"}], "annotations": annotations}


def test_youtube_vis(place: tuple[str, S3Options, Put]) -> None:
    root, options, put = place
    put("train/instances.json", json.dumps(put_youtube(put)).encode())
    source = open_source(SourceOptions(input=f"{root}/train/instances.json", media="video"), options)  # `auto` sees what it is
    first, second, third, again, nameless = source
    assert first.uri == f"{root}/train/JPEGImages/aa11/"
    assert first.media_type == "video"
    # 00015.jpg is the fourth picture of its folder, though the file leaves 00010.jpg out.
    assert [(p.object_id, p.id, p.frame_index, p.index) for p in first.prompts] == [(7, "7", 3, 0), (8, "8", 0, 1)]
    assert np.array_equal(decode_mask(first.prompts[1].mask), square(3))
    assert first.extra == {"video_id": 1, "annotations": [{"id": 7, "category": "bear"}, {"id": 8, "category": None}]}
    assert (first.dropped, first.num_prompts) == ({"bad_annotation": 1, "empty_annotation": 1, "crowd": 1}, 5)
    assert first.stated_size == (W, H)
    assert second.failure.code == third.failure.code == "missing_file"
    assert "00099.jpg" in second.failure.message
    assert "media_root" in third.failure.message
    assert (again.failure.code, nameless.failure.code) == ("manifest_bad_row", "manifest_bad_row")
    assert len({asset.asset_id for asset in (first, second, third, again, nameless)}) == 5
    assert source.skipped == {"annotation of an unknown video": 1}


@pytest.mark.parametrize("text", ["[]", '{"videos": 3}', '{"images": []}', "nothing", '{"videos": [], "annotations": {}}'])
def test_json_that_is_no_list_of_videos(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceError):
        open_source(SourceOptions(input=str(tmp_path / "a.json"), kind="frames"))


def test_an_annotation_that_cannot_be_read_costs_itself(tmp_path: Path) -> None:
    put = place_in(tmp_path)
    put_davis(put)
    put("Annotations/480p/bear/00000.png", b"no picture")
    put("Annotations/480p/bear/00001.png", picture(3, "PNG"))  # has colours, and no numbers of objects
    [bear, _], _ = listed(str(tmp_path), S3Options())
    assert bear.dropped == {"bad_annotation": 2}
    assert [(p.object_id, p.frame_index) for p in bear.prompts] == [(1, 2), (2, 3)]
    assert bear.num_prompts == 4


def place_in(folder: Path) -> Put:
    def put(name: str, data: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return put


def test_annotations_elsewhere(tmp_path: Path) -> None:
    put = place_in(tmp_path)
    for index in range(2):
        put(f"clips/a/{index}.jpg", picture(index))
        put(f"truth/a/{index}.png", annotation({4: square(9)}))
    [without], _ = listed(str(tmp_path / "clips"), S3Options())
    [with_masks], _ = listed(str(tmp_path / "clips"), S3Options(), annotations=str(tmp_path / "truth"))
    assert without.prompts is None
    assert [(p.object_id, p.frame_index) for p in with_masks.prompts] == [(4, 0)]


def test_damaged_frames_are_missing_and_a_folder_without_any_is_no_video(tmp_path: Path) -> None:
    put = place_in(tmp_path)
    for index in range(6):
        put(f"v/{index}.jpg", b"broken" if index in (0, 3, 5) else picture(index))
    put("none/0.jpg", b"broken")
    (tmp_path / "empty").mkdir()
    reader = VideoReader(DecodeOptions(frames_fps=10), SIZE)
    video = reader.open_video(f"{tmp_path}/v/")
    stream = reader.open(video.path, "v")
    assert [(frame.frame_index, number_of(frame.pixels)) for frame in stream] == [(1, 1), (2, 2), (4, 4)]
    assert (stream.missing_frames, stream.corrupt_packets) == (3, 3)
    for name, code in (("none", "not_an_image"), ("empty", "no_frames"), ("gone", "missing_file")):
        with pytest.raises(DecodeError) as caught:
            reader.open_video(f"{tmp_path}/{name}/")
        assert caught.value.code == code
    reader.close()


def test_an_animated_webp_as_a_video(tmp_path: Path) -> None:
    frames = [Image.fromarray(numbered(index)).convert("RGBA") for index in range(6)]
    clear = frames[2].copy()
    clear.putalpha(0)
    frames[5] = clear
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=[100, 200, 100, 0, 100, 100], lossless=True)
    reader = VideoReader(DecodeOptions(), SIZE)
    video = reader.open_video(str(tmp_path / "a.webp"))
    assert (video.info.num_frames, video.info.duration_s, video.info.codec) == (6, 0.7, "webp")
    stream = reader.open(video.path, "a")
    found = list(stream)
    assert [number_of(frame.pixels) for frame in found] == [0, 1, 2, 3, 4, 255]  # laid over white
    assert [frame.timestamp_s for frame in found] == pytest.approx([0, 0.1, 0.3, 0.4, 0.5, 0.6])
    assert [number_of(frame.pixels) for frame in reader.open(video.path, "a", 0.1, 0.4)] == [1, 2]
    reader.close()


def test_a_manifest_names_folders_of_frames_and_animations(tmp_path: Path) -> None:
    put = place_in(tmp_path)
    put("v/0.jpg", picture(0))
    prompts = [{"box": [1, 1, 20, 20], "frame": 0, "object_id": 4}]
    rows = [{"uri": "v/", "prompts": prompts}, {"uri": "a.webp"}, {"uri": "b.gif"}, {"uri": "c.png"}]
    put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    folder, webp, gif, png = open_source(SourceOptions(input=str(tmp_path / "rows.jsonl"), media="video"))
    assert (folder.uri, folder.media_type, folder.prompts[0].object_id) == (f"{tmp_path}/v/", "video", 4)
    assert [asset.media_type for asset in (webp, gif, png)] == ["video", "video", "image"]
    images = list(open_source(SourceOptions(input=str(tmp_path / "rows.jsonl"))))
    assert [asset.media_type for asset in images] == ["video", "image", "image", "image"]


def test_a_run_over_frames_goes_on_where_it_was_and_keeps_every_object(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datagen = call_with(capfd, monkeypatch)
    put_davis(place_in(tmp_path / "in"), num_frames=8)
    job = tmp_path / "job.yaml"
    job.write_text(
        "version: 1\nmodel: {checkpoint: tiny}\nsource: {media: video}\nperceive: {engine: fake}\ndescribe: {engine: fake}\n"
        "decode: {frames_fps: 4, max_clip_s: 1}\nrun: {executor: inprocess}\n"
    )
    command = ["run", job, "--input", tmp_path / "in", "--output", tmp_path / "out"]  # `auto` sees JPEGImages
    done = datagen(*command)
    assert done.returncode == 0, done.stderr
    assets = {row["uri"].split("/")[-2]: row for row in pq.read_table(tmp_path / "out" / "assets").to_pylist()}
    assert {name: (row["status"], row["num_frames"], row["fps"]) for name, row in assets.items()} == {
        "bear": ("ok", 8, 4.0),
        "camel": ("ok", 8, 4.0),
    }
    tracks = [row for row in pq.read_table(tmp_path / "out" / "tracks").to_pylist() if row["asset_id"] == assets["bear"]["asset_id"]]
    asked = {(row["object_id"], p["frame_index"]) for row in tracks for p in row["prompts"] if p["source"] == "annotation"}
    assert asked == {(1, 0), (2, 3)}
    assert len(pq.read_table(tmp_path / "out" / "clips")) == 4
    report = check_dataset(str(tmp_path / "out"))
    assert report.ok, report.violations[:5]
    assert "nothing to do" in datagen(*command).stdout


@pytest.mark.parametrize("second", ["00001.png", "1.jpg"])
def test_two_pictures_of_one_frame_are_no_further_frame(tmp_path: Path, second: str) -> None:
    for name in ("00000.jpg", "00001.jpg", second):
        (tmp_path / name).write_bytes(picture(0))
    reader = VideoReader(DecodeOptions(), SIZE)
    with pytest.raises(DecodeError, match="are one frame by their names") as caught:
        reader.open_video(f"{tmp_path}/")
    assert caught.value.code == "frame_twice"
    (tmp_path / second).unlink()
    assert reader.open_video(f"{tmp_path}/").info.num_frames == 2
    reader.close()
