"""Reading on: any part of a video equals that part of a whole read, also after the decoder died; and the cuts into clips."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_files import SIZE, clip, frames_of, numbers, write_video

from datagen.decode.reader import VideoReader
from datagen.decode.shots import cut_clips
from datagen.decode.video import VideoFile
from datagen.errors import DecodeError
from datagen.job import DecodeOptions
from datagen.spans import DecodedFrame


@pytest.fixture(scope="module")
def reader():
    reader = VideoReader(DecodeOptions(), SIZE)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def hard_to_seek(tmp_path_factory) -> list[tuple[Path, list[DecodedFrame]]]:
    """Files with long gaps between key frames, reordered, open and closed groups of frames, uneven times; and a whole read of each."""
    folder = tmp_path_factory.mktemp("seek")
    uneven = np.cumsum(np.random.default_rng(3).integers(5, 200, 48)).tolist()
    open_groups = {"preset": "veryfast", "x264-params": "open-gop=1:b-pyramid=strict"}
    paths = [
        clip(folder, 48, "open.mp4", gop=11, b_frames=3, options=open_groups),
        clip(folder, 48, "uneven.mkv", gop=20, b_frames=2, times_ms=uneven, options={"preset": "veryfast"}),
        clip(folder, 48, "hevc.mp4", "libx265", gop=10, b_frames=3, options={"preset": "veryfast"}),
        clip(folder, 48, "vp9.webm", "libvpx-vp9", gop=25),
        clip(folder, 48, "one_key.mov", gop=250),
        clip(folder, 48, "transport.ts", gop=12, b_frames=2),
    ]
    return [(path, frames_of(path)) for path in paths]


def same(found: list[DecodedFrame], expected: list[DecodedFrame]) -> bool:
    return [frame[:2] for frame in found] == [frame[:2] for frame in expected] and all(
        np.array_equal(one.pixels, other.pixels) for one, other in zip(found, expected, strict=True)
    )


def test_the_whole_read_is_right(hard_to_seek):
    for path, whole in hard_to_seek:
        assert numbers(whole) == [frame.frame_index for frame in whole] == list(range(48)), path.name


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_part_equals_that_part_of_a_whole_read(hard_to_seek, data):
    """Several parts of one open file, in any order; each as fresh, and bit for bit."""
    path, whole = data.draw(st.sampled_from(hard_to_seek), label="file")
    with VideoFile(str(path), DecodeOptions()) as video:
        for _ in range(data.draw(st.integers(1, 4), label="parts")):
            start, stop = sorted(data.draw(st.tuples(st.integers(0, 48), st.integers(0, 48)), label="part"))
            span = video.timetable.second_of(start), video.timetable.second_of(stop)
            found = [video.frame(shown, SIZE) for shown in video.sampled(*span)]
            assert same(found, whole[start:stop])
            after = data.draw(st.integers(start, 48), label="after")
            resumed = [video.frame(shown, SIZE) for shown in video.sampled(*span, after_index=after)]
            assert same(resumed, whole[after + 1 : stop])


def test_consecutive_clips_make_up_the_whole(hard_to_seek, reader):
    for path, whole in hard_to_seek:
        spans = list(reader.clips(str(path), "x"))
        assert (spans[0].start_s, spans[-1].end_s) == (0, pytest.approx(reader.probe(str(path), "x").info.duration_s))
        found = [frame for span in spans for frame in reader.open(str(path), "x", span.start_s, span.end_s)]
        assert same(found, whole)


def test_a_stream_goes_on_after_its_decoder_was_killed(tmp_path, hard_to_seek):
    path, whole = hard_to_seek[0]
    reader = VideoReader(DecodeOptions(prefetch_frames=1), SIZE)
    stream = reader.open(str(path), "x", 0.5, 4.5)
    found = [next(stream) for _ in range(7)]
    first = reader.pid
    os.kill(first, 9)
    found += stream
    assert same(found, whole[5:45])
    assert reader.pid != first
    reader.close()


def test_a_frame_that_kills_or_hangs_its_decoder_ends_the_stream_there(tmp_path, monkeypatch):
    path = clip(tmp_path)
    for fault, code in (("kill_if_uri", "decoder_crashed"), ("hang_if_uri", "decode_timeout")):
        monkeypatch.setenv("DATAGEN_FAULTS", json.dumps({"decode": {fault: "film#frame=5;"}}))
        reader = VideoReader(DecodeOptions(timeout_s=1.0), SIZE)
        stream, found = reader.open(str(path), "film"), []
        with pytest.raises(DecodeError) as caught:
            found.extend(stream)
        assert (caught.value.code, numbers(found)) == (code, [0, 1, 2, 3, 4])
        assert numbers(reader.open(str(path), "other")) == list(range(24))
        reader.close()


def test_a_new_request_ends_the_stream_before_it(reader, tmp_path):
    path = clip(tmp_path)
    left = reader.open(str(path), "x")
    assert next(left).frame_index == 0
    assert reader.probe(str(path), "x").info.num_frames == 24
    assert list(left) == []
    with reader.open(str(path), "x") as stream:
        assert next(stream).frame_index == 0
    assert numbers(reader.open(str(path), "x", 2.0)) == [20, 21, 22, 23]


# --- clips ------------------------------------------------------------------------------------------------------------------------


def scenes(lengths: list[int]) -> list[np.ndarray]:
    """Scenes of so many frames, each of another colour with a block that moves."""
    frames = []
    for scene, length in enumerate(lengths):
        for index in range(length):
            frame = np.full((48, 64, 3), ((40, 60, 200), (220, 200, 40), (30, 160, 60), (200, 40, 160))[scene % 4], np.uint8)
            frame[10:20, 4 + 2 * index : 14 + 2 * index] = 255
            frames.append(frame)
    return frames


def spans_of(path: Path, start_s: float = 0.0, clip_index: int = 0, **options) -> list[tuple[int, float, float]]:
    spans = cut_clips(str(path), DecodeOptions(**options), start_s, clip_index)
    return [(span.clip_index, round(span.start_s, 3), round(span.end_s, 3)) for span in spans]


def test_clips_of_at_most_a_length(tmp_path):
    path = clip(tmp_path, 25)
    assert spans_of(path) == [(0, 0.0, 2.5)]
    assert spans_of(path, max_clip_s=1.0) == [(0, 0.0, 1.0), (1, 1.0, 2.0), (2, 2.0, 2.5)]
    # A cut lies where a frame begins.
    assert spans_of(path, max_clip_s=0.95) == [(0, 0.0, 0.9), (1, 0.9, 1.8), (2, 1.8, 2.5)]


def test_a_frame_shown_for_longer_than_a_clip_is_a_clip(tmp_path):
    path = clip(tmp_path, 4, "still.mkv", times_ms=[0, 100, 5000, 5100])
    assert spans_of(path, max_clip_s=1.0)[:3] == [(0, 0.0, 0.1), (1, 0.1, 5.0), (2, 5.0, pytest.approx(5.2, abs=0.1))]


def test_cuts_where_the_shot_changes(reader, tmp_path):
    path = write_video(tmp_path / "shots.mp4", scenes([12, 9, 20, 15]), gop=250)
    expected = [(0, 0.0, 1.2), (1, 1.2, 2.1), (2, 2.1, 4.1), (3, 4.1, 5.6)]
    assert spans_of(path, shots=True) == expected
    limited = [*expected[:2], (2, 2.1, 3.4), (3, 3.4, 4.1), (4, 4.1, 5.4), (5, 5.4, 5.6)]
    assert spans_of(path, shots=True, max_clip_s=1.3) == limited
    assert spans_of(path, shots=True, min_shot_s=1.0) == [(0, 0.0, 1.2), (1, 1.2, 4.1), (2, 4.1, 5.6)]
    assert spans_of(path, shots=True, shot_threshold=250.0) == [(0, 0.0, 5.6)]
    # From any clip's end on, as after a crash.
    for index, start, _ in expected[1:]:
        assert spans_of(path, start, index, shots=True) == expected[index:]


def cuts_of(path: Path, **options) -> list[tuple[float, bool]]:
    return [(round(span.end_s, 3), span.ends_shot) for span in cut_clips(str(path), DecodeOptions(**options))]


def test_a_cut_is_known_as_one_also_where_the_length_limit_ends_the_clip(tmp_path):
    path = write_video(tmp_path / "shots.mp4", scenes([12, 12]), gop=250)
    assert cuts_of(path, shots=True) == [(1.2, True), (2.4, False)]
    assert cuts_of(path, shots=True, max_clip_s=1.2) == [(1.2, True), (2.4, False)]
    assert cuts_of(path, shots=True, max_clip_s=0.4) == [(0.4, False), (0.8, False), (1.2, True), (1.6, False), (2.0, False), (2.4, False)]
    assert cuts_of(path, max_clip_s=1.2) == [(1.2, False), (2.4, False)]
    # Right behind a limit, too: it is the shot that has a shortest length.
    assert cuts_of(path, shots=True, max_clip_s=1.1) == [(1.1, False), (1.2, True), (2.3, False), (2.4, False)]
    assert cuts_of(path, shots=True, max_clip_s=1.1, min_shot_s=1.5) == [(1.1, False), (2.2, False), (2.4, False)]


def test_clips_behind_any_other_are_the_same_once_its_shots_start_is_known(tmp_path):
    path = write_video(tmp_path / "shots.mp4", scenes([12, 5, 12]), gop=250)
    options = DecodeOptions(shots=True, max_clip_s=0.9, min_shot_s=1.0)
    whole = list(cut_clips(str(path), options))
    assert [(round(span.end_s, 3), span.ends_shot) for span in whole] == [(0.9, False), (1.2, True), (2.1, False), (2.9, False)]
    shot_start_s = 0.0
    for number, span in enumerate(whole[:-1], start=1):
        shot_start_s = span.end_s if span.ends_shot else shot_start_s
        assert list(cut_clips(str(path), options, span.end_s, number, shot_start_s)) == whole[number:]


def test_the_start_of_a_shot_survives_a_killed_decoder(tmp_path):
    path = write_video(tmp_path / "shots.mp4", scenes([12, 12]), gop=250)
    reader = VideoReader(DecodeOptions(shots=True, max_clip_s=1.1, min_shot_s=0.6), SIZE)
    spans = reader.clips(str(path), "x")
    found = [next(spans)]
    os.kill(reader.pid, 9)
    found += spans
    assert [(round(span.end_s, 3), span.ends_shot) for span in found] == [(1.1, False), (1.2, True), (2.3, False), (2.4, False)]
    reader.close()


def test_shots_survive_a_killed_decoder(tmp_path):
    path = write_video(tmp_path / "shots.mp4", scenes([12, 9, 20, 15]))
    reader = VideoReader(DecodeOptions(shots=True), SIZE)
    spans = reader.clips(str(path), "x")
    found = [next(spans)]
    os.kill(reader.pid, 9)
    found += spans
    assert [(span.clip_index, round(span.end_s, 3)) for span in found] == [(0, 1.2), (1, 2.1), (2, 4.1), (3, 5.6)]
    reader.close()


# --- frames that prompts ask about ------------------------------------------------------------------------------------------------


def test_wanted_frames_come_whatever_is_sampled(reader, tmp_path):
    path = str(clip(tmp_path))
    sparse = VideoReader(DecodeOptions(fps=1), SIZE)
    stream = sparse.open(path, "x", 0.5, 2.0, wanted=[3, 7, 15, 19, 20])
    assert [index for index, _ in stream.plan.sampled] == numbers(stream) == [5, 7, 15, 19]
    # The same after the child was killed in the middle.
    again = sparse.open(path, "x", 0.0, wanted=[1, 3, 22])
    assert numbers([next(again), next(again)]) == [0, 1]
    os.kill(sparse.pid, 9)
    assert numbers(again) == [3, 10, 20, 22]
    sparse.close()


def test_a_time_means_what_is_on_the_screen_then(reader, tmp_path):
    times = [0, 40, 83, 5000, 5040, 65000]
    path = str(clip(tmp_path, len(times), "still.mkv", times_ms=times))
    at = reader.frames_at(path, "x", [0, 0.03899, 0.0391, 0.04, 0.0829, 2.5, 4.9989, 4.9991, 60.0, 64.9, 65.0])
    assert at == [0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5]
    end_s = reader.probe(path, "x").info.duration_s
    assert reader.frames_at(path, "x", [end_s, end_s + 0.0009, end_s + 0.01, 1e9]) == [5, 5, None, None]
