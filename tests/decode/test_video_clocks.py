"""Clocks as files really have them: joined recordings, equal and missing times, streams that begin in the middle, pictures never shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
from video_files import SIZE, clip, number_of, numbered, numbers, write_video

from datagen.decode.reader import VideoReader
from datagen.decode.shots import clips_of
from datagen.decode.video import VideoFile
from datagen.job import DecodeOptions
from datagen.spans import ClipSpan

H264 = {"gop": 8, "b_frames": 2, "options": {"preset": "veryfast"}}
MEDIA = Path(__file__).parent / "media"
MPEG2 = {"codec": "mpeg2video", "fps": 25, "gop": 8, "b_frames": 2}


@pytest.fixture(scope="module")
def reader() -> Iterator[VideoReader]:
    reader = VideoReader(DecodeOptions(), SIZE)
    yield reader
    reader.close()


def part(folder: Path, name: str, shown: range, offset_s: float = 0.0, **options) -> bytes:
    """A recording whose frames show the numbers `shown`; its clock begins at its muxer's start and `offset_s`."""
    path = write_video(folder / name, map(numbered, shown), muxer={"output_ts_offset": str(offset_s)}, **options)
    return path.read_bytes()


def shown_of(path: Path) -> dict[int, int]:
    """Frame number -> the number that the frame shows, of all that decode; also each part of three frames by itself, the last first."""
    with VideoFile(str(path), DecodeOptions()) as video:
        whole = {shown.frame_index: number_of(video.frame(shown, SIZE).pixels) for shown in video.sampled(0)}
        for first in range(len(video.timetable.times) - 1, -1, -3):
            some = itertools.islice(video.frames_from(first), 3)
            found = {shown.frame_index: number_of(video.frame(shown, SIZE).pixels) for shown in some}
            assert found == {index: whole[index] for index in sorted(whole) if index >= first and index <= max(found, default=-1)}
        return whole


# Where the later parts' clocks begin, seconds: all anew; one ahead by minutes; behind by hours, which a demuxer takes for a day ahead.
@pytest.mark.parametrize("offsets", [(0, 0, 0), (0, 500, 3), (20_000, 7, 95_000)])
@pytest.mark.parametrize(("suffix", "options"), [("ts", H264), ("mpg", MPEG2)])
def test_recordings_that_were_joined_follow_one_another(reader, tmp_path, suffix, options, offsets):
    ranges = [range(20), range(20, 33), range(33, 38)]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part(tmp_path, f"{i}.{suffix}", r, offsets[i], **options) for i, r in enumerate(ranges)))

    info = reader.probe(str(path), "joined").info
    fps = options.get("fps", 10)
    assert (info.num_frames, info.truncated) == (38, False)
    assert info.duration_s == pytest.approx(38 / fps, abs=0.001)
    stream = reader.open(str(path), "joined")
    found = list(stream)
    assert [frame.frame_index for frame in found] == numbers(found) == list(range(38))
    assert [frame.timestamp_s for frame in found] == pytest.approx([index / fps for index in range(38)], abs=0.001)
    assert (stream.missing_frames, stream.flags) == (0, ("clock_restart",))
    assert shown_of(path) == {index: index for index in range(38)}
    # What is said of a part: only the second has no new clock in it.
    spans = [(0.0, 20.5 / fps), (21 / fps, 30 / fps), (32.5 / fps, 38 / fps)]
    flags = []
    for span in spans:
        stream = reader.open(str(path), "joined", *span)
        assert numbers(stream)
        flags.append(stream.flags)
    assert flags == [("clock_restart",), (), ("clock_restart",)]
    assert reader.frames_at(str(path), "joined", [20 / fps, 37.5 / fps]) == [20, 37]


def test_a_long_still_picture_is_no_new_clock(reader, tmp_path):
    times = [0, 100, 200, 30_200, 30_300, 99_000]
    for name in ("still.mp4", "still.mkv"):
        path = clip(tmp_path, len(times), name, times_ms=times)
        stream = reader.open(str(path), name)
        assert [frame.timestamp_s for frame in stream] == pytest.approx([time / 1000 for time in times], abs=0.001)
        assert stream.flags == ()


@pytest.mark.parametrize("b_frames", [0, 2])
def test_frames_of_one_time_are_all_there(reader, tmp_path, b_frames):
    times = [0, 100, 200, 200, 300, 300, 300, 400, 500, 600, 600, 700]
    path = clip(tmp_path, len(times), "equal.mkv", times_ms=times, b_frames=b_frames, options={"preset": "veryfast"})
    stream = reader.open(str(path), "equal")
    found = list(stream)
    assert [frame.frame_index for frame in found] == list(range(12))
    assert sorted(numbers(found)) == list(range(12))
    assert [frame.timestamp_s for frame in found] == pytest.approx([time / 1000 for time in times], abs=0.001)
    assert stream.missing_frames == 0
    # Of several at one time the last is what stays on the screen.
    assert reader.frames_at(str(path), "equal", [0.2, 0.25, 0.3]) == [3, 3, 6]


def packets_of(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def test_a_stream_that_begins_within_a_group_says_what_is_missing(reader, tmp_path):
    whole = clip(tmp_path, 24, "whole.ts", gop=8)
    data, packets = whole.read_bytes(), packets_of(whole)
    path = tmp_path / "late.ts"
    # The tables of the stream, then everything from its fourth frame on: 3 to 7 cannot be decoded without frame 0.
    path.write_bytes(data[: packets[0].pos] + data[packets[3].pos :])
    info = reader.probe(str(path), "late").info
    assert (info.num_frames, info.duration_s) == (21, pytest.approx(2.1, abs=0.001))
    stream = reader.open(str(path), "late")
    found = list(stream)
    assert [(frame.frame_index, number) for frame, number in zip(found, numbers(found), strict=True)] == [(i, i + 3) for i in range(5, 21)]
    assert found[0].timestamp_s == pytest.approx(0.5, abs=0.001)
    assert stream.missing_frames == 5
    later = reader.open(str(path), "late", 0.6, 1.0)
    assert len(list(later)) == 4
    assert later.missing_frames == 0


def test_missing_frames_are_counted_once_though_the_decoder_dies(tmp_path):
    import os

    whole = clip(tmp_path, 24, "whole.ts", gop=8)
    data, packets = whole.read_bytes(), packets_of(whole)
    path = tmp_path / "late.ts"
    path.write_bytes(data[: packets[0].pos] + data[packets[3].pos :])
    reader = VideoReader(DecodeOptions(prefetch_frames=1), SIZE)
    stream = reader.open(str(path), "late")
    next(stream)
    os.kill(reader.pid, 9)
    assert len(list(stream)) == 15
    reader.close()
    assert stream.missing_frames == 5


def remux(source: Path, target: Path, change, **options) -> Path:
    """The packets of a file put into another one, each as `change(number, packet)` left it."""
    with av.open(str(source)) as container, av.open(str(target), "w", **options) as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size:
                change(number, packet)
                packet.stream = stream
                out.mux(packet)
    return target


def test_a_first_time_below_zero(reader, tmp_path):
    def earlier(_: int, packet: av.Packet) -> None:
        shift = round(Fraction(7, 2) / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift

    path = remux(clip(tmp_path, 14), tmp_path / "below.mkv", earlier, options={"avoid_negative_ts": "disabled"})
    stream = reader.open(str(path), "below")
    found = list(stream)
    assert [frame.frame_index for frame in found] == numbers(found) == list(range(14))
    assert found[-1].timestamp_s == pytest.approx(1.3, abs=0.002)


def test_a_clock_of_33_bits_that_turns_over(reader, tmp_path):
    path = tmp_path / "turn.ts"
    path.write_bytes(part(tmp_path, "part.ts", range(20), 2**33 / 90_000 - 2.2))
    found = list(stream := reader.open(str(path), "turn"))
    assert [frame.frame_index for frame in found] == numbers(found) == list(range(20))
    assert [frame.timestamp_s for frame in found] == pytest.approx([index / 10 for index in range(20)], abs=0.001)
    assert stream.flags == ()


@pytest.mark.parametrize(("codec", "shown_bit"), [("libvpx", 0x10), ("libvpx-vp9", 0x02)])
def test_pictures_that_are_never_shown_are_no_frames(reader, tmp_path, codec, shown_bit):
    """Others are predicted from them; here each key frame is there twice, the first time hidden, at a time of its own."""
    source, path = clip(tmp_path, 24, "plain.webm", codec, gop=8), tmp_path / "hidden.webm"
    # Left alone, the muxer would put a hidden picture of VP9 and the next into one packet.
    with av.open(str(source)) as container, av.open(str(path), "w", options={"fflags": "-autobsf"}) as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size and packet.is_keyframe:
                data = bytearray(bytes(packet))
                data[0] ^= shown_bit
                hidden = av.Packet(bytes(data))
                hidden.pts = hidden.dts = packet.pts - 20
                hidden.time_base, hidden.stream = packet.time_base, stream
                out.mux(hidden)
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    assert len(packets_of(path)) == 27
    info = reader.probe(str(path), "hidden").info
    stream = reader.open(str(path), "hidden")
    found = list(stream)
    assert info.num_frames == 24
    assert [frame.frame_index for frame in found] == numbers(found) == list(range(24))
    assert stream.missing_frames == 0
    assert shown_of(path) == {index: index for index in range(24)}


@pytest.mark.parametrize(("codec", "fps"), [("mpeg4", 10), ("libx264", 10), ("mpeg2video", 25)])
def test_reordered_frames_where_only_their_order_is_stored(tmp_path, codec, fps):
    """Key frames after reordered ones: where they are shown is known only once what is before them was decoded."""
    options = {"preset": "veryfast", "x264-params": "open-gop=1"} if codec == "libx264" else {"q": "2"}
    path = clip(tmp_path, 40, "order.avi", codec, gop=9, b_frames=2, fps=fps, options=options)
    assert shown_of(path) == {index: index for index in range(40)}


def test_a_seam_is_not_damage_and_a_hole_is(reader, tmp_path):
    whole = clip(tmp_path, 24, "whole.ts", gop=8)
    data, packets = whole.read_bytes(), packets_of(whole)
    path = tmp_path / "hole.ts"
    path.write_bytes(data[: packets[10].pos] + data[packets[12].pos :])  # frames 10 and 11 are not in the file
    stream = reader.open(str(path), "hole")
    found = list(stream)
    assert len(found) == 22
    assert [round(frame.timestamp_s * 10) for frame in found] == [*range(10), *range(12, 24)]


def test_a_picture_that_is_repeated_by_empty_packets_stays_on_the_screen(reader):
    """Theora has an empty packet where nothing changes."""
    path = MEDIA / "still.ogv"
    with av.open(str(path)) as container:
        num_empty = sum(packet.pts is not None and not packet.size for packet in container.demux(video=0))
    stream = reader.open(str(path), "still")
    found = list(stream)
    assert num_empty >= 20
    assert len(found) == 30 - num_empty
    assert reader.probe(str(path), "still").info.duration_s == pytest.approx(3.0)
    # Whatever is on the screen at a time is the picture of that time.
    for number in range(30):
        [index] = reader.frames_at(str(path), "still", [number / 10])
        assert number_of(found[index].pixels) == number // 12


def test_joined_ogg_streams_bring_their_headers_along():
    path = MEDIA / "joined.ogv"
    assert shown_of(path) == {index: index for index in range(10)}
    with VideoFile(str(path), DecodeOptions()) as video:
        assert list(video.sampled(0.0))
        assert (video.num_corrupt, video.num_missing, video.flags(0.0)) == (0, 0, ["clock_restart"])


@pytest.mark.parametrize(("suffix", "codec"), [("wmv", "wmv2"), ("flv", "libx264")])
def test_other_files_that_go_on_behind_their_end(reader, tmp_path, suffix, codec):
    first, second = (clip(tmp_path, count, f"{count}.{suffix}", codec).read_bytes() for count in (10, 6))
    path = tmp_path / f"joined.{suffix}"
    for data, flags in ((first, ()), (first + b"some other bytes" * 9, ()), (first + second, ("second_movie_unread",))):
        path.write_bytes(data)
        stream = reader.open(str(path), "joined")
        assert numbers(stream)[:10] == list(range(10))
        assert stream.flags == flags


def test_mp4_files_put_behind_one_another_say_that_the_second_is_not_read(reader, tmp_path):
    first, second = clip(tmp_path, 10, "first.mp4").read_bytes(), clip(tmp_path, 6, "second.mp4").read_bytes()
    pieces = write_video(
        tmp_path / "pieces.mp4", map(numbered, range(10)), gop=5, muxer={"movflags": "frag_keyframe+empty_moov"}
    ).read_bytes()
    path = tmp_path / "joined.mp4"
    flags = []
    for data in (first, first + second, first + second[:-40], pieces):
        path.write_bytes(data)
        stream = reader.open(str(path), "joined")
        assert numbers(stream) == list(range(10))
        flags.append(stream.flags)
    assert flags[:2] == [(), ("second_movie_unread",)]
    assert flags[3] == ()
    path.write_bytes(first + second)
    early = reader.open(str(path), "joined", 0.0, 0.5)
    assert (len(list(early)), early.flags) == (5, ())


def test_a_joined_stream_whose_stream_numbers_change(reader, tmp_path):
    """The demuxer keeps the last frame before the seam back until the end, where it cannot be decoded any more: that one is missing."""
    first = part(tmp_path, "first.ts", range(10))
    second = write_video(tmp_path / "second.ts", map(numbered, range(10, 16)), muxer={"mpegts_start_pid": "512"}).read_bytes()
    path = tmp_path / "joined.ts"
    for data in (first + second, first + second[: -188 * 2]):
        path.write_bytes(data)
        stream = reader.open(str(path), "joined")
        found = list(stream)
        shown = [(frame.frame_index, number_of(frame.pixels)) for frame in found]
        assert shown[:9] == [(index, index) for index in range(9)]
        assert {index for index, _ in shown} == {number for _, number in shown}
        assert len(found) + stream.missing_frames == reader.probe(str(path), "joined").info.num_frames
        assert stream.missing_frames <= 1
        assert len(found) >= 14


def test_further_video_streams_are_named(reader, tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10, options={"preset": "ultrafast"}) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = 64 >> number, 48 >> number, "yuv420p"
        for index in range(5):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(numbered(index, stream.width, stream.height), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    stream = reader.open(str(path), "two")
    assert numbers(stream) == list(range(5))
    assert stream.flags == ("other_video_unread",)


def test_every_frame_is_in_a_clip_also_within_the_last_millisecond(tmp_path):
    """A clock of 90 kHz can hold more than one frame in it."""
    times = [0, 9000, 18000, 27000, 27030, 27060]
    path = tmp_path / "dense.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.max_b_frames = Fraction(1, 90_000), 0
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 90_000)
            for packet in stream.encode(frame):
                packet.duration = 1
                container.mux(packet)
        container.mux(stream.encode(None))
    for options in (DecodeOptions(max_clip_s=0.1), DecodeOptions(max_clip_s=0.1, shots=True, min_shot_s=0, shot_threshold=1)):
        with VideoFile(str(path), options) as video:
            spans = list(clips_of(video, options))
            plans = [video.planned(span.start_s, span.end_s) for span in spans]
            given = [shown.frame_index for span in spans for shown in video.sampled(span.start_s, span.end_s)]
        assert given == list(range(6))
        assert [plan.first_frame for plan in plans] == [0, *(plan.end_frame for plan in plans[:-1])]
        assert (plans[-1].end_frame, spans[-1].is_last) == (6, True)


@pytest.mark.parametrize("shots", [False, True])
def test_a_video_of_less_than_a_millisecond_is_a_clip(tmp_path, shots):
    path = tmp_path / "short.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=90_000, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(2):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    options = DecodeOptions(shots=shots)
    with VideoFile(str(path), options) as video:
        [only] = clips_of(video, options)
        assert video.info.duration_s < 0.001
        assert (only.clip_index, only.start_s, only.end_s, only.is_last) == (0, 0.0, video.info.duration_s, True)
        assert [shown.frame_index for shown in video.sampled(only.start_s, only.end_s)] == [0, 1]
    with VideoFile(str(path), DecodeOptions(fps=2)) as video:
        assert [shown.frame_index for shown in video.sampled(0.0)] == [index for index, _ in video.planned(0.0).sampled] == [1]


def test_shots_are_looked_for_in_a_video_that_changes_its_size(tmp_path):
    first = clip(tmp_path, 5, "first.ts").read_bytes()
    second = write_video(tmp_path / "second.ts", [numbered(index, 128, 96) for index in range(5, 10)]).read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(first + second)
    options = DecodeOptions(shots=True, min_shot_s=0.3)
    with VideoFile(str(path), options) as video:
        spans = list(clips_of(video, options))
        given = [number_of(video.frame(s, SIZE).pixels) for span in spans for s in video.sampled(span.start_s, span.end_s)]
    assert given == list(range(10))


def test_frames_of_another_size_are_named_in_their_clip(reader, tmp_path):
    path = tmp_path / "both.ts"
    second = write_video(tmp_path / "second.ts", [numbered(index, 128, 96) for index in range(5, 10)])
    path.write_bytes(clip(tmp_path, 5, "first.ts").read_bytes() + second.read_bytes())
    video = reader.open_video(str(path))
    flags = []
    for span in (ClipSpan(1, 0.5, 1.0), ClipSpan(0, 0.0, 0.5)):
        stream = video.frames(span)
        assert len(list(stream)) == 5
        flags.append("size_change" in stream.flags)
    assert flags == [True, False]  # of the part alone, not of what was read before


@pytest.mark.parametrize("head", [b"\x1aE\xdf\xa3\x80\x18S\x80g\x00", b"\x1aE\xdf\xa3\x80\x18S\x80g", b"\x1aE\xdf\xa3"])
def test_a_container_that_ends_within_its_first_lengths(reader, tmp_path, head):
    path = tmp_path / "head.mkv"
    path.write_bytes(head)
    outcome = reader.probe(str(path), "head")
    assert outcome.error.code in ("corrupt", "no_frames", "truncated")
