"""Every prompt of a video is used as meant, or counted and named; a bad one costs itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tracker_model import HEIGHT, NUM_FRAMES, SIZE, WIDTH, Clips, box_at, write_video

from datagen.decode.reader import OpenVideo
from datagen.job import PerceiveOptions
from datagen.masks import encode_mask
from datagen.perceive.clips import ClipScene
from datagen.perceive.fake import FakeClipPerceiver
from datagen.perceive.prompts import merge_prompts
from datagen.records import Prompt, ResumePoint
from datagen.spans import DecodedFrame, SpanPlan

OUTSIDE = Prompt(points=[(5.0, 140.0)], labels=[0])


def click(frame: int, label: int, object_id: int | None = None, at: tuple[float, float] = (5.0, 140.0)) -> Prompt:
    return Prompt(points=[at], labels=[label], frame_index=frame, object_id=object_id)


def asked(done) -> list[dict[str, list[int]]]:
    """Of each clip: track -> the frames on which it was asked for."""
    return [{track.track_id: sorted(track.prompts) for track in sample.tracks} for sample in done]


def ids(*numbers: int) -> list[str]:
    return [f"v-t{number:06d}" for number in numbers]


BAD = {
    "outside": (Prompt(box=(305, 5, 999, 50), frame_index=2, object_id=9), "prompt_outside", "prompt 1 (frame 2, object 9): "),
    "inverted": (Prompt(box=(50, 5, 5, 50)), "prompt_inverted", "prompt 1 (frame 0): "),
    "no_such_frame": (Prompt(box=box_at(0), frame_index=12), "prompt_frame", "prompt 1 asks about frame 12; the video has frames 0 to 11"),
    "no_such_time": (Prompt(box=box_at(0), time_s=3.01), "prompt_frame", "prompt 1 asks about second 3.01; the video has 3.000 s"),
    "only_negative": (click(3, 0), "prompt_negative", "prompt 1 (frame 3) says only where the object is not"),
    "mask_size": (Prompt(mask=encode_mask(np.ones((4, 4), bool)), frame_index=1), "prompt_mask_size", "prompt 1 (frame 1): "),
    "second_box": (
        Prompt(box=box_at(0, 1), object_id=4),
        "prompt_conflict",
        "prompt 1 (frame 0, object 4): two prompts give one object a box",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_prompt_costs_itself_and_is_counted_once_and_named(clips: Clips, name: str) -> None:
    bad, code, said = BAD[name]
    told = []
    prompts = [Prompt(box=box_at(0), object_id=4), bad, Prompt(box=box_at(9), frame_index=9)]
    done = clips(prompts, fake=True, note=lambda event, message, **facts: told.append((event, message, facts)))

    assert [sample.failure for sample in done] == [None] * 3
    assert [sample.dropped for sample in done] == [{code: 1}, {}, {}]
    first, last = ids(0, 1 if bad.object_id == 4 else 2)  # what was refused keeps its object's number
    assert asked(done) == [{first: [0]}, {first: [4]}, {first: [8], last: [9]}]
    assert [track.object_id for track in done[2].tracks] == [4, None]
    [(event, message, facts)] = told
    assert (event, facts["asset_id"], facts["code"]) == ("prompt_dropped", "v", code)
    assert message.startswith(said)


def test_a_video_fails_when_none_of_its_prompts_can_be_used(clips: Clips) -> None:
    told = []
    prompts = [click(3, 0), Prompt(box=(305, 5, 999, 50), object_id=2)]
    [only] = clips(prompts, fake=True, dropped={"prompt_shares": 3}, note=lambda _, message, **facts: told.append((facts["code"], message)))
    assert only.failure.code == "prompts_unusable"
    said = "none of its 5 prompts can be used (1 prompt_negative, 1 prompt_outside, 3 prompt_shares); prompt 1 (frame 0, object 2): "
    assert only.failure.message.startswith(said)
    assert only.dropped == {"prompt_negative": 1, "prompt_outside": 1, "prompt_shares": 3}
    assert [code for code, _ in told] == ["prompt_outside", "prompt_negative"]
    [only] = clips([], fake=True, dropped={"prompt_labels": 2})
    assert (only.failure.code, only.failure.message) == ("prompt_labels", "none of its 2 prompts can be used (2 prompt_labels)")
    assert only.dropped == {"prompt_labels": 2}


def test_a_video_whose_input_knows_crowds_alone_is_empty(clips: Clips) -> None:
    done = clips([], fake=True, dropped={"crowd": 2})
    assert [sample.failure for sample in done] == [None] * 3
    assert [sample.dropped for sample in done] == [{"crowd": 2}, {}, {}]


def test_what_the_fake_engine_finds_lies_in_a_video_of_one_pixel() -> None:
    scene = ClipScene([(0, 0.0)], 0.1, 1, 1)
    names, frame = iter(("a", "b")), DecodedFrame(0, 0.0, np.zeros((SIZE, SIZE, 3), np.uint8))
    found = FakeClipPerceiver(PerceiveOptions(), SIZE).perceive(scene, iter([frame]), [], lambda: next(names))
    assert [track.prompts[0].box for track in found.tracks] == [(0, 0, 1, 1)] * 2


def test_what_a_source_refused_is_named(clips: Clips) -> None:
    told = []
    problem = "prompt 1: it has both frame and time_s; keep the one that you know"
    note = lambda _, message, **facts: told.append((facts["code"], message))  # noqa: E731
    clips([Prompt(box=box_at(0))], fake=True, dropped={"prompt_malformed": 2}, problem=problem, note=note)
    assert told == [("prompt_malformed", f"refused where the input was read: 2 prompt_malformed; the first: {problem}")]


def test_prompts_that_a_source_refused_are_counted_in_the_first_clip_alone(clips: Clips) -> None:
    done = clips([Prompt(box=box_at(0)), click(1, 0)], fake=True, dropped={"prompt_labels": 2})
    assert [sample.dropped for sample in done] == [{"prompt_labels": 2, "prompt_negative": 1}, {}, {}]
    first = done[0].clip
    later = clips([Prompt(box=box_at(0)), click(1, 0)], fake=True, dropped={"prompt_labels": 2}, resume=ResumePoint().after(first))
    assert [sample.dropped for sample in later] == [{}, {}]


def test_names_go_by_the_place_in_the_input(clips: Clips) -> None:
    told = []
    bad = Prompt(box=(305, 5, 999, 50), frame_index=2, index=17)
    clips([Prompt(box=box_at(0)), bad], fake=True, note=lambda event, message, **facts: told.append(message))
    assert told[0].startswith("prompt 17 (frame 2): ")


def test_very_many_bad_prompts_are_named_in_few_lines(clips: Clips) -> None:
    told = []
    prompts = [Prompt(box=box_at(0)), *(click(3, 0) for _ in range(500))]
    done = clips(prompts, fake=True, note=lambda event, message, **facts: told.append(message))
    assert done[0].dropped == {"prompt_negative": 500}
    assert len(told) == 21
    assert told[-1].startswith("480 further prompts cannot be used")


def test_a_correction_before_the_object_is_known_is_refused(clips: Clips) -> None:
    prompts = [click(1, 0, 3), Prompt(box=box_at(2), frame_index=2, object_id=3), click(6, 0, 3)]
    done = clips(prompts, fake=True)
    assert done[0].dropped == {"prompt_negative": 1}
    assert asked(done) == [{ids(0)[0]: [2]}, {ids(0)[0]: [4, 6]}, {ids(0)[0]: [8]}]


def test_a_correction_on_a_clips_first_frame_joins_what_was_handed_over(clips: Clips) -> None:
    prompts = [Prompt(box=box_at(0), object_id=3), click(4, 0, 3)]
    first, second, _ = clips(prompts)
    prompt = second.tracks[0].prompts[4]
    assert (prompt.source, prompt.type, prompt.labels) == ("handover", "box+points+mask", [0])
    assert prompt.box == first.tracks[0].frames[-1].box_xyxy
    # One that says where it is takes its place.
    prompts[1] = click(4, 1, 3, (36.0, 48.0))
    _, second, _ = clips(prompts, fake=True)
    assert second.tracks[0].prompts[4] == prompts[1]


def test_prompts_of_one_object_on_one_frame_are_one_where_they_agree(clips: Clips) -> None:
    box = Prompt(box=box_at(0), object_id=1)
    inside = Prompt(points=[(40.0, 48.0)], labels=[1], object_id=1, time_s=0.0)
    done = clips([box, OUTSIDE, box, inside, inside, Prompt(points=[(40.0, 48.0)], labels=[0], object_id=1)], fake=True)
    assert done[0].dropped == {"prompt_negative": 1, "prompt_conflict": 1}
    prompt = done[0].tracks[0].prompts[0]
    assert (prompt.box, prompt.points, prompt.labels) == (box.box, [(40.0, 48.0)], [1])
    mask = Prompt(mask=encode_mask(np.ones((HEIGHT, WIDTH), bool)))
    assert merge_prompts(mask, box).type == "box+mask"


def test_a_box_and_a_mask_of_different_places_are_no_one_object(clips: Clips) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[120:140, 150:190] = True
    prompts = [Prompt(box=box_at(0), object_id=1), Prompt(mask=encode_mask(mask), object_id=1)]
    done = clips(prompts, fake=True)
    assert done[0].dropped == {"prompt_conflict": 1}
    assert done[0].tracks[0].prompts[0].type == "box"


def test_a_box_partly_outside_is_cut_to_the_video(clips: Clips) -> None:
    done = clips([Prompt(box=(150.0, 60.0, 220.0, 170.0))], fake=True)
    assert done[0].tracks[0].prompts[0].box == (150, 60, WIDTH, HEIGHT)


def test_prompts_on_several_frames_are_never_laid_onto_one(clips: Clips) -> None:
    prompts = [Prompt(box=box_at(frame), frame_index=frame, object_id=5) for frame in range(NUM_FRAMES)]
    done = clips(prompts, fake=True, decode={"fps": 1})
    assert [prompt.box for sample in done for _, prompt in sorted(sample.tracks[0].prompts.items())] == [item.box for item in prompts]
    assert [sample.dropped for sample in done] == [{}] * 3


class OneFrameLess(OpenVideo):
    """A video of which a frame does not decode."""

    def frames(self, span, wanted=()):
        class Stream:
            def __init__(self, stream) -> None:
                self.stream, self.plan = stream, stream.plan

            def __iter__(self):
                return (frame for frame in self.stream if frame.frame_index != 5)

            def __getattr__(self, name):
                return getattr(self.stream, name)

        return Stream(super().frames(span, wanted))


def test_a_prompt_on_a_frame_that_does_not_decode_is_counted_and_moves_to_no_other(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datagen.decode.reader.OpenVideo", OneFrameLess)
    told = []
    prompts = [Prompt(box=box_at(0)), Prompt(box=box_at(5), frame_index=5, object_id=2), Prompt(box=box_at(9), frame_index=9, object_id=2)]
    done = clips(prompts, fake=True, note=lambda event, message, **facts: told.append(message))
    assert [sample.dropped for sample in done] == [{}, {"prompt_frame_missing": 1}, {}]
    assert asked(done) == [{ids(0)[0]: [0]}, {ids(0)[0]: [4]}, {ids(0)[0]: [8], ids(1)[0]: [9]}]
    assert told == ["prompt 1 (frame 5, object 2) asks about a frame that cannot be decoded"]


class Clumsy(FakeClipPerceiver):
    """Fails on the second clip."""

    def perceive(self, scene, frames, objects, new_track_id):
        if scene.sampled[0][0] == 4:
            raise RuntimeError("boom")
        return super().perceive(scene, frames, objects, new_track_id)


@pytest.mark.parametrize("resumed", [False, True])
def test_prompts_that_a_failed_clip_and_those_behind_it_leave_unasked_are_counted(clips: Clips, resumed: bool) -> None:
    told = []
    prompts = [Prompt(box=box_at(0)), *(Prompt(box=box_at(frame), frame_index=frame) for frame in (3, 4, 9))]
    done = clips(
        prompts,
        make=lambda _, options: Clumsy(options, SIZE),
        note=lambda event, message, **facts: told.append(message),
        resume=ResumePoint(1, 1.0, 4, []) if resumed else None,
    )
    assert [sample.status for sample in done] == ["failed"] if resumed else ["ok", "failed"]
    assert done[-1].dropped == {"prompt_not_reached": 2}
    assert told == ["2 prompts are about frame 4 or later ones, which were not reached"]


def test_a_clip_without_a_frame_that_decodes_counts_its_prompts(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoFrame(OpenVideo):
        def frames(self, span, wanted=()):
            stream = super().frames(span, wanted)
            if span.clip_index == 1:
                list(stream)
                stream.plan = SpanPlan(stream.plan.first_frame, stream.plan.end_frame, [])
                return Empty(stream)
            return stream

    class Empty:
        def __init__(self, stream) -> None:
            self.stream, self.plan, self.corrupt_packets = stream, stream.plan, 4

        def __iter__(self):
            return iter(())

        def __getattr__(self, name):
            return getattr(self.stream, name)

    monkeypatch.setattr("datagen.decode.reader.OpenVideo", NoFrame)
    done = clips([Prompt(box=box_at(0)), Prompt(box=box_at(5), frame_index=5)], fake=True)
    assert [sample.dropped for sample in done] == [{}, {"prompt_frame_missing": 1, "corrupt_packets": 4}, {}]


def test_the_mask_and_the_id_of_a_prompt_are_kept(clips: Clips, tmp_path: Path) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[30:66, 20:60] = True
    prompt = Prompt(mask=encode_mask(mask), id="ann-7", object_id=3)
    done = clips([prompt], path=write_video(tmp_path / "v.mp4"))
    assert done[0].tracks[0].prompts[0] == prompt
    assert [[track.object_id for track in sample.tracks] for sample in done] == [[3]] * 3
    assert [[handover.object_id for handover in sample.clip.handovers] for sample in done] == [[3], [3], []]
