"""One row of the `regions` table, as schemas/regions.v1.json has it, from one region."""

from __future__ import annotations

from typing import Any

from datagen.assemble.texts import clean_label, split_definition
from datagen.records import LANGUAGES, TASKS, Prompt, Region, Sample, Text


def region_row(sample: Sample, region: Region, run_id: str) -> dict[str, Any]:
    """Plain Python values for every column but `part_id`; columns of texts that were not asked for are None."""
    asset_id = sample.asset.asset_id
    row: dict[str, Any] = {
        "region_id": f"{asset_id}-{region.region_index:04d}",
        "asset_id": asset_id,
        "region_index": region.region_index,
        "prompt": _prompt(region.prompt),
        "mask": {"size": [int(n) for n in region.mask["size"]], "counts": region.mask["counts"]},
        "mask_source": region.mask_source,
        "box_xyxy": [float(n) for n in region.box_xyxy],
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
    return row | {"flags": list(region.flags), "run_id": run_id}


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        "type": prompt.type,
        "source": prompt.source,
        "box": None if prompt.box is None else [float(n) for n in prompt.box],
        "points": [[float(x), float(y)] for x, y in prompt.points],
        "labels": [int(n) for n in prompt.labels],
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
