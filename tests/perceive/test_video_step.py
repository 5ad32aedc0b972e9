"""Videos to clips: a real file through the real decoding child and the real tracker, at a small size."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tracker_model import FEW, FPS, HEIGHT, NUM_FRAMES, SIZE, WIDTH, Clips, box_at, picture, write_video

from datagen.decode.reader import VideoReader
from datagen.events import Note, log_event
from datagen.job import DecodeOptions, PerceiveOptions
from datagen.pam.tracker import Tracker
from datagen.perceive.fake import FakeClipPerceiver
from datagen.perceive.pam_clips import PamClipPerceiver
from datagen.perceive.video import VideoPerceiveStep
from datagen.records import Asset, Failure, Prompt, ResumePoint, Sample


def test_an_object_keeps_its_identity_over_three_clips(clips: Clips) -> None:
    done = clips([Prompt(box=box_at(0))])

    assert [(s.clip.clip_index, s.clip.start_s, s.clip.end_s, s.clip.num_frames, s.clip.is_last) for s in done] == [
        (0, 0.0, 1.0, 4, False),
        (1, 1.0, 2.0, 4, False),
        (2, 2.0, 3.0, 4, True),
    ]
    assert [[t.track_id for t in s.tracks] for s in done] == [["v-t000000"]] * 3
    frames = [frame for s in done for frame in s.tracks[0].frames]
    assert [frame.frame_index for frame in frames] == list(range(NUM_FRAMES))
    assert [frame.timestamp_s for frame in frames] == pytest.approx([n / FPS for n in range(NUM_FRAMES)])
    assert [list(s.tracks[0].prompts) for s in done] == [[0], [4], [8]]
    second = done[1].tracks[0].prompts[4]
    assert second.source == "handover"
    assert second.mask == done[0].tracks[0].frames[-1].mask
    assert done[2].clip.handovers == []
    assert (done[0].width, done[0].height, done[0].sha256 is not None) == (WIDTH, HEIGHT, True)


def test_each_clip_has_one_event_with_sixteen_frames(clips: Clips) -> None:
    for s in clips([Prompt(box=box_at(0)), Prompt(points=[(170, 100)], labels=[1])]):
        for track in s.tracks:
            [event] = track.events
            assert (event.start_s, event.end_s) == (s.clip.start_s, s.clip.end_s)
            assert (event.start_frame, event.end_frame) == (track.frames[0].frame_index, track.frames[-1].frame_index)
            assert len(event.tokens.frame_indices) == 16
            assert sorted(set(event.tokens.frame_indices)) == [frame.frame_index for frame in track.frames]


def test_a_resumed_video_goes_on_as_if_it_had_never_stopped(clips: Clips) -> None:
    whole = clips(None)
    first = whole[0].clip
    resumed = clips(None, resume=ResumePoint(1, first.end_s, first.next_track, first.handovers))

    assert [s.clip for s in resumed] == [s.clip for s in whole[1:]]
    for again, before in zip(resumed, whole[1:], strict=True):
        assert [t.track_id for t in again.tracks] == [t.track_id for t in before.tracks]
        assert [t.frames for t in again.tracks] == [t.frames for t in before.tracks]


def test_prompts_go_to_the_clip_and_frame_they_name(clips: Clips) -> None:
    prompts = [
        Prompt(box=box_at(5), frame_index=5),
        Prompt(box=box_at(0, 1), object_id=7),
        Prompt(points=[(50.0, 60.0)], labels=[0], time_s=0.5, object_id=7),
        Prompt(points=[(130.0, 100.0)], labels=[1], object_id=7),
    ]
    first, second, _ = clips(prompts, fake=True)

    assert {t.track_id: sorted(t.prompts) for t in first.tracks} == {"v-t000001": [0, 2]}
    assert first.tracks[0].prompts[0].type == "box+points"
    assert {t.track_id: sorted(t.prompts) for t in second.tracks} == {"v-t000001": [4], "v-t000000": [5]}


def test_a_time_rounded_to_less_than_its_frame_goes_to_the_clip_of_that_frame(clips: Clips) -> None:
    # Clips of 5 frames at 4 a second begin at 1.25 s; 1.2496 is what a rounding down may leave of it.
    done = clips([Prompt(box=box_at(5), time_s=time_s) for time_s in (1.25, 1.2496, 1.248)], fake=True, decode={"max_clip_s": 1.25})
    given = {
        (s.clip.clip_index, t.track_id, *t.prompts) for s in done for t in s.tracks if next(iter(t.prompts.values())).source != "handover"
    }
    assert given == {(0, "v-t000002", 4), (1, "v-t000000", 5), (1, "v-t000001", 5)}


def test_a_prompted_frame_is_sampled_whatever_fps_says(clips: Clips) -> None:
    [only] = clips(
        [Prompt(box=box_at(3), frame_index=3), Prompt(box=box_at(7), time_s=1.9)], decode={"fps": 1, "max_clip_s": 9.0}, fake=True
    )
    assert [sorted(t.prompts) for t in only.tracks] == [[3], [7]]
    assert [f.frame_index for f in only.tracks[0].frames] == [0, 3, 4, 7, 8]


def test_prompts_behind_a_resume_point_are_not_asked_again(clips: Clips) -> None:
    prompts = [Prompt(box=box_at(0)), Prompt(box=box_at(9), frame_index=9)]
    resumed = clips(prompts, fake=True, resume=ResumePoint(1, 1.0, 2, []))
    assert [[t.track_id for t in s.tracks] for s in resumed] == [[], ["v-t000001"]]


def test_an_object_prompted_late_is_followed_backward_to_the_clips_start(clips: Clips) -> None:
    late = [Prompt(box=box_at(3), frame_index=3)]
    [both, *_] = clips(late)
    [forward, *_] = clips(late, track={"backward": False})
    assert [f.frame_index for f in both.tracks[0].frames] == [0, 1, 2, 3]
    assert [f.frame_index for f in forward.tracks[0].frames] == [3]


def test_what_is_followed_is_not_found_again(clips: Clips) -> None:
    done = clips(None)
    ids = [[track.track_id for track in s.tracks] for s in done]
    assert len(ids[0]) == len(set(ids[0])) > 0
    handed = [handover.track_id for handover in done[0].clip.handovers]
    assert ids[1][: len(handed)] == handed
    new = [int(name[-4:]) for name in ids[1][len(handed) :]]
    assert all(number >= done[0].clip.next_track for number in new)
    assert all(len(names) <= FEW["max_regions"] for names in ids)


def test_objects_can_be_looked_for_in_the_middle_of_a_clip(clips: Clips) -> None:
    found = clips(None, track={"find_at": 0.5})
    new = [t for t in found[0].tracks if all(p.source == "everything" for p in t.prompts.values())]
    assert new
    assert all(list(track.prompts) == [2] for track in new)


def test_a_stream_has_an_event_per_segment_and_hands_over_boxes(clips: Clips) -> None:
    done = clips([Prompt(box=box_at(0))], track={"segment_frames": 2}, decode={"max_clip_s": 1.5})
    first = done[0].tracks[0]
    assert [(event.start_frame, event.end_frame) for event in first.events] == [(0, 1), (2, 3), (4, 5)]
    assert [event.start_s for event in first.events] == [0.0, 0.5, 1.0]
    assert [event.end_s for event in first.events] == [0.5, 1.0, 1.5]
    assert [prompt.type for prompt in first.prompts.values()] == ["box"] * 3
    assert first.prompts[2].box == first.frames[1].box_xyxy
    assert done[0].clip.handovers[0].prompt.type == "box"


def test_frames_are_sampled_and_keep_their_number_in_the_video(clips: Clips) -> None:
    [only] = clips([Prompt(box=box_at(0))], decode={"fps": 2, "max_clip_s": 9.0})
    assert [f.frame_index for f in only.tracks[0].frames] == [0, 2, 4, 6, 8, 10]
    assert only.clip.num_frames == 6


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (Prompt(box=(999, 5, 1099, 50)), "prompt_outside"),
        (Prompt(box=box_at(0), frame_index=99), "prompt_frame"),
        (Prompt(box=box_at(0), time_s=60.0), "prompt_frame"),
    ],
)
def test_a_prompt_that_makes_no_sense_fails_the_video(clips: Clips, prompt: Prompt, code: str) -> None:
    [only] = clips([prompt], fake=True)
    assert only.failure.code == code
    assert (only.clip.clip_index, only.clip.is_last) == (0, True)


def test_a_file_that_is_no_video_and_a_bad_row_are_failed_clips(clips: Clips, tmp_path: Path, video: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video at all")
    [only] = clips(None, path=text, fake=True)
    assert (only.failure.code, only.clip.is_last, only.status) == ("not_a_video", True, "failed")
    [missing] = clips(None, path=tmp_path / "missing.mp4", fake=True)
    assert missing.failure.code == "missing_file"
    step = VideoPerceiveStep(lambda: FakeClipPerceiver(PerceiveOptions(), SIZE), lambda size: VideoReader(DecodeOptions(), size))
    step.setup()
    [row] = step.clips(Sample(0, Asset("r", "manifest#row=3", "video", failure=Failure("manifest_bad_row", "row 3"))))
    step.teardown()
    assert row.failure.code == "manifest_bad_row"


def test_a_truncated_file_is_processed_as_far_as_it_goes_and_flagged(clips: Clips, tmp_path: Path) -> None:
    path = tmp_path / "cut.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": "4", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(NUM_FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(picture(index))))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])

    done = clips(None, path=path, fake=True)

    assert [s.failure for s in done] == [None] * len(done)
    assert [s.clip.truncated for s in done] == [False] * (len(done) - 1) + [True]
    assert 4 <= sum(s.clip.num_frames for s in done) < NUM_FRAMES
    assert done[-1].clip.is_last


def test_a_clip_with_damaged_frames_is_followed_through_the_others(clips: Clips, tmp_path: Path, tracker: Tracker) -> None:
    path = write_video(tmp_path / "damaged.mp4")
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)

    done = clips([Prompt(box=box_at(0))], path=path)

    assert all(s.failure is None for s in done)
    for s in done:
        for track in s.tracks:
            indices = [frame.frame_index for frame in track.frames]
            assert indices == sorted(set(indices))
            assert len(indices) == s.clip.num_frames
    assert sum(s.dropped.get("corrupt_packets", 0) for s in done) > 0 or sum(s.clip.num_frames for s in done) == NUM_FRAMES


def test_a_clip_says_which_frames_are_missing_and_that_a_clock_began_anew(clips: Clips, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.ts")
    data = whole.read_bytes()
    with av.open(str(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "joined.ts"
    # The first part lacks its first frame, without which the next three of its group cannot be decoded.
    path.write_bytes(data[: places[0]] + data[places[1] :] + data)

    done = clips([Prompt(box=box_at(5))], path=path, fake=True)

    assert [s.failure for s in done] == [None] * len(done)
    assert sum(s.clip.num_frames + s.clip.missing_frames for s in done) == done[0].clip.num_video_frames == 2 * NUM_FRAMES - 1
    assert [s.clip.missing_frames for s in done] == [3] + [0] * (len(done) - 1)
    assert [s.dropped.get("missing_frame", 0) for s in done] == [s.clip.missing_frames for s in done]
    assert [s.clip.clip_index for s in done if "clock_restart" in s.clip.flags] == [2]


class Clumsy(FakeClipPerceiver):
    """Fails on the second clip."""

    def perceive(self, scene, frames, objects, new_track_id):
        if scene.sampled[0][0] == 4:
            raise RuntimeError("boom")
        return super().perceive(scene, frames, objects, new_track_id)


def test_an_error_in_one_clip_ends_its_video_and_no_other(video: Path) -> None:
    options = DecodeOptions(max_clip_s=1.0)
    step = VideoPerceiveStep(lambda: Clumsy(PerceiveOptions(), SIZE), lambda size: VideoReader(options, size))
    step.setup()
    first, second = step.clips(Sample(0, Asset("v", str(video), "video", [Prompt(box=box_at(0))])))
    again = list(step.clips(Sample(1, Asset("w", str(video), "video", [Prompt(box=box_at(0))]))))
    step.teardown()
    assert first.status == "ok"
    assert (second.failure.code, second.failure.message, second.clip.is_last) == ("perceive", "RuntimeError: boom", True)
    assert second.clip.start_s == 1.0
    assert len(again) == 2


def test_a_crowded_clip_is_followed_fewer_objects_at_a_time_until_there_is_room_again(
    video: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datagen.perceive.memory._CALM", 1)
    transformer, sizes, events = tracker.segmenter.sam_mask_decoder.transformer, list[int](), list[tuple[str, int]]()
    options = PerceiveOptions()
    prompts = [Prompt(box=box_at(0, shape)) for shape in range(3)]

    def follow(note: Note) -> list[Sample]:
        perceiver = PamClipPerceiver(tracker, options, note)
        step = VideoPerceiveStep(lambda: perceiver, lambda size: VideoReader(DecodeOptions(max_clip_s=1.0), size))
        step.setup()
        try:
            return list(step.clips(Sample(0, Asset("v", str(video), "video", prompts))))
        finally:
            step.teardown()

    def allocate(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(sizes) < 8 and sizes[-1] > 1:
            raise torch.OutOfMemoryError("no room")

    undisturbed = follow(log_event)
    with transformer.register_forward_pre_hook(allocate):
        found = follow(lambda event, message, **facts: events.append((event, facts["value"])))

    assert sizes[:2] == [3, 1]
    assert max(sizes[2:]) == 3
    assert events == [("memory_short", 1), ("memory_ample", 2), ("memory_ample", 4)]
    assert [clip.failure for clip in found] == [None] * 3
    for one, other in zip(undisturbed, found, strict=True):
        for track, again in zip(one.tracks, other.tracks, strict=True):
            assert [seen.predicted_iou for seen in track.frames] == pytest.approx([seen.predicted_iou for seen in again.frames], abs=1e-3)


def test_the_fakes_frames_equal_those_of_the_file(clips: Clips, video: Path) -> None:
    with av.open(str(video)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    done = clips([Prompt(box=box_at(0))], fake=True)
    assert np.allclose([f.timestamp_s for s in done for f in s.tracks[0].frames], times)
