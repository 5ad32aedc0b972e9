"""Videos through the reading child: containers, codecs, times, orientation, colours, and damage of every kind."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from bad_media import BLUE, GREEN, RED, WHITE, quadrants
from video_files import ENCODERS, SIZE, clip, frames_of, numbered, numbers, write_audio, write_video

from datagen.decode.reader import VideoReader
from datagen.decode.video import VideoFile, probe_video
from datagen.errors import DecodeError
from datagen.job import DecodeOptions
from datagen.sources.uris import media_type_of
from datagen.spans import DecodedFrame

# Every pair that the container's writer accepts; QuickTime has no tag for VP9 and AV1, and WebM is for those two alone.
PAIRS = [
    *itertools.product(["mp4", "mkv"], ENCODERS),
    *itertools.product(["mov"], ["libx264", "libx265"]),
    *itertools.product(["webm"], ["libvpx-vp9", "libsvtav1"]),
]
NAMES = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9", "libsvtav1": "av1"}


@pytest.fixture(scope="module")
def reader():
    """One child for most tests: it has to survive all that is given to it."""
    reader = VideoReader(DecodeOptions(), SIZE)
    yield reader
    reader.close()


def read(reader: VideoReader, path: Path, start_s: float = 0.0, end_s: float | None = None) -> list[DecodedFrame]:
    return list(reader.open(str(path), str(path), start_s, end_s))


def code_of(reader: VideoReader, path: Path) -> str:
    """The code that both a probe and a read end with."""
    outcome = reader.probe(str(path), "x")
    assert outcome.info is None
    assert len(outcome.error.message) > 20
    with pytest.raises(DecodeError) as caught:
        read(reader, path)
    assert caught.value.code == outcome.error.code
    return outcome.error.code


# --- what can be read -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("container", "codec"), PAIRS)
def test_containers_and_codecs(reader, tmp_path, container, codec):
    path = clip(tmp_path, 14, f"clip.{container}", codec, gop=5)
    outcome = reader.probe(str(path), "clip")
    info = outcome.info
    assert (info.width, info.height, info.num_frames, info.codec, info.rotation) == (64, 48, 14, NAMES[codec], 0)
    assert (info.fps, info.duration_s, info.truncated) == (pytest.approx(10, abs=0.01), pytest.approx(1.4, abs=0.002), False)
    assert outcome.size_bytes == path.stat().st_size
    assert outcome.sha256 == subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    stream = reader.open(str(path), "clip")
    found = list(stream)
    assert [frame.frame_index for frame in found] == numbers(found) == list(range(14))
    assert [frame.timestamp_s for frame in found] == pytest.approx([index / 10 for index in range(14)], abs=0.001)
    assert (stream.truncated, stream.corrupt_packets) == (False, 0)
    # From a frame between two key frames, as after a crash.
    late = read(reader, path, 0.8, 1.2)
    assert [frame.frame_index for frame in late] == numbers(late) == [8, 9, 10, 11]


def test_the_writers_refuse_what_is_not_tested(tmp_path):
    left = set(itertools.product(["mp4", "mov", "mkv", "webm"], ENCODERS)) - set(PAIRS)
    for container, codec in left:
        with pytest.raises((ValueError, av.FFmpegError)):
            clip(tmp_path, 1, f"clip.{container}", codec)
    assert len(left) == 4


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("mp4", "libx265"), ("webm", "libvpx-vp9")])
def test_true_times_of_a_variable_frame_rate(reader, tmp_path, container, codec):
    times = [0, 40, 80, 500, 540, 1700, 1701, 1733, 2900]
    path = clip(tmp_path, len(times), f"clip.{container}", codec, times_ms=times)
    found = read(reader, path)
    assert [frame.timestamp_s for frame in found] == pytest.approx([time / 1000 for time in times], abs=0.0011)
    assert numbers(found) == list(range(len(times)))
    # What is on the screen at 0, 1, 2 s: the frames of 0, 540 and 1733 ms.
    assert numbers(frames_of(path, fps=1)) == [0, 4, 7]
    # The instants count from the start of the clip: 0.5, 1.5, 2.5 s; the frame shown at 0.5 s appears exactly then.
    assert numbers(frames_of(path, 0.5, fps=1)) == [3, 4, 7]
    assert numbers(frames_of(path, 0.5, 1.7, fps=100)) == [3, 4]


@pytest.mark.parametrize(("fps", "expected"), [(5, range(0, 24, 2)), (1, [0, 10, 20]), (3, [0, 3, 6, 10, 13, 16, 20, 23]), (30, range(24))])
def test_sampling(tmp_path, fps, expected):
    found = frames_of(clip(tmp_path), fps=fps)
    assert numbers(found) == [frame.frame_index for frame in found] == list(expected)


TURNS = {
    (0, False): (RED, GREEN, BLUE, WHITE),
    (90, False): (BLUE, RED, WHITE, GREEN),
    (180, False): (WHITE, BLUE, GREEN, RED),
    (270, False): (GREEN, WHITE, RED, BLUE),
    (0, True): (GREEN, RED, WHITE, BLUE),
    (90, True): (RED, BLUE, GREEN, WHITE),
    (180, True): (BLUE, WHITE, RED, GREEN),
    (270, True): (WHITE, GREEN, BLUE, RED),
}


# Matroska's projection has no mirror.
@pytest.mark.parametrize(
    ("container", "codec", "turn"),
    [*((*kind, turn) for kind in (("mp4", "libx264"), ("mov", "libx265")) for turn in TURNS)]
    + [("mkv", "libvpx-vp9", turn) for turn in TURNS if not turn[1]],
)
def test_frames_stand_upright(reader, tmp_path, container, codec, turn):
    path = write_video(tmp_path / f"turned.{container}", [np.asarray(quadrants())] * 2, codec, turn=turn)
    info = reader.probe(str(path), "turned").info
    assert (info.width, info.height) == ((48, 64) if turn[0] % 180 else (64, 48))
    # Mirrored after a turn is the same as turned the other way after mirroring, which is how it is told.
    assert info.rotation == (-turn[0] % 360 if turn[1] else turn[0])
    pixels = read(reader, path)[0].pixels
    near, far = SIZE // 4, 3 * SIZE // 4
    np.testing.assert_allclose(pixels[[near, near, far, far], [near, far, near, far]].astype(int), TURNS[turn], atol=14)


@pytest.mark.parametrize(
    ("codec", "container", "pix_fmt", "size"),
    [
        ("libx264", "mp4", "yuv444p", (101, 57)),
        ("libx265", "mkv", "yuv444p", (101, 57)),
        ("libvpx-vp9", "webm", "yuv420p", (101, 57)),
        ("libsvtav1", "mp4", "yuv420p", (101, 77)),
        ("libx264", "mp4", "yuv420p", (106, 58)),
        ("libx264", "mov", "yuv420p", (600, 34)),
        ("libx264", "mkv", "yuv420p10le", (64, 48)),
        ("libx264", "mkv", "gray", (64, 48)),
    ],
)
def test_odd_sizes_and_pixels(reader, tmp_path, codec, container, pix_fmt, size):
    path = write_video(tmp_path / f"odd.{container}", [numbered(index, *size) for index in range(6)], codec, pix_fmt=pix_fmt)
    info = reader.probe(str(path), "odd").info
    found = read(reader, path)
    assert (info.width, info.height, info.num_frames) == (*size, 6)
    assert numbers(found) == list(range(6))
    assert found[0].pixels.shape == (SIZE, SIZE, 3)


def test_a_4k_clip(reader, tmp_path):
    path = write_video(tmp_path / "large.mp4", [numbered(index, 3840, 2160) for index in range(3)])
    info = reader.probe(str(path), "large").info
    assert (info.width, info.height, info.num_frames) == (3840, 2160, 3)
    assert numbers(read(reader, path)) == [0, 1, 2]


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_by_the_streams_own_matrix_and_range(tmp_path, matrix, full_range):
    path = tmp_path / "colours.mp4"
    colour = (200, 60, 30)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
        spaces = {"bt709": 1, "smpte170m": 6}
        wanted = {"dst_colorspace": spaces[matrix], "dst_color_range": 2 if full_range else 1}
        frame = frame.reformat(format="yuv444p", **wanted)
        stream.codec_context.colorspace, stream.codec_context.color_range = spaces[matrix], wanted["dst_color_range"]
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    [found] = frames_of(path)
    np.testing.assert_allclose(found.pixels.mean(axis=(0, 1)), colour, atol=4)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("mp4", "libx265"), ("mov", "libx265")])
def test_frames_that_are_stored_out_of_order(reader, tmp_path, container, codec):
    path = clip(tmp_path, 25, f"clip.{container}", codec, gop=9, b_frames=3, options={"preset": "veryfast", "b-adapt": "0"})
    with av.open(str(path)) as file:
        stored = [packet.pts for packet in file.demux(video=0) if packet.size]
    assert stored != sorted(stored)
    found = read(reader, path)
    assert numbers(found) == [frame.frame_index for frame in found] == list(range(25))
    assert [frame.timestamp_s for frame in found] == pytest.approx([index / 10 for index in range(25)], abs=0.001)
    assert numbers(read(reader, path, 1.3, 2.1)) == list(range(13, 21))


def test_times_count_from_the_first_frame(reader, tmp_path):
    path = clip(tmp_path, 4, "late.mkv", times_ms=[7000, 7100, 7200, 7300])
    assert [frame.timestamp_s for frame in read(reader, path)] == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.001)
    assert reader.probe(str(path), "late").info.duration_s == pytest.approx(0.4, abs=0.002)


def test_a_stream_that_changes_its_size(reader, tmp_path):
    """As two transport streams one after the other; width and height are those of the first frame."""
    first = clip(tmp_path, 5, "first.ts")
    second = write_video(tmp_path / "second.ts", [numbered(index, 128, 96) for index in range(5, 10)], times_ms=range(500, 1000, 100))
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    info = reader.probe(str(path), "both").info
    stream = reader.open(str(path), "both")
    found = list(stream)
    assert (info.width, info.height) == (64, 48)
    # A packet at the seam is flagged as damaged, since its counter jumps; it is whole.
    assert numbers(found) == list(range(10))
    assert stream.corrupt_packets == 0
    assert {frame.pixels.shape for frame in found} == {(SIZE, SIZE, 3)}


def test_a_cover_picture_is_no_video(reader, tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 48, "yuvj420p", Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16000, 0
        picture = av.VideoFrame.from_ndarray(numbered(3), format="rgb24").reformat(format="yuvj420p")
        for stream, frame in ((cover, picture), (sound, silence)):
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match=r"it has no video stream, but a cover picture, audio$") as caught:
        reader.open_video(str(tmp_path / "song.mp4"))
    assert caught.value.code == "no_video_stream"


# --- what cannot ------------------------------------------------------------------------------------------------------------------


def without_frames(path: Path) -> Path:
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream("libvpx-vp9" if path.suffix == ".webm" else "libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def test_files_that_hold_no_video(reader, tmp_path):
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    other = clip(tmp_path, 2)
    expected = {
        file("empty.mp4", b""): "empty_file",
        file("text.mp4", b"a letter, not a film\n" * 50): "not_a_video",
        file("bitmap.mp4", b"BM" + bytes(400)): "not_a_video",
        # Names of other files: never opened.
        file("list.mp4", f"ffconcat version 1.0\nfile {other.name}\n".encode()): "not_a_video",
        file("list.mov", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other.name}\n#EXT-X-ENDLIST\n".encode()): "not_a_video",
        file("junk.mp4", b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\2junk" * 50): "corrupt",
        without_frames(tmp_path / "none.mp4"): "no_frames",
        without_frames(tmp_path / "none.mkv"): "no_frames",
        without_frames(tmp_path / "none.webm"): "no_frames",
        write_audio(tmp_path / "sound.mp4"): "no_video_stream",
        write_audio(tmp_path / "sound.mkv"): "no_video_stream",
        tmp_path / "gone.mp4": "missing_file",
        tmp_path: "unreadable",
    }
    reader.start()
    pid = reader.pid
    assert {path.name: code_of(reader, path) for path in expected} == {path.name: code for path, code in expected.items()}
    assert reader.pid == pid


def test_frames_of_too_many_pixels(tmp_path):
    path = clip(tmp_path, 2)
    assert probe_video(str(path), DecodeOptions(max_pixels=64 * 48)).width == 64
    with pytest.raises(DecodeError, match=r"64 x 48, more than decode\.max_pixels") as caught:
        probe_video(str(path), DecodeOptions(max_pixels=64 * 48 - 1))
    assert caught.value.code == "bomb"


def noisy(index: int) -> np.ndarray:
    """A numbered frame with a strip that no codec compresses away, so that bytes are spread evenly over the frames."""
    frame = numbered(index, 96, 64)
    frame[56:] = np.random.default_rng(index).integers(0, 256, (8, 96, 3))
    return frame


@pytest.mark.parametrize("share", [0.3, 0.75])
@pytest.mark.parametrize(
    ("name", "codec", "muxer"),
    [
        ("a.mp4", "libx264", {"movflags": "faststart"}),
        ("a.mov", "libx265", {"movflags": "faststart"}),
        ("pieces.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", "libx264", {}),
        ("a.mkv", "libx265", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.webm", "libsvtav1", {}),
    ],
)
def test_of_a_cut_file_the_readable_part_is_given_and_flagged(reader, tmp_path, name, codec, muxer, share):
    path = write_video(tmp_path / name, map(noisy, range(30)), codec, gop=8, muxer=muxer)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    info = reader.probe(str(path), name).info
    stream = reader.open(str(path), name)
    found = list(stream)
    assert info.truncated
    assert stream.truncated
    assert abs(len(found) - 30 * share) <= 5
    assert numbers(found) == list(range(len(found)))
    assert info.num_frames == len(found)
    assert info.duration_s == pytest.approx(len(found) / 10, abs=0.11)


def test_a_cut_file_without_its_tables_is_truncated(reader, tmp_path):
    path = clip(tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    assert code_of(reader, path) == "truncated"


def damaged(path: Path, byte: int) -> Path:
    """600 bytes in the middle overwritten."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes([byte]) * 600
    path.write_bytes(data)
    return path


def test_a_damaged_frame_is_counted_and_the_others_are_given(reader, tmp_path):
    path = damaged(write_video(tmp_path / "a.mp4", map(noisy, range(24)), gop=8), 0)
    stream = reader.open(str(path), "a")
    found = list(stream)
    right = [frame.frame_index == number for frame, number in zip(found, numbers(found), strict=True)]
    assert [frame.frame_index for frame in found] == list(range(24))
    assert right.count(False) <= 8  # to the next key frame at most
    assert stream.corrupt_packets >= 1
    assert not stream.truncated
    # Counted per read: a part without the damage has none.
    early = reader.open(str(path), "a", 0, 0.8)
    assert numbers(list(early)) == list(range(8))
    assert early.corrupt_packets == 0


# --- containers as they are named, and what lies behind their end -----------------------------------------------------------------

NAMED = {
    **{
        f"a{suffix}": "libx264"
        for suffix in (".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".avi", ".flv", ".ts", ".m2ts", ".mts")
    },
    **{"a.mj2": "mjpeg", "a.wmv": "wmv2", "a.asf": "wmv2", "a.mpg": "mpeg2video", "a.vob": "mpeg2video", "a.mxf": "mpeg2video"},
    **{"a.webm": "libvpx-vp9", "a.ivf": "libvpx-vp9", "a.gif": "gif", "a.apng": "apng", "a.y4m": "rawvideo"},
}
MUXERS = {
    ".m4v": "mp4",
    ".qt": "mov",
    ".f4v": "mov",
    ".mj2": "mov",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
    ".y4m": "yuv4mpegpipe",
    ".asf": "asf",
}
# No container, but pictures or packets one behind the other: what follows may be more of them.
OPEN_ENDED = {"a.ivf", "a.y4m"}


@pytest.mark.parametrize("name", NAMED)
def test_every_container_is_listed_and_read_and_what_follows_its_end_is_no_truncation(reader, tmp_path, name):
    path = tmp_path / name
    codec = NAMED[name]
    pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8", "apng": "rgb24"}.get(codec, "yuv420p")
    mpeg = {"fps": 25, "gop": 12} if codec == "mpeg2video" else {}
    muxer = {"mpegts_m2ts_mode": "1"} if name in ("a.m2ts", "a.mts") else {}
    write_video(path, map(numbered, range(14)), codec, pix_fmt=pix_fmt, muxer=muxer, container_format=MUXERS.get(path.suffix), **mpeg)

    assert media_type_of(str(path), "video") == "video"
    whole = path.read_bytes()
    for tail in (b"", b"tail", bytes(1000), b"not a box of any kind. " * 200):
        if tail and name in OPEN_ENDED:
            continue
        path.write_bytes(whole + tail)
        info = reader.probe(str(path), name).info
        found = read(reader, path)
        assert (info.num_frames, info.truncated) == (14, False), tail[:4]
        assert [frame.frame_index for frame in found] == numbers(found) == list(range(14))


def test_an_animation_is_a_video_only_where_videos_alone_are_asked_for():
    for name in ("a.gif", "A.GIF", "b.apng"):
        assert [media_type_of(name, media) for media in ("video", "image", "any")] == ["video", "image", "image"]
    assert [media_type_of(name, "video") for name in ("a.png", "a.webp", "a.h264", "notes.txt")] == ["image", "image", "other", "other"]


# --- transparency -----------------------------------------------------------------------------------------------------------------


def half_clear(index: int) -> np.ndarray:
    """(48, 64, 4) uint8 RGBA: red on the left; on the right magenta that nobody is to see; between them half of a black."""
    frame = np.zeros((48, 64, 4), np.uint8)
    frame[:, :24] = (255, 0, 0, 255)
    frame[:, 24:40] = (0, 0, 0, 128)
    frame[:, 40:] = (255, 0, 255, 0)
    frame[index : index + 1, :24, :3] = 0
    return frame


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "middle"),
    [
        ("a.mov", "qtrle", "argb", 127),
        ("a.mov", "prores_ks", "yuva444p10le", 127),
        ("a.mov", "png", "rgba", 127),
        ("a.avi", "ffv1", "yuva444p", 127),
        ("a.webm", "libvpx", "yuva420p", 127),
        ("a.webm", "libvpx-vp9", "yuva420p", 127),
        ("a.mkv", "libvpx-vp9", "yuva420p", 127),
        ("a.apng", "apng", "rgba", 127),
        ("a.gif", "gif", "bgra", None),
    ],
)
def test_transparency_is_laid_over_white_as_in_pictures(reader, tmp_path, name, codec, pix_fmt, middle):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"auto-alt-ref": "0"} if codec == "libvpx" else ENCODERS.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8" if codec == "gif" else pix_fmt
        if codec.startswith("libvpx"):
            stream.metadata["alpha_mode"] = "1"
        for index in range(3):
            if codec == "gif":
                frame = palette_frame(half_clear(index))
            else:
                frame = av.VideoFrame.from_ndarray(half_clear(index), format="rgba").reformat(format=pix_fmt)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    found = read(reader, path)
    assert len(found) == 3
    for frame in found:
        left, right = frame.pixels[40, 8].astype(int), frame.pixels[40, 56].astype(int)
        np.testing.assert_allclose(left, (255, 0, 0), atol=12)
        np.testing.assert_allclose(right, (255, 255, 255), atol=4)
        if middle is not None:
            np.testing.assert_allclose(frame.pixels[40, 32].astype(int), [middle] * 3, atol=6)
    # A shot is looked for in what is seen, too.
    with VideoFile(str(path), DecodeOptions()) as video:
        small = video.small(next(video.frames(0)), 32)
    np.testing.assert_allclose(small[20, 28].astype(int), (255, 255, 255), atol=4)
    np.testing.assert_allclose(small[20, 4].astype(int), (0, 0, 255), atol=12)


def palette_frame(pixels: np.ndarray) -> av.VideoFrame:
    """The same in a palette, where a colour is wholly clear or not at all."""
    colours = [(255, 0, 0, 255), (0, 0, 0, 255), (255, 0, 255, 0)]
    indices = np.select([pixels[..., 0] == 0, pixels[..., 2] == 255], [1, 2], 0).astype(np.uint8)
    palette = np.zeros((256, 4), np.uint8)
    palette[:3] = [(a, r, g, b) for r, g, b, a in colours]
    palette[3:, 0] = 255
    return av.VideoFrame.from_ndarray((indices, palette), format="pal8")
