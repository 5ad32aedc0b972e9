"""Small datasets whose masks and texts are known, written as runs write them, for `datagen eval`."""

import json

import numpy as np

from datagen.assemble import region_row, track_row
from datagen.ids import asset_id_of, track_id_of
from datagen.job import Job
from datagen.masks import encode_mask
from datagen.records import Asset, Clip, Event, Failure, Prompt, Region, Sample, Text, Track, TrackFrame
from datagen.write import RunRecord, VideoProgress, done_assets, open_store, prepare_output, publish_part, stage_clip, stage_part
from datagen.write.marker import MARKER
from datagen.write.schema import TABLES

SIDE = 20
FAILED = "failed"


def rectangle(x1, y1, x2, y2, width=SIDE, height=SIDE):
    mask = np.zeros((height, width), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def region(index, mask, texts, source="manifest", prompt=None):
    rle = encode_mask(mask)
    spoken = {key: Text(text, None, "stop", 1) for key, text in texts.items()}
    prompt = prompt or Prompt(box=(0, 0, 5, 5), source=source)
    return Region(index, prompt, rle, (0, 0, 5, 5), int(mask.sum()), 1.0, 1.0, 1.0, texts=spoken)


def track(number, masks, caption, prompt=None, first_frame=0):
    frames = [
        TrackFrame(number, first_frame + n, n / 2, mask if mask is None else encode_mask(mask), None, 1.0, 1.0)
        for n, mask in enumerate(masks)
    ]
    event = Event(0.0, 1.0, 0, 1, texts={"en": Text(caption, None, "stop", 1)})
    prompts = {first_frame: prompt or Prompt(box=(0, 0, 5, 5), source="everything")}
    return Track(number, prompts, frames, track_id=track_id_of("v" * 20, number), events=[event])


def image(name, regions, *, asset_id=None, uri=None, size=(SIDE, SIDE), extra=None):
    """A sample of a picture; FAILED in place of its regions makes it a failed row."""
    asset = Asset(asset_id or asset_id_of(name), uri or f"/pictures/{name}", extra=extra or {})
    if regions == FAILED:
        asset.failure = Failure("missing_file", "gone")
        sample = Sample(0, asset)
        sample.fail("missing_file", "gone")
        return sample
    return Sample(0, asset, width=size[0], height=size[1], regions=regions)


def clip(tracks, index=0, *, uri="/v.mp4", is_last=True, size=(SIDE, SIDE)):
    """A sample of a clip of the one video."""
    sample = Sample(0, Asset("v" * 20, uri, "video"), width=size[0], height=size[1])
    sample.clip = Clip(index, float(index), index + 1.0, 2, is_last)
    if tracks == FAILED:
        sample.fail("corrupt", "broken")
    else:
        sample.tracks = list(tracks)
    return sample


def write_samples(folder, images=(), clips=(), version=None, job=None):
    """A dataset of these samples. version: of the schemas, when not the newest."""
    store, job = open_store(str(folder)), job or Job()
    with store.lease({}):
        if version is not None:
            store.write(MARKER, json.dumps({"format": 1, "schemas": dict.fromkeys(TABLES, version), "token_logprobs": False}).encode())
        prepare_output(store, job)
        record = RunRecord.new(job)
        record.write(store, status="finished")
        if images:
            publish_part(store, stage_part(store, record.run_id, images, job.write, region_row))
        progress = VideoProgress(store, done_assets(store))
        for sample in clips:
            progress.publish(stage_clip(store, record.run_id, sample, job.write, track_row))
    return str(folder)


def write_dataset(folder, images, extra=None, tracks=()):
    """images: name -> regions. tracks: of one clip of one video."""
    samples = [image(name, regions, extra=(extra or {}).get(name)) for name, regions in images.items()]
    return write_samples(folder, samples, [clip(tracks)] if tracks else [])


LEFT, RIGHT, SMALL = rectangle(0, 0, 10, 10), rectangle(10, 0, 20, 10), rectangle(0, 15, 4, 19)
HALF_OF_LEFT = rectangle(0, 0, 5, 10)  # IoU 0.5 with LEFT
