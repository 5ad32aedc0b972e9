"""What a decoding child has of its parent, and how much memory a file may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from bad_media import encoded, quadrants
from PIL import Image
from video_files import write_video

from datagen.decode.child import DecoderProcess
from datagen.decode.image import decode_image
from datagen.decode.reader import VideoReader
from datagen.decode.signatures import webp_pixels
from datagen.errors import DecodeError
from datagen.job import DecodeOptions

SMALL = DecodeOptions(memory_gib=0.1)
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret-value",
    "AWS_PROFILE": "somebody",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
    "GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json",
    "HF_TOKEN": "hf_secret-value",
    "RAY_AUTH_TOKEN": "ray-secret-value",
    "HTTPS_PROXY": "http://user:proxy-secret@proxy",
    "DATABASE_URL": "postgres://user:secret@host",
    "MY_OWN": "anything-secret",
    "DATAGEN_ENGINE_MARK": "mark",
}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Process]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    decoder = DecoderProcess(DecodeOptions(), 32)
    decoder.start()
    yield psutil.Process(decoder.pid)
    decoder.close()


def test_a_child_has_none_of_its_parents_variables_but_a_few(child: psutil.Process) -> None:
    seen = child.environ()
    assert not SECRETS.keys() & seen.keys()
    assert not [value for value in seen.values() if "secret" in value]
    assert seen["PATH"] == os.environ["PATH"]
    assert seen["OMP_NUM_THREADS"] == "1"


def test_a_child_has_no_file_of_its_parents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with (tmp_path / "secret").open() as file:
        os.set_inheritable(file.fileno(), True)
        decoder = DecoderProcess(DecodeOptions(), 32)
        decoder.start()
        try:
            opened = [os.readlink(entry) for entry in Path(f"/proc/{decoder.pid}/fd").iterdir()]
        finally:
            decoder.close()
    assert not [name for name in opened if not name.startswith("pipe:") and "deleted" not in name]


def test_a_child_has_limits_and_dumps_no_memory(child: psutil.Process) -> None:
    limits = {line[:25].strip(): line[26:].split()[:2] for line in Path(f"/proc/{child.pid}/limits").read_text().splitlines()[1:]}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max file size"] == [str(64 << 20)] * 2
    most = int(limits["Max address space"][0])
    assert 4 << 30 < most < 6 << 30
    assert limits["Max address space"][1] == str(most)


def large(folder: Path, name: str, **options: object) -> str:
    path = folder / name
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).resize((6000, 6000)).save(path, **options)
    return str(path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {"compress_level": 1}),
        ("a.jpg", {"progressive": True}),
        ("a.webp", {"quality": 20, "method": 0}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.bmp", {}),
    ],
)
def test_a_picture_that_wants_more_memory_than_it_may_is_a_failed_row(name: str, options: dict, tmp_path: Path) -> None:
    path = large(tmp_path, name, **options)
    decoder = DecoderProcess(SMALL, 32)
    try:
        outcome = decoder.decode(path, path)
        assert outcome.error is not None
        assert outcome.error.code == "out_of_memory"
        assert "decode.memory_gib (0.1 GiB)" in outcome.error.message
        pid = decoder.pid
        (tmp_path / "b.png").write_bytes(encoded(quadrants(), "PNG"))
        assert decoder.decode(str(tmp_path / "b.png"), "b").decoded is not None
        assert decoder.pid == pid is not None  # nothing had to die for it
    finally:
        decoder.close()


def test_a_damaged_picture_is_damaged_also_where_memory_is_short(tmp_path: Path) -> None:
    data = encoded(quadrants(), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    decoder = DecoderProcess(SMALL, 32)
    try:
        outcome = decoder.decode(str(tmp_path / "cut.jpg"), "cut")
    finally:
        decoder.close()
    assert outcome.error is not None
    assert outcome.error.code == "truncated"


def _read_through(reader: VideoReader, path: str) -> None:
    opened = reader.open_video(path)
    span = opened.span(0.0, 0)
    assert span is not None
    list(opened.frames(span))


def test_a_video_that_wants_more_memory_than_it_may_is_a_failed_row(tmp_path: Path) -> None:
    path = write_video(tmp_path / "large.mp4", [np.zeros((4096, 4096, 3), np.uint8)] * 3)
    reader = VideoReader(DecodeOptions(memory_gib=0.2), 32)
    try:
        with pytest.raises(DecodeError) as failed:
            _read_through(reader, str(path))
    finally:
        reader.close()
    assert failed.value.code == "out_of_memory"
    assert "decode.memory_gib" in failed.value.message


def test_floats_and_integers_of_any_height_are_stretched_over_their_whole_range() -> None:
    values = np.linspace(-3.0, 7.0, 200 * 10, dtype=np.float32).reshape(200, 10)
    values[17, 3] = np.nan
    data = BytesIO()
    Image.fromarray(values).save(data, "TIFF")
    decoded = decode_image(data.getvalue(), DecodeOptions(), 200)
    expected = np.round((np.nan_to_num(values.astype(np.float64), nan=-3.0) + 3) / 10 * 255)
    rows = decoded.pixels[:, 100, 0].astype(int)
    assert np.abs(rows - expected[:, 5]).max() <= 2
    assert rows[0] <= 1
    assert rows[-1] >= 254


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"lossless": True, "exif": b"Exif\0\0"}])
def test_the_size_that_a_webp_announces(options: dict, tmp_path: Path) -> None:
    Image.new("RGB", (37, 51)).save(tmp_path / "a.webp", **options)
    assert webp_pixels((tmp_path / "a.webp").read_bytes()) == 37 * 51
    assert webp_pixels(b"RIFF") == webp_pixels(b"") == 0
