"""Scenes as a datagen dataset: pictures and clips in `media/`, their truth in the tables, and manifests that ask for them.

What a scene is stands in the tables as if a perfect model had found it: scores are 1 (or a logit of 10), log-probabilities null.
Relative URIs start from the dataset's folder, so that it can be moved. Ids follow from seed and number, not from paths.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datagen.assemble import region_row, track_row
from datagen.ids import asset_id_of, track_id_of
from datagen.job import DescribeOptions, Job
from datagen.masks import decode_mask, encode_mask, mask_box
from datagen.records import Asset, Clip, Event, Prompt, Region, Sample, Text, Track, TrackFrame
from datagen.scenes.compose import random_scene, scene_seed, texts_of
from datagen.scenes.draw import Rendered, render
from datagen.scenes.motion import FPS, Actor, random_clip, render_clip
from datagen.scenes.motion import Clip as MovingScene
from datagen.scenes.words import Texts
from datagen.write import (
    RunRecord,
    Store,
    VideoProgress,
    done_assets,
    open_store,
    prepare_output,
    publish_part,
    publish_video_assets,
    stage_clip,
    stage_part,
    sweep,
    write_card,
)
from datagen.write.card import count_rows
from datagen.write.done import read_parts
from datagen.write.parts import part_ids
from datagen.write.parts_list import PartsList

MEDIA = "media"
PROMPTS = ("box", "points", "everything")
"""Kinds of prompt. `manifest-<kind>.jsonl` asks for all pictures in this way, `manifest-mixed.jsonl` for each in the next one."""

_JPEG_QUALITY = 92
_PRESENT, _ABSENT = 10.0, -10.0
_IMAGES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_scenes` made."""

    output: str
    num_images: int
    num_regions: int
    num_clips: int
    num_tracks: int


def write_scenes(output: str | Path, *, num_images: int, num_clips: int = 0, seed: int = 0) -> Written:
    """Write the first pictures and clips of the data set `seed` into `output`, as a datagen dataset with manifests.

    output: a folder, or s3://bucket/prefix; one that holds some already gets the others. Raises WriteError when it is not a dataset or
    cannot be written, StorageError when a bucket refuses.
    """
    job = Job(name=f"scenes-{seed}", describe=DescribeOptions(languages=("en", "zh")))
    store, record = open_store(str(output)), RunRecord.new(job)
    with store.lease({"run_id": record.run_id, "job": job.name, "input": "scenes"}):
        prepare_output(store, job)
        sweep(store)
        record.model = {"checkpoint": "scenes", "seed": seed, "license": "Apache-2.0"}
        record.write(store, status="running")
        done = done_assets(store)
        images = [number for number in range(num_images) if _asset_id(seed, "image", number) not in done]
        _publish_images(store, record.run_id, job, (_image_sample(store, seed, number) for number in images))
        progress = VideoProgress(store, done)
        for number in range(num_clips):
            if _asset_id(seed, "clip", number) not in done:
                _publish_clip(store, record.run_id, job, progress, _clip_sample(store, seed, number))
        videos = progress.finished()
        if videos:
            publish_video_assets(store, [video.row for video in videos], job.write)
        _write_manifests(store, seed, num_images, num_clips)
        marks = PartsList(store, record.run_id)
        done_assets(store, marks.see_assets)
        marks.take_stock()
        record.parts = marks.files
        record.write(store, status="finished")
        write_card(
            store, job, license_id="apache-2.0", licences=f"Media and texts were rendered by `datagen scenes --seed {seed}`: Apache-2.0."
        )
    return _count(store, str(output))


def _publish_images(store: Store, run_id: str, job: Job, samples: Iterator[Sample]) -> None:
    while batch := list(islice(samples, _IMAGES_AT_ONCE)):
        publish_part(store, stage_part(store, run_id, batch, job.write, region_row))


def _publish_clip(store: Store, run_id: str, job: Job, progress: VideoProgress, sample: Sample) -> None:
    progress.publish(stage_clip(store, run_id, sample, job.write, _truth_row))


def _truth_row(sample: Sample, track: Track, run_id: str) -> dict[str, Any]:
    """A row of `tracks` whose caption is that of the whole clip, kept as the track's history-less last word, not of its last event."""
    row = track_row(sample, track, run_id)
    whole: dict[str, str] = sample.asset.extra["captions"][track.track_id]
    return row | {f"caption_{language}": text for language, text in whole.items()}


def _asset_id(seed: int, kind: str, number: int) -> str:
    return asset_id_of(f"scenes/{seed}/{kind}/{number}")


def _image_sample(store: Store, seed: int, number: int) -> Sample:
    """Draw a picture, write its file, and tell what is true of it."""
    number_seed = scene_seed(seed, "image", number)
    scene = random_scene(number_seed)
    rendered = render(scene)
    data = io.BytesIO()
    Image.fromarray(rendered.pixels).save(data, "JPEG", quality=_JPEG_QUALITY)
    sample = _sample(store, seed, "image", number, ".jpg", data.getvalue(), (scene.width, scene.height))
    for index, shape in enumerate(scene.shapes):
        texts = texts_of(scene, rendered, index)
        texts["definition"] = {
            "en": f"{shape.label['en']}: {texts['definition']['en']}",
            "zh": f"{shape.label['zh']}：{texts['definition']['zh']}",
        }
        sample.regions.append(_region(index, rendered.masks[index], texts))
    return sample


def _clip_sample(store: Store, seed: int, number: int) -> Sample:
    clip = random_clip(scene_seed(seed, "clip", number))
    frames = list(render_clip(clip))
    size = (clip.scene.width, clip.scene.height)
    sample = _sample(store, seed, "clip", number, ".mp4", encode_video([frame.pixels for frame in frames]), size)
    duration_s = clip.num_frames / FPS
    sample.clip = Clip(0, 0.0, duration_s, clip.num_frames, True, num_video_frames=clip.num_frames, fps=float(FPS), duration_s=duration_s)
    sample.tracks = [_track(sample, clip, index, frames) for index in range(len(clip.actors))]
    sample.asset.extra["captions"] = {track.track_id: actor.caption for track, actor in zip(sample.tracks, clip.actors, strict=True)}
    return sample


def _sample(store: Store, seed: int, kind: str, number: int, suffix: str, data: bytes, size: tuple[int, int]) -> Sample:
    path = _media_path(kind, number, suffix)
    store.write(path, data)
    media_type: Any = "image" if kind == "image" else "video"
    extra = {"scene_seed": str(scene_seed(seed, kind, number)), "seed": seed, "number": number}
    asset = Asset(_asset_id(seed, kind, number), path, media_type, license="Apache-2.0", extra=extra)
    sha256 = hashlib.sha256(data).hexdigest()
    return Sample(number, asset, width=size[0], height=size[1], size_bytes=len(data), sha256=sha256)


def _region(index: int, mask: NDArray[np.bool_], texts: dict[str, Texts]) -> Region:
    box = mask_box(mask)
    if box is None:
        raise ValueError(f"shape {index} has no visible pixel; the composer keeps none of these")
    return Region(
        region_index=index,
        prompt=Prompt(box=box, source="manifest"),
        mask=encode_mask(mask),
        box_xyxy=box,
        area_px=int(mask.sum()),
        predicted_iou=1.0,
        stability=1.0,
        object_score=_PRESENT,
        texts={(task, language): _text(text) for task, of_task in texts.items() for language, text in of_task.items()},
    )


def _track(sample: Sample, clip: MovingScene, index: int, frames: Sequence[Rendered]) -> Track:
    actor, seen = clip.actors[index], [_track_frame(index, number, frame) for number, frame in enumerate(frames)]
    return Track(
        object_index=index,
        prompts={0: Prompt(box=seen[0].box_xyxy, source="manifest")},
        frames=seen,
        track_id=track_id_of(sample.asset.asset_id, index),
        events=_events(actor),
    )


def _track_frame(index: int, number: int, frame: Rendered) -> TrackFrame:
    mask = frame.masks[index]
    box = mask_box(mask)
    there = box is not None
    return TrackFrame(index, number, number / FPS, encode_mask(mask) if there else None, box, _PRESENT if there else _ABSENT, 1.0)


def _events(actor: Actor) -> list[Event]:
    """One event per phase, each told after the one before."""
    events: list[Event] = []
    for phase in actor.phases:
        texts = {language: _text(text) for language, text in actor.event(phase).items()}
        history = {language: events[-1].texts[language].text if events else None for language in texts}
        events.append(Event(phase.start / FPS, phase.stop / FPS, phase.start, phase.stop - 1, texts=texts, history=history))
    return events


def _text(text: str) -> Text:
    return Text(text, None, "stop", 0)


def _media_path(kind: str, number: int, suffix: str) -> str:
    return f"{MEDIA}/{kind}-{number:06d}{suffix}"


def encode_video(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """An MP4 of RGB frames (H, W, 3), even sides, FPS frames per second."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "16", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return data.getvalue()


def _write_manifests(store: Store, seed: int, num_images: int, num_clips: int) -> None:
    """Manifests of all pictures, and one of the clips, prompted by box on the first frame."""
    regions = _by_asset(store, "regions", ["asset_id", "region_index", "box_xyxy", "mask"], "region_index") if num_images else {}
    for name, kinds in {**{kind: (kind,) for kind in PROMPTS}, "mixed": PROMPTS}.items():
        rows = []
        for number, kind in zip(range(num_images), cycle(kinds), strict=False):
            asset_id = _asset_id(seed, "image", number)
            asked = {} if kind == "everything" else {"prompts": [_prompt(kind, row) for row in regions[asset_id]]}
            rows.append({"asset_id": asset_id, "uri": _media_path("image", number, ".jpg"), **asked})
        store.write(f"manifest-{name}.jsonl", _jsonl(rows))
    tracks = _by_asset(store, "tracks", ["asset_id", "object_index", "prompts"], "object_index") if num_clips else {}
    clips = []
    for number in range(num_clips):
        asset_id = _asset_id(seed, "clip", number)
        prompts = [{"box": row["prompts"][0]["box"], "frame": 0, "object_id": row["object_index"]} for row in tracks[asset_id]]
        clips.append({"asset_id": asset_id, "uri": _media_path("clip", number, ".mp4"), "prompts": prompts})
    store.write("manifest-clips.jsonl", _jsonl(clips))


def _by_asset(store: Store, table: str, columns: list[str], order: str) -> dict[str, list[dict[str, Any]]]:
    """asset id -> its rows of a table, in the order of a column."""
    rows = [row for part in read_parts(store, table, part_ids(store, table), columns) for row in part.to_pylist()]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row[order])):
        found.setdefault(row["asset_id"], []).append(row)
    return found


def _prompt(kind: str, region: dict[str, Any]) -> dict[str, Any]:
    if kind == "box":
        return {"box": region["box_xyxy"]}
    return {"points": [inner_point(decode_mask(region["mask"]))], "labels": [1]}


def inner_point(mask: NDArray[np.bool_]) -> list[float]:
    """(x, y) px of a mask's pixel that is farthest from its edge, by repeated erosion."""
    inner = np.pad(mask, 1)
    while True:
        core = inner[1:-1, 1:-1]
        smaller = np.pad(core & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:], 1)
        if not smaller.any():
            rows, columns = np.nonzero(core)
            return [float(columns[len(columns) // 2]) + 0.5, float(rows[len(rows) // 2]) + 0.5]
        inner = smaller


def _jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _count(store: Store, output: str) -> Written:
    num_clips = count_rows(store, "clips")
    return Written(output, count_rows(store, "assets") - num_clips, count_rows(store, "regions"), num_clips, count_rows(store, "tracks"))
