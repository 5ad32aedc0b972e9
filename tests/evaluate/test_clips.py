"""What `datagen eval` makes of videos: by frames and masks, and never by the numbers of tracks and clips."""

import pytest
from gold_datasets import FAILED, HALF_OF_LEFT, LEFT, RIGHT, SMALL, clip, rectangle, track, write_samples

from datagen.errors import SourceError
from datagen.evaluate import evaluate
from datagen.records import Prompt

ON_LEFT, ON_RIGHT = Prompt(box=(0, 0, 10, 10)), Prompt(box=(10, 0, 20, 10))


def clips_of(tmp_path, found, gold):
    """found, gold: lists of clips."""
    return evaluate(write_samples(tmp_path / "found", (), found), write_samples(tmp_path / "gold", (), gold))["clips"]


def test_gold_against_itself_is_whole(tmp_path):
    gold = [clip([track(0, [LEFT, None], "a"), track(1, [RIGHT, RIGHT], "b"), track(2, [None, None], "hidden")])]
    clips = clips_of(tmp_path, gold, gold)
    assert (clips["mean_j"], clips["presence"], clips["texts"]["caption_en"]["exact_match"]) == (1, 1, 1)
    assert (clips["tracks"], clips["missing_tracks"], clips["extra_tracks"]) == (3, 0, 0)


def test_other_numbers_for_the_same_objects(tmp_path):
    gold = [clip([track(0, [LEFT, LEFT], "left"), track(1, [RIGHT, RIGHT], "right")])]
    found = [clip([track(0, [RIGHT, RIGHT], "right"), track(7, [HALF_OF_LEFT, LEFT], "left")])]
    clips = clips_of(tmp_path, found, gold)
    assert clips["mean_j"] == pytest.approx((1 + 0.75) / 2)
    assert clips["texts"]["caption_en"]["exact_match"] == 1
    assert (clips["missing_tracks"], clips["extra_tracks"]) == (0, 0)


def test_an_object_that_both_asked_for_is_measured_against_itself(tmp_path):
    """The two tracks changed places: overlap would pair each with the other."""
    gold = [clip([track(0, [LEFT, LEFT], "left", ON_LEFT), track(1, [RIGHT, RIGHT], "right", ON_RIGHT)])]
    found = [clip([track(0, [LEFT, LEFT], "right", ON_RIGHT), track(1, [RIGHT, RIGHT], "left", ON_LEFT)])]
    clips = clips_of(tmp_path, found, gold)
    assert (clips["mean_j"], clips["texts"]["caption_en"]["exact_match"]) == (0, 1)


@pytest.mark.parametrize(("mask", "exact"), [(HALF_OF_LEFT, 1), (rectangle(0, 0, 5, 9), 0)])
def test_words_of_a_track_count_from_an_overlap_of_a_half_on(tmp_path, mask, exact):
    clips = clips_of(tmp_path, [clip([track(0, [mask, mask], "left")])], [clip([track(0, [LEFT, LEFT], "left")])])
    assert clips["texts"]["caption_en"]["exact_match"] == exact


def test_clips_that_are_cut_elsewhere_are_compared_frame_by_frame(tmp_path):
    gold = [
        clip([track(0, [LEFT, LEFT], "one")], 0, is_last=False),
        clip([track(0, [RIGHT, RIGHT], "two", first_frame=2)], 1),
    ]
    found = [clip([track(3, [LEFT, LEFT, RIGHT, HALF_OF_LEFT], "one")])]
    clips = clips_of(tmp_path, found, gold)
    assert (clips["clips"], clips["tracks"]) == (2, 2)
    assert clips["mean_j"] == pytest.approx((1 + 0.5) / 2)


def test_a_missing_clip_counts_as_nothing(tmp_path):
    gold = [clip([track(0, [LEFT, LEFT], "one")], 0, is_last=False), clip([track(0, [LEFT, None], "two", first_frame=2)], 1)]
    clips = clips_of(tmp_path, gold[:1], gold)
    assert (clips["mean_j"], clips["presence"], clips["texts"]["caption_en"]["exact_match"]) == (0.5, 0.5, 0.5)
    assert (clips["clips"], clips["missing_clips"], clips["missing_tracks"]) == (2, 1, 1)


def test_a_failed_video_counts_as_nothing(tmp_path):
    clips = clips_of(tmp_path, [clip(FAILED)], [clip([track(0, [LEFT, None], "one")])])
    assert (clips["mean_j"], clips["presence"], clips["missing_tracks"]) == (0, 0, 1)


def test_a_missing_video_counts_as_nothing(tmp_path):
    other = clip([track(0, [LEFT, LEFT], "one")], uri="/w.mp4")
    other.asset.asset_id = "w" * 20
    other.tracks[0].track_id = other.tracks[0].track_id.replace("v", "w")
    gold = [clip([track(0, [LEFT, LEFT], "one")]), other]
    clips = clips_of(tmp_path, gold[:1], gold)
    assert (clips["videos"], clips["missing_videos"], clips["mean_j"]) == (2, 1, 0.5)


def test_frames_that_were_not_looked_at_count_as_nothing(tmp_path):
    clips = clips_of(tmp_path, [clip([track(0, [LEFT], "one")])], [clip([track(0, [LEFT, LEFT, None, None], "one")])])
    assert (clips["mean_j"], clips["presence"]) == (0.5, 0.25)


def test_tracks_that_nobody_asked_for_are_counted(tmp_path):
    clips = clips_of(tmp_path, [clip([track(0, [LEFT], "one"), track(1, [SMALL], "two")])], [clip([track(0, [LEFT], "one")])])
    assert (clips["mean_j"], clips["extra_tracks"]) == (1, 1)


def test_another_size_fails_the_video_and_is_named(tmp_path):
    gold = [clip([track(0, [rectangle(0, 0, 5, 5, 40, 10)], "one")], size=(40, 10))]
    clips = clips_of(tmp_path, [clip([track(0, [LEFT], "one")])], gold)
    assert (clips["mean_j"], clips["other_size_videos"]) == (0, 1)
    assert clips["problems"] == ["/v.mp4 is 20 x 20, gold says 40 x 10 (width x height)"]


def test_a_video_of_the_same_id_and_another_name_is_another(tmp_path):
    gold = [clip([track(0, [LEFT], "one")])]
    with pytest.raises(SourceError, match="no image or clip in common"):
        clips_of(tmp_path, [clip([track(0, [LEFT], "one")], uri="/w.mp4")], gold)
