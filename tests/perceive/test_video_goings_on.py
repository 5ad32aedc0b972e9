"""Which objects go on from clip to clip: seen ones, those out of sight, and none over a shot cut; the same after every kind of resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tracker_model import HEIGHT, NUM_FRAMES, WIDTH, Clips, box_at, picture, write_video

from datagen.decode.reader import VideoReader
from datagen.pam.tracker import Tracker
from datagen.perceive.pam_clips import PamClipPerceiver
from datagen.records import Prompt, ResumePoint, Sample

SHOTS = {"shots": True, "min_shot_s": 0.3, "shot_threshold": 20.0}
A, B = Prompt(box=box_at(0), object_id=7), Prompt(box=box_at(0, 1), object_id=8)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of two shots, the second from frame 6 on."""
    other = Image.fromarray(np.broadcast_to(np.array((240, 220, 40), np.uint8), (HEIGHT, WIDTH, 3)).copy())
    pictures = [*(picture(index) for index in range(6)), *(Image.blend(picture(index), other, 0.7) for index in range(6))]
    return write_video(tmp_path_factory.mktemp("cut") / "cut.mp4", pictures)


def flags(done: list[Sample]) -> list[dict[str, list[str]]]:
    return [{track.track_id[-1]: track.flags for track in sample.tracks} for sample in done]


@pytest.mark.parametrize("max_clip_s", [9.0, 1.5, 0.75, 1.25])
def test_nothing_goes_on_over_a_shot_cut(clips: Clips, cut: Path, max_clip_s: float) -> None:
    done = clips([A, B], path=cut, fake=True, decode={**SHOTS, "max_clip_s": max_clip_s})
    before = [sample for sample in done if sample.clip.end_s <= 1.5]
    last = before[-1]
    assert (last.clip.end_s, last.clip.flags, last.clip.handovers) == (1.5, ["shot_end"], [])
    assert flags(before)[-1] == {"0": ["ended_at_cut"], "1": ["ended_at_cut"]}
    assert all(sample.clip.flags == [] and sample.dropped == {} and len(sample.clip.handovers) == 2 for sample in before[:-1])
    assert last.dropped == {"ended_at_cut": 2}
    assert [sample.tracks for sample in done[len(before) :]] == [[]] * (len(done) - len(before))


def test_an_object_is_asked_by_its_own_prompts_in_the_next_shot_and_has_not_ended(clips: Clips, cut: Path) -> None:
    again = Prompt(box=box_at(2), frame_index=8, object_id=7)
    negative = Prompt(points=[(5.0, 140.0)], labels=[0], frame_index=9, object_id=8)
    done = clips([A, B, again, negative], path=cut, fake=True, decode={**SHOTS, "max_clip_s": 9.0})
    assert flags(done) == [{"0": [], "1": ["ended_at_cut"]}, {"0": []}]
    assert [sorted(track.prompts) for track in done[1].tracks] == [[8]]
    # The other one's prompt corrects an object that ended.
    assert [sample.dropped for sample in done] == [{"ended_at_cut": 1}, {"prompt_negative": 1}]


def test_found_objects_end_at_a_cut_too_and_are_found_anew(clips: Clips, cut: Path) -> None:
    first, second = clips(None, path=cut, decode={**SHOTS, "max_clip_s": 9.0})
    assert first.tracks
    assert all("ended_at_cut" in track.flags for track in first.tracks if track.frames[-1].mask is not None)
    assert "ended_at_cut" not in first.dropped
    assert not {track.track_id for track in first.tracks} & {track.track_id for track in second.tracks}


class Blind(PamClipPerceiver):
    """Sees nothing in some frames of the video."""

    hidden = (2, 3, 4, 5, 6)

    def perceive(self, scene, frames, objects, new_track_id):
        self.now = None

        def watched():
            for frame in frames:
                self.now = frame.frame_index
                yield frame

        head = self._tracker.segmenter.sam_mask_decoder.pred_obj_score_head
        hook = head.register_forward_hook(lambda _, inputs, score: -score.abs() - 1 if self.now in self.hidden else score.abs() + 1)
        try:
            return super().perceive(scene, watched(), objects, new_track_id)
        finally:
            hook.remove()


def seen(done: list[Sample]) -> dict[int, bool]:
    return {frame.frame_index: frame.mask is not None for sample in done for track in sample.tracks for frame in track.frames}


@pytest.mark.parametrize("track", [{}, {"handover": "box"}, {"segment_frames": 2}, {"segment_frames": 3}])
@pytest.mark.parametrize("max_clip_s", [0.5, 1.0, 9.0])
def test_an_object_that_is_asked_for_is_looked_for_until_it_returns(clips: Clips, max_clip_s: float, track: dict) -> None:
    done = clips([A], make=Blind, decode={"max_clip_s": max_clip_s}, track=track)
    assert [sample.failure for sample in done] == [None] * len(done)
    assert seen(done) == {frame: frame not in Blind.hidden for frame in range(NUM_FRAMES)}
    assert {track.track_id for sample in done for track in sample.tracks} == {"v-t000000"}
    assert [track.object_id for sample in done for track in sample.tracks] == [7] * len(done)
    absent = [sample.clip.clip_index for sample in done for item in sample.tracks if "absent" in item.flags]
    assert absent == ([1, 2] if max_clip_s == 0.5 else [])


@pytest.mark.parametrize("handover", ["box", "mask", "box+mask"])
def test_an_object_that_goes_right_between_two_clips_is_looked_for(clips: Clips, monkeypatch: pytest.MonkeyPatch, handover: str) -> None:
    monkeypatch.setattr(Blind, "hidden", (4, 5, 6))
    click = Prompt(points=[(5.0, 140.0)], labels=[0], frame_index=4, object_id=7)
    done = clips([A, click], make=Blind, track={"handover": handover})
    assert seen(done) == {frame: frame not in Blind.hidden for frame in range(NUM_FRAMES)}
    # What the clip before asked for is not asked; the click is, on the frame where it was made.
    assert [sorted(track.prompts) for track in done[1].tracks] == [[4]]
    assert done[1].tracks[0].prompts[4].type == "points"
    assert (done[1].clip.handovers[0].seen_s, done[1].clip.handovers[0].unseen_s) == (1.75, [])


class Misled(PamClipPerceiver):
    """Whose memory finds nothing on a clip's first frame, and whose prompts find something, in a box."""

    box: tuple[float, float, float, float]

    def _on_first(self, scene, head, prompts, memories):
        found = super()._on_first(scene, head, prompts, memories)
        for item in found:
            item.mask, item.box_xyxy = (None, None) if memories else (item.mask, self.box)
        return found


@pytest.mark.parametrize(("box", "asked"), [((190.0, 140.0, 200.0, 150.0), []), ((0.0, 0.0, 200.0, 150.0), [4])])
def test_a_box_that_finds_something_elsewhere_is_not_asked(clips: Clips, monkeypatch: pytest.MonkeyPatch, box, asked) -> None:
    monkeypatch.setattr(Misled, "box", box, raising=False)
    done = clips([A], make=Misled, take=2)
    assert done[0].tracks[0].frames[-1].box_xyxy[2] < 190
    assert [sorted(track.prompts) for track in done[1].tracks] == [asked]


def test_an_object_out_of_sight_is_handed_over_with_what_showed_it(clips: Clips) -> None:
    done = clips([A], make=Blind, decode={"max_clip_s": 0.75})
    first, second, third, _ = (sample.clip.handovers for sample in done)
    assert [(item.prompt, item.seen_s, item.unseen_s) for item in first] == [(A, 0.0, [0.5])]
    # This model's memory reaches two frames back.
    assert [(item.prompt, item.seen_s, item.unseen_s) for item in second] == [(A, 0.0, [1.0, 1.25])]
    assert (third[0].prompt.source, third[0].seen_s, third[0].unseen_s) == ("handover", 2.0, [])


@pytest.mark.parametrize("max_clip_s", [0.5, 0.75])
def test_a_run_that_goes_on_anywhere_gives_the_same_rows(clips: Clips, max_clip_s: float) -> None:
    options = {"make": Blind, "decode": {"max_clip_s": max_clip_s}}
    whole = clips([A, B], **options)
    resume = ResumePoint()
    for number, sample in enumerate(whole[:-1], start=1):
        resume = resume.after(sample.clip)
        later = clips([A, B], resume=resume, **options)
        assert [other.clip for other in later] == [other.clip for other in whole[number:]]
        for one, other in zip(later, whole[number:], strict=True):
            assert [(t.track_id, t.prompts, t.frames, t.flags) for t in one.tracks] == [
                (t.track_id, t.prompts, t.frames, t.flags) for t in other.tracks
            ]


def test_an_absent_object_that_is_dropped_is_looked_for_all_the_same(clips: Clips) -> None:
    done = clips([A], make=Blind, decode={"max_clip_s": 0.5}, drop_absent=True)
    assert [len(sample.tracks) for sample in done] == [1, 0, 0, 1, 1, 1]
    assert [sample.dropped for sample in done] == [{}, {"absent": 1}, {"absent": 1}, {}, {}, {}]


def test_objects_that_were_found_end_out_of_sight(clips: Clips) -> None:
    first, second, *_ = clips(None, make=Blind, decode={"max_clip_s": 1.0})
    assert first.clip.handovers == []
    assert not {track.track_id for track in first.tracks} & {track.track_id for track in second.tracks}


def test_an_object_that_was_never_seen_is_looked_for_nowhere(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blind, "hidden", range(NUM_FRAMES))
    done = clips([A], make=Blind)
    assert [len(sample.tracks) for sample in done] == [1, 0, 0]
    assert done[0].tracks[0].flags == ["absent"]


def test_an_object_whose_frame_does_not_decode_again_is_lost_and_counted(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = VideoReader.open

    def without_the_first(self, path, uri, start_s=0.0, end_s=None, wanted=()):
        is_alone = start_s == 0.0 and end_s is not None and end_s < 0.1
        return opened(self, path, uri, *((2.9, 2.95) if is_alone else (start_s, end_s)), wanted)

    monkeypatch.setattr(VideoReader, "open", without_the_first)
    done = clips([A], make=Blind, decode={"max_clip_s": 0.75})
    assert [sample.dropped for sample in done] == [{}, {"lost": 1}, {}, {}]
    assert [len(sample.tracks) for sample in done] == [1, 0, 0, 0]


def test_frames_of_objects_out_of_sight_are_encoded_once_for_all(clips: Clips, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    pyramid = tracker.front_end.pyramid
    monkeypatch.setattr(tracker.front_end, "pyramid", lambda pixels: encoded.append(len(pixels)) or pyramid(pixels))
    clips([A, B], make=Blind, decode={"max_clip_s": 1.0}, take=2)
    # Two clips of four frames; where both were seen, and the two frames without them.
    assert len(encoded) == 8 + 3
