"""Files in a bucket are decoded like local ones; one that cannot be had is a failed sample, a bucket that fails stops the job."""

import io
import os
import tempfile

import pytest
from corpora import kill, start_python, wait_for
from PIL import Image
from s3_server import FaultyProxy, once, options_of
from video_files import number_of, numbered, write_video

from datagen import s3
from datagen.decode.copies import _TempFolder
from datagen.decode.reader import VideoReader
from datagen.decode.step import DecodeStep
from datagen.errors import ClusterError, DecodeError, StorageError, StorageUnavailableError
from datagen.job import DecodeOptions
from datagen.records import Asset, Sample


@pytest.fixture
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def decoded(temp):
    """Decode URIs with these S3 options; the samples."""
    steps = []

    def decode(options, *uris, **more):
        step = DecodeStep(DecodeOptions(**more), 64, options)
        steps.append(step)
        return step.process([Sample(index, Asset(str(index), uri)) for index, uri in enumerate(uris)])

    yield decode
    for step in steps:
        step.teardown()
    assert [path for path in temp.iterdir() if path.name.startswith("datagen-media-")] == []


def png(width=40, height=30):
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def put(options, bucket, key, data):
    s3.client(options).put_object(Bucket=bucket, Key=key, Body=data)
    return f"s3://{bucket}/{key}"


def test_good_and_bad_files_of_a_bucket(options, bucket, decoded, tmp_path):
    (tmp_path / "here.png").write_bytes(png())
    uris = [
        put(options, bucket, "a b/ü+%41.png", png()),
        f"s3://{bucket}/gone.png",
        put(options, bucket, "broken.png", b"no picture"),
        put(options, bucket, "empty.png", b""),
        "s3://no-such-bucket/a.png",
        f"s3://{bucket}/../a.png",
        str(tmp_path / "here.png"),
    ]
    samples = decoded(options, *uris)
    codes = [sample.failure and sample.failure.code for sample in samples]
    assert codes == [None, "missing_file", "not_an_image", "empty_file", "missing_bucket", "unsupported_uri", None]
    assert (samples[0].width, samples[0].height) == (40, 30)
    assert samples[0].sha256 is not None
    assert samples[0].pixels.shape == (64, 64, 3)
    assert samples[2].size_bytes == 10


def test_a_file_that_is_too_large_is_not_fetched(options, bucket, decoded, monkeypatch):
    monkeypatch.setattr("datagen.decode.files._ROOM_FOR_METADATA", 1000)
    (sample,) = decoded(options, put(options, bucket, "big.png", bytes(5000)), max_pixels=100)
    assert sample.failure.code == "too_large"
    assert "5000 bytes" in sample.failure.message


def test_a_transfer_that_breaks_off_goes_on(options, bucket, decoded, monkeypatch):
    monkeypatch.setattr("datagen.remote._CHUNK_BYTES", 10_000)
    data = png(300, 200)
    uri = put(options, bucket, "a.png", data)
    with FaultyProxy(options.endpoint_url, once("cut", "reset_before", "cut", "slow_down", methods="GET")) as proxy:
        (sample,) = decoded(options_of(proxy.address), uri)
        assert proxy.done == {"cut": 2, "reset_before": 1, "slow_down": 1}
    assert sample.failure is None
    assert sample.size_bytes == len(data)


def test_a_file_that_is_replaced_in_the_middle_is_read_from_its_beginning(options, bucket, decoded, monkeypatch):
    monkeypatch.setattr("datagen.remote._CHUNK_BYTES", 10_000)
    uri = put(options, bucket, "a.png", png(300, 200))
    new = png(400, 300)
    faults = once("cut", methods="GET")

    def choose(method, path):
        fault = faults(method, path)
        if fault is None and method == "GET":
            put(options, bucket, "a.png", new)
        return fault

    with FaultyProxy(options.endpoint_url, choose) as proxy:
        (sample,) = decoded(options_of(proxy.address), uri)
    assert (sample.width, sample.size_bytes) == (400, len(new))


def test_a_file_that_never_comes_fails_alone_and_a_bucket_that_never_answers_stops_the_job(options, bucket, decoded):
    good, bad = put(options, bucket, "good.png", png()), put(options, bucket, "bad.png", png())
    with FaultyProxy(options.endpoint_url, lambda method, path: "internal_error" if "bad.png" in path else None) as proxy:
        samples = decoded(options_of(proxy.address, patience_s=0.3), bad, good)
        assert [sample.failure and sample.failure.code for sample in samples] == ["unavailable", None]
        proxy.choose = lambda method, path: "reset_before"
        with pytest.raises(StorageUnavailableError):
            decoded(options_of(proxy.address, patience_s=0.3), good)


def test_expired_credentials_stop_the_job_instead_of_failing_every_file(options, decoded, bucket, monkeypatch):
    def expired(client):
        raise StorageError("expired", code="expired_credentials")

    monkeypatch.setattr("datagen.remote.s3.patiently", lambda options, where, request, patience_s=None: expired(None))
    with pytest.raises(StorageError) as caught:
        decoded(options, f"s3://{bucket}/a.png")
    assert caught.value.code == "expired_credentials"


def test_a_video_is_there_until_the_next_one_is_opened(options, bucket, temp):
    data = write_video(temp / "film.mp4", map(numbered, range(12)), fps=4).read_bytes()
    uris = [put(options, bucket, f"{name}.mp4", data) for name in "ab"]
    reader = VideoReader(DecodeOptions(max_clip_s=1.0), 64, options)

    def fetched():
        return [path for folder in temp.glob("datagen-media-*") for path in folder.iterdir() if path.name != "lock"]

    try:
        for uri in uris:
            video = reader.open_video(uri)
            assert (video.info.num_frames, video.size_bytes) == (12, len(data))
            assert len(fetched()) == 1
            span = video.span(1.0, 1)
            assert [number_of(frame.pixels) for frame in video.frames(span)] == [4, 5, 6, 7]
        with pytest.raises(DecodeError) as caught:
            reader.open_video(f"s3://{bucket}/gone.mp4")
        assert caught.value.code == "missing_file"
        assert fetched() == []
    finally:
        reader.close()
    assert list(temp.glob("datagen-media-*")) == []
    small = VideoReader(DecodeOptions(max_file_gib=1e-6), 64, options)
    with pytest.raises(DecodeError) as caught:
        small.open_video(uris[0])
    assert caught.value.code == "too_large"
    small.close()


def test_a_full_disk_is_the_machines_trouble(options, bucket, decoded, monkeypatch):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datagen.decode.copies.download", no_room)
    with pytest.raises(ClusterError, match="TMPDIR"):
        decoded(options, f"s3://{bucket}/a.png")


def test_what_a_killed_worker_leaves_is_removed_by_the_next(temp):
    code = """
import sys, tempfile, time
tempfile.tempdir = sys.argv[1]
from datagen.decode.copies import _TempFolder
folder = _TempFolder()
(folder.path / "half").write_bytes(b"x")
print("ready", flush=True)
time.sleep(600)
"""
    process, alive = start_python(code, temp), _TempFolder()
    wait_for(process, "ready")
    kill(process)
    assert len(os.listdir(temp)) == 2
    another = _TempFolder()
    assert sorted(temp.iterdir()) == sorted([alive.path, another.path])
    for folder in (alive, another):
        folder.remove()
    assert os.listdir(temp) == []
