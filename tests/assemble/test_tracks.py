"""Tracks of a clip: flags, and rows of the `tracks` table."""

from __future__ import annotations

import pytest

from datagen.assemble import assemble, track_row
from datagen.errors import SchemaError
from datagen.job import AssembleOptions
from datagen.records import Asset, Clip, Event, Prompt, Sample, Text, Track, TrackFrame

MASK = {"size": [8, 9], "counts": "08"}


def text(words: str, finish: str = "stop") -> Text:
    return Text(words, -0.5, finish, 3)


def event(number: int, history: dict[str, str | None] | None = None, **texts: Text) -> Event:
    return Event(10.0 + number, 11.0 + number, 4 * number, 4 * number + 3, texts=texts, history=history or dict.fromkeys(texts))


def clip(*events: Event, **options: object) -> Sample:
    frames = [
        TrackFrame(2, 0, 10.0, MASK, (1.0, 2.0, 3.0, 4.0), 3.5, 0.9),
        TrackFrame(2, 1, 10.25, None, None, -2.0, 0.4),
    ]
    prompts = {4: Prompt(points=[(5, 6)], labels=[1], mask=MASK, id="a7"), 0: Prompt(box=(1, 2, 3, 4), source="handover")}
    track = Track(2, prompts, frames, track_id="ab12-t000002", events=list(events), object_id=17, **options)
    return Sample(0, Asset("ab12", "film.mp4", "video"), 9, 8, clip=Clip(3, 10.0, 12.0, 8, is_last=False), tracks=[track])


def test_a_row_of_a_stream():
    first = event(0, en=text("A cat."), zh=text("一只猫"))
    second = event(1, {"en": "A cat.", "zh": "一只猫"}, en=text("It runs", "length"), zh=text("它跑了"))
    sample = clip(first, second, flags=["truncated:event_en"])
    assert track_row(sample, sample.tracks[0], "run-1") == {
        "track_id": "ab12-t000002",
        "asset_id": "ab12",
        "clip_index": 3,
        "object_index": 2,
        "object_id": 17,
        "start_s": 10.0,
        "end_s": 12.0,
        "prompts": [
            {
                **{"frame_index": 0, "type": "box", "source": "handover", "box": [1.0, 2.0, 3.0, 4.0], "points": [], "labels": []},
                **{"mask": None, "id": None},
            },
            {
                **{"frame_index": 4, "type": "points+mask", "source": "manifest", "box": None, "points": [[5.0, 6.0]], "labels": [1]},
                **{"mask": MASK, "id": "a7"},
            },
        ],
        "frames": [
            {
                **{"frame_index": 0, "timestamp_s": 10.0, "mask": MASK, "box_xyxy": [1.0, 2.0, 3.0, 4.0]},
                **{"object_score": 3.5, "predicted_iou": 0.9},
            },
            {"frame_index": 1, "timestamp_s": 10.25, "mask": None, "box_xyxy": None, "object_score": -2.0, "predicted_iou": 0.4},
        ],
        "caption_en": "It runs",
        "caption_zh": "它跑了",
        "events": [
            {
                **{"start_s": 10.0, "end_s": 11.0, "start_frame": 0, "end_frame": 3},
                **{"text_en": "A cat.", "text_en_logprob": -0.5, "text_en_finish": "stop"},
                **{"text_zh": "一只猫", "text_zh_logprob": -0.5, "text_zh_finish": "stop"},
                **{"history_en": None, "history_zh": None},
            },
            {
                **{"start_s": 11.0, "end_s": 12.0, "start_frame": 4, "end_frame": 7},
                **{"text_en": "It runs", "text_en_logprob": -0.5, "text_en_finish": "length"},
                **{"text_zh": "它跑了", "text_zh_logprob": -0.5, "text_zh_finish": "stop"},
                **{"history_en": "A cat.", "history_zh": "一只猫"},
            },
        ],
        "flags": ["truncated:event_en"],
        "run_id": "run-1",
    }


def test_what_was_not_asked_for_is_none():
    sample = clip(event(0, en=text("A cat.")))
    row = track_row(sample, sample.tracks[0], "run")
    assert (row["caption_en"], row["caption_zh"]) == ("A cat.", None)
    assert {row["events"][0][name] for name in ("text_zh", "text_zh_logprob", "text_zh_finish", "history_zh")} == {None}


def test_a_track_never_seen_has_a_row_without_events():
    row = track_row(clip(), clip().tracks[0], "run")
    assert (row["events"], row["caption_en"]) == ([], None)


def test_tracks_without_their_clip_are_refused():
    sample = clip()
    sample.clip = None
    with pytest.raises(SchemaError, match="ab12 has tracks but no clip"):
        track_row(sample, sample.tracks[0], "run")


def test_a_track_is_flagged_once_for_what_any_of_its_events_earns():
    loop = "a cat and a cat and a cat and a cat and a cat and"
    events = [event(0, en=text("It"), zh=text("...")), event(1, en=text(loop, "length"), zh=text("猫")), event(2, en=text(loop, "length"))]
    sample = clip(*events, flags=["history_cut:event_en"])
    for _ in range(2):
        assemble(sample, AssembleOptions())
        expected = ["history_cut:event_en", "empty_text:event_zh", "truncated:event_en", "repetition:event_en"]
        assert sample.tracks[0].flags == expected


def test_no_filter_drops_a_track():
    sample = clip(event(0, en=text("--")))
    assemble(sample, AssembleOptions(drop_empty_text=True, drop_below_logprob=-0.1, min_area_px=10_000))
    assert (len(sample.tracks), sample.dropped) == (1, {})
