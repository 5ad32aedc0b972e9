"""What must hold for any bytes whatever: a judge per kind of file takes one case through the real code and names what became of it.

Pictures and videos go through their steps with the real decoding child, manifests from the listing to a checked dataset, job files
through `load_job`. A judge raises AssertionError where a promise is broken: an exception other than datagen's own, an asset
without a row, a Python error in the decoding child, more than LONGEST_S.
"""

from __future__ import annotations

import itertools
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from bad_media import encoded, quadrants
from video_files import clip

from datagen.blocks import from_table, to_table
from datagen.check import check_dataset
from datagen.decode import make_decode_step, make_video_reader
from datagen.describe import make_describe_step
from datagen.errors import JobError, SourceError
from datagen.graph import Plan, stage
from datagen.ids import asset_id_of
from datagen.job import Job, load_job, parse_job
from datagen.perceive import make_perceive_step, make_video_step
from datagen.records import Asset, Sample
from datagen.run import run_job
from datagen.run.distinct import Distinct
from datagen.sources import open_source
from datagen.write import RunRecord, prepare_output, publish_part
from datagen.write.layout import RUNS

LONGEST_S = 10.0
SILENT_S = 30.0
MOST_CLIPS = 2000
WHOLE_RUN_EVERY = 50
IMAGE_SIZE = 32
IMAGE_CODES = {"empty_file", "not_an_image", "truncated", "corrupt", "unsupported_image", "bomb", "out_of_memory"}
IMAGE_CODES |= {"decoder_crashed", "decode_timeout"}
VIDEO_CODES = IMAGE_CODES - {"not_an_image"} | {"not_a_video", "no_video_stream", "no_frames", "frame_twice", "unsupported_codec"}
LISTING_CODES = {
    *("manifest_bad_row", "manifest_no_uri", "manifest_bad_id", "manifest_bad_prompts", "manifest_rows_conflict", "row_too_large"),
    *("asset_id_taken", "asset_listed_twice", "unsupported_uri", "refused_uri", "missing_file", "stated_size"),
}
_TABLE_CODES = {"table_damaged", "table_too_large", "no_image_column"}
HOLDER_CODES = {  # further ones, by suffix, of files that may hold the pictures themselves
    ".parquet": _TABLE_CODES,
    ".arrow": _TABLE_CODES,
    ".tar": {"archive_truncated", "archive_damaged", "archive_bad_member", "archive_not_grouped", "archive_compressed"},
}

Judge = Callable[[str, bytes], str]
"""(file name, content) -> what became of it, such as `ok` or an error code."""


def fake_job(**groups: Any) -> Job:
    """Fakes for the models, in this process."""
    return parse_job(
        {
            "decode": {"timeout_s": SILENT_S, "max_clip_s": 0.5},
            "perceive": {"engine": "fake"},
            "describe": {"engine": "fake"},
            "run": {"executor": "inprocess"},
            **groups,
        }
    )


@contextmanager
def image_judge(folder: Path) -> Iterator[Judge]:
    """The decode step."""
    step = make_decode_step(fake_job(), IMAGE_SIZE)
    step.setup()

    def judge(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        [sample] = step.process([_sample(folder / name, "image")])
        if sample.failure is None:
            assert sample.pixels is not None or min(sample.width or 0, sample.height or 0) < 2
            return "ok"
        return _code(sample, IMAGE_CODES)

    try:
        yield _in_time(judge)
    finally:
        step.teardown()


@contextmanager
def video_judge(folder: Path) -> Iterator[Judge]:
    """The perceive step of videos, with a fake model behind the real reader."""
    job = fake_job()
    step = make_video_step(job, IMAGE_SIZE, lambda size: make_video_reader(job, size))
    step.setup()

    def judge(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        clips = list(itertools.islice(step.clips(_sample(folder / name, "video")), MOST_CLIPS))
        assert len(clips) < MOST_CLIPS, f"a video of nine frames has {MOST_CLIPS} clips or more"
        assert clips
        assert [clip.clip is not None and clip.clip.is_last for clip in clips] == [False] * (len(clips) - 1) + [True]
        return "ok" if clips[-1].failure is None else _code(clips[-1], VIDEO_CODES)

    try:
        yield _in_time(judge)
    finally:
        step.teardown()


@contextmanager
def manifest_judge(folder: Path) -> Iterator[Judge]:
    """The listing, and its images from there to a checked dataset as if each had been decoded; one case in WHOLE_RUN_EVERY as a whole job,
    with videos. Some of the files that the manifests name are there.
    """
    (folder / "sub").mkdir()
    for name in ("a.png", "sub/c.png"):
        (folder / name).write_bytes(encoded(quadrants(), "PNG"))
    (folder / "b.jpg").write_bytes(encoded(quadrants(), "JPEG"))
    clip(folder, 6, "film.mp4")
    outputs = {whole: folder / ("whole" if whole else "corpus") for whole in (True, False)}
    record = RunRecord.new(fake_job())

    def judge(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        whole = zlib.crc32(data) % WHOLE_RUN_EVERY == 0
        output = outputs[whole]
        for old in (output,) if whole else (output / "assets", output / "regions"):
            shutil.rmtree(old, ignore_errors=True)
        job = fake_job(source={"input": str(folder / name)}, output=str(output))
        try:
            assets = list(Distinct(open_source(job.source, job.s3)))
        except SourceError:
            return "refused"
        codes = {asset.failure.code for asset in assets if asset.failure}
        assert codes <= LISTING_CODES | HOLDER_CODES.get(Path(name).suffix, set()), codes
        once = {asset.asset_id: asset for asset in assets if whole or asset.media_type == "image"}
        if not once:
            return "nothing listed"
        if whole:
            summary = run_job(job)
            assert summary.listed == sum(summary.statuses.values()) == len(once)
        else:
            _write(job, list(once.values()), record)
        report = check_dataset(str(output), expected=once)
        assert report.ok, report.violations[:5]
        errors = pq.read_table(output / "assets", columns=["error_code"])["error_code"].to_pylist()
        unexpected = {code for code in errors if code and code.endswith(("_error", "_crashed", "_timeout"))}
        assert not unexpected, unexpected
        return "listed, some rows bad" if codes else "listed"

    yield _in_time(judge)


def _write(job: Job, assets: list[Asset], record: RunRecord) -> None:
    """The images of a run as Ray would carry them, through the steps behind the decoder and into the output."""
    samples = [Sample(index, asset, width=64, height=48, size_bytes=1, sha256="0" * 64) for index, asset in enumerate(assets)]
    for sample in samples:
        if sample.asset.failure is not None:
            sample.fail(sample.asset.failure.code, sample.asset.failure.message)
    samples = from_table(to_table(samples))
    for make in (make_perceive_step, make_describe_step):
        step = make(job)
        step.setup()
        samples = step.process(samples)
        step.teardown()
    plan = Plan(job, str(job.output), record.run_id, IMAGE_SIZE)
    prepare_output(plan.store, job)
    if not plan.store.exists(f"{RUNS}/{record.run_id}.json"):
        record.write(plan.store, status="finished")
    for part in stage(plan, samples):
        publish_part(plan.store, part)


@contextmanager
def job_judge(folder: Path) -> Iterator[Judge]:
    """A job file, and the command line's way of changing it."""

    def judge(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        try:
            job = load_job(folder / name, overrides=["write.assets_per_part=7"])
        except JobError:
            return "refused"
        assert job.hash()
        assert Job.model_validate_json(job.model_dump_json()) == job
        return "ok"

    yield _in_time(judge)


def _in_time(judge: Judge) -> Judge:
    def timed(name: str, data: bytes) -> str:
        used = _cpu_s()
        outcome = judge(name, data)
        if outcome == "decode_timeout":  # a busy machine does that, too, but not twice to the same file
            outcome = judge(name, data)
            assert outcome != "decode_timeout", f"no sign of life from the decoder for {SILENT_S:g} s, twice"
            return outcome
        used = _cpu_s() - used  # whoever else works on this machine makes everything take longer, but not this
        assert used < LONGEST_S, f"{outcome}, but it took {used:.0f} s of this machine's processors"
        return outcome

    return timed


def _cpu_s() -> float:
    """Of this process and its children, as long as they live."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children())]
    return sum(some.user + some.system for some in times)


def _sample(path: Path, media_type: Any) -> Sample:
    return Sample(0, Asset(asset_id_of(str(path)), str(path), media_type))


def _code(sample: Sample, allowed: set[str]) -> str:
    failure = sample.failure
    assert failure is not None
    assert failure.code in allowed, f"{failure.code}: {failure.message}"
    assert "Traceback" not in failure.message, failure.message
    assert len(failure.message) > 10
    return failure.code
