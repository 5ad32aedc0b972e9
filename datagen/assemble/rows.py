"""Rows of the `regions` and `tracks` tables, as schemas/ has them, from one region and one track."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from datagen.assemble.texts import clean_label, split_definition
from datagen.errors import SchemaError
from datagen.ids import region_id_of
from datagen.records import LANGUAGES, RLE, TASKS, Clip, Event, Prompt, Region, Sample, Text, Track, TrackFrame


def region_row(sample: Sample, region: Region, run_id: str, *, token_logprobs: bool = False) -> dict[str, Any]:
    """Plain Python values for every column but `part_id`; columns of texts that were not asked for are None.

    token_logprobs: with this column, whose numbers are NumPy arrays.
    """
    asset_id = sample.asset.asset_id
    row: dict[str, Any] = {
        "region_id": region_id_of(asset_id, region.region_index),
        "asset_id": asset_id,
        "region_index": region.region_index,
        "prompt": _prompt(region.prompt),
        "mask": _mask(region.mask),
        "mask_source": region.mask_source,
        "box_xyxy": _box(region.box_xyxy),
        "area_px": int(region.area_px),
        "predicted_iou": float(region.predicted_iou),
        "stability": float(region.stability),
        "object_score": float(region.object_score),
    }
    for task in TASKS:
        for language in LANGUAGES:
            row |= _text_columns(f"{task}_{language}", region.texts.get((task, language)))
    for language in LANGUAGES:
        row |= _answers(region, language)
    row |= {"flags": list(region.flags), "run_id": run_id}
    if token_logprobs:
        keys = [(task, language) for task in TASKS for language in LANGUAGES]
        told = [({"task": task, "language": language}, region.texts.get((task, language))) for task, language in keys]
        row["token_logprobs"] = _token_logprobs(told)
    return row


def track_row(sample: Sample, track: Track, run_id: str, *, token_logprobs: bool = False) -> dict[str, Any]:
    """Plain Python values for every column but `part_id`; texts and histories that do not exist are None.

    caption_<language> is what the last event says: of the whole clip when it is the only one, of the latest segment in a stream.
    start_s and end_s are the clip's. token_logprobs: with this column, whose numbers are NumPy arrays.
    """
    clip = _clip_of(sample)
    row: dict[str, Any] = {
        "track_id": track.track_id,
        "asset_id": sample.asset.asset_id,
        "clip_index": clip.clip_index,
        "object_index": track.object_index,
        "object_id": track.object_id,
        "start_s": float(clip.start_s),
        "end_s": float(clip.end_s),
        "prompts": [{"frame_index": index, **_prompt(track.prompts[index])} for index in sorted(track.prompts)],
        "frames": [_frame(frame) for frame in track.frames],
        **{f"caption_{language}": _last_text(track, language) for language in LANGUAGES},
        "events": [_event(event) for event in track.events],
        "flags": list(track.flags),
        "run_id": run_id,
    }
    if token_logprobs:
        events = [(number, event, language) for number, event in enumerate(track.events) for language in LANGUAGES]
        told = [({"event": number, "language": language}, event.texts.get(language)) for number, event, language in events]
        row["token_logprobs"] = _token_logprobs(told)
    return row


def _clip_of(sample: Sample) -> Clip:
    if sample.clip is None:
        raise SchemaError(f"{sample.asset.asset_id} has tracks but no clip; the decode step gives every video sample its clip")
    return sample.clip


def _frame(frame: TrackFrame) -> dict[str, Any]:
    return {
        "frame_index": int(frame.frame_index),
        "timestamp_s": float(frame.timestamp_s),
        "mask": None if frame.mask is None else _mask(frame.mask),
        "box_xyxy": None if frame.box_xyxy is None else _box(frame.box_xyxy),
        "object_score": float(frame.object_score),
        "predicted_iou": float(frame.predicted_iou),
    }


def _event(event: Event) -> dict[str, Any]:
    row: dict[str, Any] = {
        "start_s": float(event.start_s),
        "end_s": float(event.end_s),
        "start_frame": int(event.start_frame),
        "end_frame": int(event.end_frame),
    }
    for language in LANGUAGES:
        row |= _text_columns(f"text_{language}", event.texts.get(language))
    return row | {f"history_{language}": event.history.get(language) for language in LANGUAGES}


def _last_text(track: Track, language: str) -> str | None:
    text = track.events[-1].texts.get(language) if track.events else None
    return None if text is None else text.text


def _mask(mask: RLE) -> dict[str, Any]:
    return {"size": [int(n) for n in mask["size"]], "counts": mask["counts"]}


def _box(box: tuple[float, float, float, float]) -> list[float]:
    return [float(n) for n in box]


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        "type": prompt.type,
        "source": prompt.source,
        "box": None if prompt.box is None else _box(prompt.box),
        "points": [[float(x), float(y)] for x, y in prompt.points],
        "labels": [int(n) for n in prompt.labels],
        "mask": None if prompt.mask is None else _mask(prompt.mask),
        "id": prompt.id,
    }


def _text_columns(name: str, text: Text | None) -> dict[str, Any]:
    if text is None:
        return {name: None, f"{name}_logprob": None, f"{name}_finish": None}
    return {name: text.text, f"{name}_logprob": text.logprob, f"{name}_finish": text.finish_reason}


def _answers(region: Region, language: str) -> dict[str, str]:
    """Label and definition as read from their answers. Without a label task, the definition's label stands in, if it has one."""
    columns: dict[str, str] = {}
    definition, label = region.texts.get(("definition", language)), region.texts.get(("label", language))
    if definition is not None:
        own_label, columns[f"definition_{language}"] = split_definition(definition.text)
        if own_label is not None:
            columns[f"label_{language}"] = own_label
    if label is not None:
        columns[f"label_{language}"] = clean_label(label.text)
    return columns


def _token_logprobs(texts: Iterable[tuple[dict[str, Any], Text | None]]) -> list[dict[str, Any]]:
    """One entry for each (what names the text, text) that has them."""
    return [
        {
            **name,
            "tokenizer": tokens.tokenizer,
            "token_ids": tokens.token_ids,
            "logprobs": tokens.logprobs,
            "top_ids": tokens.top_ids.reshape(-1),
            "top_logprobs": tokens.top_logprobs.reshape(-1),
        }
        for name, text in texts
        if text is not None and (tokens := text.token_logprobs) is not None
    ]
