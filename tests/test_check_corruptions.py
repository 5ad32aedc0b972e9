"""Some hundred and fifty ways in which a dataset can be damaged, each planted in a sound one: every one is found, under its code.

The dataset is made by real runs (fake models): images with prompts, one without, a failed one, a film of three clips; two languages, with
token log-probabilities. `judged`: found by what the rows say, without content hashes; the others are found by the hashes alone.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import rewrite, with_column
from PIL import Image
from video_files import numbered, write_video

from datagen.check import check_dataset
from datagen.job import parse_job
from datagen.run import run_job

FAKE = {"engine": "fake"}
NAN = math.nan


def job_of(root: Path) -> Any:
    return parse_job(
        {
            "perceive": {"engine": "fake", "track": {"segment_frames": None}},
            "describe": {"engine": "fake", "tasks": ["label", "caption"], "languages": ["en", "zh"], "logprobs": 2},
            "decode": {"max_clip_s": 1.0},
            "write": {"assets_per_part": 2},
            "source": {"input": str(root / "list.jsonl")},
            "run": {"executor": "inprocess", "max_failed_fraction": 1.0},
            "output": str(root / "corpus"),
        }
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    for index in range(4):
        Image.new("RGB", (40, 30), (60 * index, 90, 200)).save(root / f"{index}.png")
    (root / "broken.png").write_bytes(b"no picture")
    write_video(root / "film.mp4", map(numbered, range(12)), fps=4)
    boxes = [{"box": [2, 3, 20, 22]}, {"points": [[30, 20], [2, 2]], "labels": [1, 0]}, {"box": [1, 1, 1, 9]}]
    rows: list[dict[str, Any]] = [{"uri": f"{index}.png", "prompts": boxes, "day": index, "license": "CC0"} for index in range(3)]
    rows += [{"uri": "3.png"}, {"uri": "broken.png"}]
    film = [{"box": [4, 4, 30, 30], "time_s": 0, "object_id": 7}, {"box": [30, 10, 50, 40], "time_s": 0, "object_id": 8}]
    rows += [{"uri": "film.mp4", "prompts": film}]
    rows = [row | {"asset_id": f"asset-{row['uri']}"} for row in rows]  # so that what the fakes invent is the same in every folder
    for number in (3, len(rows)):  # two runs
        (root / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:number]))
        run_job(job_of(root))
    report = check_dataset(str(root / "corpus"))
    assert report.ok, report.violations
    assert (report.num_assets, report.num_clips, report.num_tracks) == (6, 3, 6)
    assert (report.num_unproven_parts, report.num_unlisted_parts) == (0, 0)
    return root / "corpus"


@dataclass(frozen=True)
class Corpus:
    root: Path

    def parts(self, table: str) -> list[Path]:
        """Those with two images or two objects first, then by name."""
        return sorted((self.root / table).iterdir(), key=lambda path: (-pq.read_metadata(path).num_rows, path.name))

    def image_part(self) -> Path:
        return self.root / "assets" / self.parts("regions")[0].name

    def film_part(self) -> Path:
        return next(path for path in self.parts("assets") if "video" in pq.read_table(path)["media_type"].to_pylist())

    def clip(self, index: int, table: str = "clips") -> Path:
        for path in self.parts("clips"):
            if pq.read_table(path)["clip_index"].to_pylist() == [index]:
                return self.root / table / path.name
        raise AssertionError(index)

    def record(self, number: int = 0) -> Path:
        return sorted((self.root / "_datagen" / "runs").glob("*.json"))[number]

    def list_file(self) -> Path:
        return sorted((self.root / "_datagen" / "runs").glob("*.parquet"))[0]


Damage = Callable[[Corpus], None]


def put(path: Path, data: bytes) -> None:
    """The copy shares its files with the sound one until they are replaced."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def edit(path: Path, column: str, make: Callable[[Any], Any], row: int = 0) -> None:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = make(values[row])
        return with_column(table, column, values)

    reshape(path, change)


def reshape(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    data = path.read_bytes()
    put(path, data)
    rewrite(path, change)


def asset(column: str, make: Callable[[Any], Any]) -> Damage:
    return lambda corpus: edit(corpus.image_part(), column, make)


def region(column: str, make: Callable[[Any], Any], row: int = 0) -> Damage:
    return lambda corpus: edit(corpus.parts("regions")[0], column, make, row)


def film(column: str, make: Callable[[Any], Any]) -> Damage:
    def damage(corpus: Corpus) -> None:
        path = corpus.film_part()
        edit(path, column, make, pq.read_table(path)["media_type"].to_pylist().index("video"))

    return damage


def clip(column: str, make: Callable[[Any], Any], index: int = 0) -> Damage:
    return lambda corpus: edit(corpus.clip(index), column, make)


def track(column: str, make: Callable[[Any], Any], row: int = 0, index: int = 0) -> Damage:
    return lambda corpus: edit(corpus.clip(index, "tracks"), column, make, row)


def both(*damages: Damage) -> Damage:
    def damage(corpus: Corpus) -> None:
        for one in damages:
            one(corpus)

    return damage


def to(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def item(number: int, **values: Any) -> Callable[[Any], Any]:
    return lambda items: [old | values if place == number else old for place, old in enumerate(items)]


def field(**values: Any) -> Callable[[Any], Any]:
    return lambda old: old | values


def without(number: int) -> Callable[[Any], Any]:
    return lambda items: [old for place, old in enumerate(items) if place != number]


def rows(where: Callable[[Corpus], Path], change: Callable[[pa.Table], pa.Table]) -> Damage:
    return lambda corpus: reshape(where(corpus), change)


def gone(*where: Callable[[Corpus], Path]) -> Damage:
    def damage(corpus: Corpus) -> None:
        for path in [find(corpus) for find in where]:
            path.unlink()

    return damage


def record(change: Callable[[dict[str, Any]], Any], number: int = 0) -> Damage:
    def damage(corpus: Corpus) -> None:
        path = corpus.record(number)
        content = json.loads(path.read_text())
        change(content)
        put(path, json.dumps(content).encode())

    return damage


def note(name: str, content: bytes) -> Damage:
    return lambda corpus: put(corpus.root / "_datagen" / name, content)


def bitflip(corpus: Corpus) -> None:
    path = corpus.parts("regions")[0]
    data, group = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0)
    chunks = [group.column(number) for number in range(group.num_columns)]
    pages = [
        (chunk.data_page_offset, (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size) for chunk in chunks
    ]
    first, end = max(pages, key=lambda page: page[1] - page[0])
    data[(first + end) // 2] ^= 0x10  # in a page of values, whose checksum readers compare
    put(path, bytes(data))


def copied(corpus: Corpus) -> None:
    for table in ("assets", "regions"):
        shutil.copy(corpus.root / table / corpus.parts("regions")[0].name, corpus.root / table / f"part-{'0' * 20}.parquet")


def renamed(corpus: Corpus) -> None:
    for table in ("assets", "regions"):
        (corpus.root / table / corpus.parts("regions")[0].name).rename(corpus.root / table / f"part-{'0' * 20}.parquet")


def swapped(*columns: str) -> Damage:
    def damage(corpus: Corpus) -> None:
        path = corpus.parts("regions")[0]
        for column in columns:
            values = pq.read_table(path)[column].to_pylist()
            other = next(place for place, value in enumerate(values) if value != values[0])
            values[0], values[other] = values[other], values[0]
            reshape(path, lambda table, column=column, values=values: with_column(table, column, values))

    return damage


def same_uri(corpus: Corpus) -> None:
    images = [path for path in corpus.parts("assets") if path != corpus.film_part() and pq.read_table(path)["status"][0].as_py() == "ok"]
    edit(images[0], "uri", to(pq.read_table(images[1])["uri"][0].as_py()))


def later(frames: Any) -> Any:
    return [old | {"timestamp_s": old["timestamp_s"] + 0.01} for old in frames]


def unseen(frames: Any) -> Any:
    return [old | {"mask": None, "box_xyxy": None} if place == 1 else old for place, old in enumerate(frames)]


def text(corpus: Corpus) -> Path:
    return corpus.parts("regions")[0]


JUDGED: dict[str, tuple[Damage, str]] = {
    # files
    "an assets part removed": (gone(Corpus.image_part), "lost_asset"),
    "a regions part removed": (gone(text), "region_count"),
    "a part of images removed from both tables": (gone(Corpus.image_part, text), "lost_asset"),
    "a clip removed": (gone(lambda c: c.clip(1), lambda c: c.clip(1, "tracks")), "clip_count"),
    "tracks removed": (gone(lambda c: c.clip(1, "tracks")), "track_count"),
    "tracks without their mark": (gone(lambda c: c.clip(1)), "orphan_part"),
    "assets emptied": (rows(Corpus.image_part, lambda t: t.slice(0, 0)), "empty_part"),
    "regions emptied": (rows(text, lambda t: t.slice(0, 0)), "empty_part"),
    "clips emptied": (rows(lambda c: c.clip(0), lambda t: t.slice(0, 0)), "empty_part"),
    "tracks emptied": (rows(lambda c: c.clip(0, "tracks"), lambda t: t.slice(0, 0)), "empty_part"),
    "a part cut off": (lambda c: put(text(c), text(c).read_bytes()[:-20]), "unreadable_part"),
    "a part of no byte": (lambda c: put(text(c), b""), "unreadable_part"),
    "a bit flipped": (bitflip, "unreadable_part"),
    "a part copied": (copied, "part_name"),
    "a part renamed": (renamed, "part_name"),
    "a file that is no part": (lambda c: put(c.root / "assets" / "notes.txt", b"x"), "unexpected_file"),
    "a half-written file": (lambda c: put(c.root / "assets" / ".tmp-1", b"x"), "debris"),
    "a column dropped": (rows(text, lambda t: t.drop_columns(["flags"])), "schema"),
    "a column of another type": (rows(text, lambda t: t.set_column(9, "predicted_iou", t["predicted_iou"].cast("float32"))), "schema"),
    "another schema version": (rows(text, lambda t: t.replace_schema_metadata({"datagen.schema": "regions.v1"})), "schema"),
    "the marker removed": (gone(lambda c: c.root / "_datagen" / "dataset.json"), "marker"),
    "the marker damaged": (note("dataset.json", b"{}"), "marker"),
    # notes of runs
    "a record removed": (gone(Corpus.record), "unknown_run"),
    "a record cut off": (lambda c: put(c.record(), c.record().read_bytes()[:100]), "run_record"),
    "a record without its job": (record(lambda r: r.pop("job")), "run_record"),
    "a record of another run": (record(lambda r: r.update(run_id="x")), "run_record"),
    "a record with a state that is none": (record(lambda r: r.update(status="done")), "run_record"),
    "a record with a negative count": (record(lambda r: r["summary"]["statuses"].update(ok=-1)), "run_record"),
    "a record with a time that is none": (record(lambda r: r.update(started_at="yesterday")), "run_record"),
    "a record that ended before it began": (record(lambda r: r.update(finished_at="2001-01-01T00:00:00+00:00")), "run_record"),
    "a record that counts more": (record(lambda r: r["summary"]["statuses"].update(ok=90)), "lost_asset"),
    "a record of no object": (lambda c: put(c.record(), b"[]"), "run_record"),
    "a damaged crash file": (note("crashes.json", b'{"decode/image a": "x"}'), "crash_file"),
    "a crash file cut off": (note("crashes.json", b"{"), "crash_file"),
    "a damaged heartbeat": (note("heartbeat.json", b"\xff"), "meta_file"),
    "a damaged estimate": (note("estimate.json", b"[]"), "meta_file"),
    "a list of parts removed": (gone(Corpus.list_file), "run_record"),
    "a list of parts damaged": (lambda c: put(c.list_file(), b"PAR1"), "run_record"),
    # rows of assets
    "an asset removed from its part": (rows(Corpus.image_part, lambda t: t.slice(1)), "part_name"),
    "an asset there twice": (rows(Corpus.image_part, lambda t: pa.concat_tables([t, t.slice(0, 1)])), "duplicate_asset"),
    "an asset under another id": (asset("asset_id", to("another")), "part_name"),
    "ok said to be empty": (asset("status", to("empty")), "status"),
    "a status that is none": (asset("status", to("fine")), "status"),
    "failed without a reason": (asset("status", to("failed")), "failed_row"),
    "an error of what is ok": (asset("error_code", to("decode")), "failed_row"),
    "one region too many said": (asset("num_regions", lambda n: n + 1), "region_count"),
    "a negative count": (asset("num_regions", to(-1)), "value"),
    "no width": (asset("width", to(None)), "asset_size"),
    "a width of 0": (asset("width", to(0)), "value"),
    "another width": (asset("width", lambda n: n + 1), "mask"),
    "a negative size": (asset("size_bytes", to(-1)), "value"),
    "a hash that is none": (asset("sha256", to("abc")), "value"),
    "no hash of the file": (asset("sha256", to(None)), "value"),
    "no attempt": (asset("attempts", to(0)), "value"),
    "negative retries": (asset("retries", to(-1)), "value"),
    "extra that is no JSON": (asset("extra", to("{")), "extra"),
    "extra that is a list": (asset("extra", to("[1]")), "extra"),
    "extra with NaN": (asset("extra", to('{"a": NaN}')), "extra"),
    "extra nested deeply": (asset("extra", to('{"a":' * 50_000 + "1" + "}" * 50_000)), "extra"),
    "an unknown reason in dropped": (asset("dropped", to([{"reason": "banana", "count": 1}])), "dropped"),
    "a negative count in dropped": (asset("dropped", to([{"reason": "prompt_inverted", "count": -1}])), "dropped"),
    "a reason twice in dropped": (asset("dropped", lambda d: [*d, *d]), "dropped"),
    "a prompt neither used nor counted": (asset("dropped", to([])), "prompt_count"),
    "one prompt more said": (asset("num_prompts", lambda n: n + 1), "prompt_count"),
    "prompts without their hash": (asset("prompts_hash", to(None)), "value"),
    "half a stated size": (asset("stated_width", to(40)), "value"),
    "a medium that is none": (asset("media_type", to("sound")), "media_type"),
    "another part said": (asset("part_id", to("x")), "part_id"),
    "another run said": (asset("run_id", to("x")), "unknown_run"),
    "no uri": (asset("uri", to("")), "value"),
    "one uri under two ids": (same_uri, "duplicate_uri"),
    # rows of regions
    "a region removed": (rows(text, lambda t: t.slice(1)), "region_count"),
    "a region there twice": (rows(text, lambda t: pa.concat_tables([t, t.slice(0, 1)])), "duplicate_region"),
    "a region of another asset": (region("asset_id", to("another")), "stray_region"),
    "another number of a region": (region("region_index", lambda n: n + 7), "region_id"),
    "another id of a region": (region("region_id", lambda name: name + "0"), "region_id"),
    "a transposed mask": (region("mask", lambda m: m | {"size": m["size"][::-1]}), "mask"),
    "a mask cut off": (region("mask", lambda m: m | {"counts": m["counts"][:-1]}), "mask"),
    "an empty mask": (region("mask", field(counts="")), "mask"),
    "masks swapped": (swapped("mask"), "area"),
    "another area": (region("area_px", lambda n: n + 1), "area"),
    "another box": (region("box_xyxy", lambda b: [b[0], b[1], b[2] + 1, b[3]]), "box"),
    "a predicted IoU of NaN": (region("predicted_iou", to(NAN)), "score"),
    "a predicted IoU above 1": (region("predicted_iou", to(1.5)), "score"),
    "a negative stability": (region("stability", to(-0.1)), "score"),
    "an object score of NaN": (region("object_score", to(NAN)), "object_score"),
    "an object score of infinity": (region("object_score", to(math.inf)), "object_score"),
    "a negative object score": (region("object_score", to(-2.0)), "object_score"),
    "absent with a positive score": (region("flags", to(["absent"])), "object_score"),
    "an unknown flag": (region("flags", to(["banana"])), "flags"),
    "a flag twice": (region("flags", to(["repetition:label_en"] * 2)), "flags"),
    "truncated, and ended by itself": (region("flags", to(["truncated:label_en"])), "flags"),
    "ended by length, and not flagged": (region("caption_en_finish", to("length")), "flags"),
    "a text lost": (region("caption_en", to(None)), "text"),
    "a text lost with all that is beside it": (
        both(*(region(name, to(None)) for name in ("caption_zh", "caption_zh_finish", "caption_zh_logprob"))),
        "text",
    ),
    "a finish reason lost": (region("label_zh_finish", to(None)), "text"),
    "a finish reason that is none": (region("label_en_finish", to("tired")), "text"),
    "a text that was not asked for": (
        both(region("description_en", to("x")), region("description_en_finish", to("stop"))),
        "text",
    ),
    "a log-probability without its text": (region("description_en_logprob", to(-1.0)), "text"),
    "a log-probability above 0": (region("label_en_logprob", to(0.5)), "logprob"),
    "a log-probability of NaN": (region("label_en_logprob", to(NAN)), "logprob"),
    "a log-probability lost": (region("label_en_logprob", to(None)), "logprob"),
    "token log-probabilities lost": (region("token_logprobs", to([])), "token_logprobs"),
    "token log-probabilities of one text lost": (region("token_logprobs", without(1)), "token_logprobs"),
    "a token log-probability of NaN": (
        region("token_logprobs", lambda e: [e[0] | {"logprobs": [NAN, *e[0]["logprobs"][1:]]}, *e[1:]]),
        "token_logprobs",
    ),
    "a token too few": (region("token_logprobs", lambda e: [e[0] | {"token_ids": e[0]["token_ids"][1:]}, *e[1:]]), "token_logprobs"),
    "an inverted prompt": (region("prompt", field(box=[20.0, 3.0, 2.0, 22.0])), "prompt"),
    "a prompt outside": (region("prompt", field(box=[2.0, 3.0, 90.0, 22.0])), "prompt"),
    "a prompt of NaN": (region("prompt", field(box=[2.0, NAN, 20.0, 22.0])), "prompt"),
    "a prompt of three numbers": (region("prompt", field(box=[2.0, 3.0, 20.0])), "prompt"),
    "a label too many": (region("prompt", field(labels=[1])), "prompt"),
    "a label that is none": (region("prompt", lambda p: p | {"labels": [2, 0]}, row=1), "prompt"),
    "a prompt that asks for nothing": (region("prompt", field(box=None)), "prompt"),
    "a prompt of another type": (region("prompt", field(type="points")), "prompt"),
    "a prompt from nowhere": (region("prompt", field(source="banana")), "prompt"),
    "a damaged mask of a prompt": (region("prompt", field(type="box+mask", mask={"size": [30, 40], "counts": "0"})), "prompt"),
    "a mask from nowhere": (region("mask_source", to("banana")), "value"),
    "a region of another run": (region("run_id", to("x")), "mixed_runs"),
    # rows of tracks
    "a track without frames": (track("frames", to([])), "frame_index"),
    "a frame removed": (track("frames", without(1)), "frame_gap"),
    "the last frame removed": (track("frames", lambda f: f[:-1]), "frame_gap"),
    "a frame of all objects removed": (both(*(track("frames", without(1), row) for row in (0, 1))), "frame_gap"),
    "a frame beyond the clip": (track("frames", lambda f: [*f[:-1], f[-1] | {"frame_index": 11, "timestamp_s": 2.75}]), "timestamp"),
    "a frame beyond the video": (track("frames", item(3, frame_index=99)), "frame_index"),
    "times of one object moved": (track("frames", later), "timestamp"),
    "times that fall": (track("frames", lambda f: [f[0] | {"timestamp_s": 0.6}, *f[1:]]), "timestamp"),
    "a time of NaN": (track("frames", item(1, timestamp_s=NAN)), "timestamp"),
    "a mask lost where the object is": (track("frames", unseen), "object_score"),
    "a mask where the object is not": (track("frames", item(1, object_score=-3.0)), "object_score"),
    "a mask without its box": (track("frames", item(1, box_xyxy=None)), "box"),
    "a predicted IoU of a frame of NaN": (track("frames", item(1, predicted_iou=NAN)), "score"),
    "a mask of another size": (track("frames", lambda f: [f[0] | {"mask": f[0]["mask"] | {"size": [3, 4]}}, *f[1:]]), "mask"),
    "a caption unlike its event": (track("caption_en", to("it sleeps")), "caption"),
    "a caption lost": (track("caption_zh", to(None)), "caption"),
    "a text of an event lost": (track("events", item(0, text_en=None)), "text"),
    "events lost": (track("events", to([])), "event"),
    "a log-probability of an event lost": (track("events", item(0, text_en_logprob=None)), "logprob"),
    "a log-probability of an event above 0": (track("events", item(0, text_zh_logprob=1.0)), "logprob"),
    "a finish reason of an event that is none": (track("events", item(0, text_en_finish="tired")), "text"),
    "a history without a caption before": (track("events", item(0, history_en="it slept")), "event"),
    "an event beyond the track": (track("events", item(0, end_frame=11)), "event"),
    "an event that ends before it starts": (track("events", item(0, end_s=-1.0)), "event"),
    "a prompt of a track outside": (track("prompts", item(0, box=[500.0, 4.0, 600.0, 30.0])), "prompt"),
    "a prompt about a frame that is not followed": (track("prompts", item(0, frame_index=9)), "prompt_frame"),
    "an unknown flag of a track": (track("flags", to(["banana"])), "flags"),
    "absent, and seen": (track("flags", to(["absent"])), "flags"),
    "two objects of one number": (track("object_index", to(1)), "object_index"),
    "another id of an object": (track("track_id", to("it")), "track_id"),
    "a track removed": (rows(lambda c: c.clip(0, "tracks"), lambda t: t.slice(1)), "track_count"),
    "a track there twice": (rows(lambda c: c.clip(0, "tracks"), lambda t: pa.concat_tables([t, t.slice(0, 1)])), "duplicate_track"),
    # rows of clips, and of the film
    "more frames than a clip has": (clip("num_frames", to(2)), "frame_index"),
    "fewer tracks said": (clip("num_tracks", to(1)), "track_count"),
    "a last clip in the middle": (clip("is_last", to(True)), "last_clip"),
    "no last clip": (clip("is_last", to(False), index=2), "last_clip"),
    "a clip that ends earlier": (clip("end_s", to(0.5)), "clip_times"),
    "a clip that ends behind the film": (clip("end_s", to(9.0), index=2), "clip_times"),
    "an object handed over twice": (clip("handovers", lambda h: [h[0], h[0]]), "handover"),
    "a hand-over behind the end": (
        lambda c: edit(c.clip(2), "handovers", to(pq.read_table(c.clip(0))["handovers"][0].as_py())),
        "handover",
    ),
    "an unknown flag of a clip": (clip("flags", to(["banana"])), "flags"),
    "negative missing frames": (clip("missing_frames", to(-1)), "value"),
    "another number of a clip": (clip("clip_index", to(7)), "part_name"),
    "another id of a clip": (clip("clip_id", lambda name: name + "0"), "clip_id"),
    "a clip said to be empty": (clip("status", to("empty")), "status"),
    "a number that will be given twice": (clip("next_track", to(0)), "track_id"),
    "a clip of another run": (clip("run_id", to("x")), "unknown_run"),
    "another number of clips": (film("num_clips", to(2)), "clip_count"),
    "another number of objects": (film("num_tracks", to(5)), "track_count"),
    "another duration": (film("duration_s", to(9.0)), "video_row"),
    "a duration of NaN": (film("duration_s", to(NAN)), "value"),
    "a film said to have failed": (film("status", to("failed")), "status"),
}

# What every rule agrees with: only the hash tells.
HASHED: dict[str, tuple[Damage, str]] = {
    "a label edited": (region("label_en", to("another")), "changed_part"),
    "a caption edited": (region("caption_zh", to("别的")), "changed_part"),
    "masks swapped with areas and boxes": (swapped("mask", "area_px", "box_xyxy"), "changed_part"),
    "texts swapped": (swapped("label_en", "caption_en"), "changed_part"),
    "a score moved a little": (region("predicted_iou", lambda n: n * 0.999), "changed_part"),
    "a licence edited": (asset("license", to("none")), "changed_part"),
    "extra edited": (asset("extra", to("{}")), "changed_part"),
    "another uri": (asset("uri", to("/elsewhere.png")), "changed_part"),
    "the caption of a track edited with its event": (
        both(track("events", item(0, text_en="x"), index=2), track("caption_en", to("x"), index=2)),
        "changed_part",
    ),
    "a part of images removed from both tables": (gone(Corpus.image_part, text), "lost_part"),
    "the rows of a film removed": (gone(Corpus.film_part), "lost_part"),
    "an old mark beside a new part": (lambda c: reshape(c.image_part(), lambda t: t), "changed_part"),
    "a list of parts emptied": (rows(Corpus.list_file, lambda t: t.slice(0, 0)), "run_record"),
}


@pytest.fixture
def corpus(sound: Path, tmp_path: Path) -> Corpus:
    shutil.copytree(sound, tmp_path / "corpus", copy_function=os.link)
    return Corpus(tmp_path / "corpus")


@pytest.mark.parametrize("name", JUDGED)
def test_what_the_rows_say_is_judged(corpus: Corpus, name: str) -> None:
    damage, code = JUDGED[name]
    damage(corpus)
    assert code in check_dataset(str(corpus.root), hashes=False).by_code


@pytest.mark.parametrize("name", HASHED)
def test_what_no_row_tells_is_told_by_the_hashes(corpus: Corpus, name: str) -> None:
    damage, code = HASHED[name]
    damage(corpus)
    assert code in check_dataset(str(corpus.root)).by_code


def test_there_are_many_of_them(sound: Path) -> None:
    assert len(JUDGED) + len(HASHED) >= 97 * 1.5
    assert check_dataset(str(sound)).ok, "and none of them touched the sound one"
