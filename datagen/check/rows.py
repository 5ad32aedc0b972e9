"""What must hold within a row of `assets` and `regions`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from datagen.check.logprobs import region_logprob_problems
from datagen.check.masks import areas_and_boxes, box_problem, mask_problem
from datagen.check.prompts import prompt_problems
from datagen.check.report import Problem
from datagen.check.runs import RunFacts
from datagen.check.values import flag_problems, is_share, value_problems
from datagen.flags import MASK_SOURCES, OF_THE_FILE
from datagen.write.versions import region_id as id_of_region

STATUSES = ("ok", "empty", "failed")


class AssetFacts(NamedTuple):
    """What the regions of an asset are checked against. width and height in pixels."""

    num_regions: int
    width: int | None
    height: int | None
    run_id: str


def asset_facts(row: Mapping[str, Any]) -> AssetFacts:
    """The facts of a row of `assets`."""
    return AssetFacts(row["num_regions"], row["width"], row["height"], row["run_id"])


def asset_problems(row: Mapping[str, Any], part: str, runs: Mapping[str, RunFacts | None]) -> Iterator[Problem]:
    """What is wrong with a row of `assets`. runs: ids of the runs that left a record. A video's row must follow from its clips
    (check/videos.py), so what it says of them is not looked at here.
    """
    asset_id, media_type = row["asset_id"], row["media_type"]
    yield from provenance_problems(row, asset_id, part, runs)
    yield from value_problems(row, asset_id)
    of_clips = row["num_clips"], row["num_tracks"]
    if media_type == "image" and of_clips == (None, None):
        yield from outcome_problems(row, asset_id, "num_regions")
        given, left_out = row.get("num_prompts"), sum(drop["count"] for drop in row["dropped"] if drop["reason"] not in OF_THE_FILE)
        if given is not None and row["status"] != "failed" and row["num_regions"] + left_out != given:
            message = f"num_prompts is {given}, but {row['num_regions']} regions are there and {left_out} were left out"
            yield "prompt_count", message, asset_id
    elif media_type != "video" or None in of_clips or row["num_regions"]:
        counts = ", ".join(f"{name} {row[name]}" for name in ("num_regions", "num_clips", "num_tracks"))
        yield "media_type", f"media_type is {media_type!r} with {counts}; an image has regions, a video clips and tracks", asset_id


def provenance_problems(row: Mapping[str, Any], row_id: str, part: str, runs: Collection[str]) -> Iterator[Problem]:
    """Whether a row knows its part, and its run left a record."""
    if row["part_id"] != part:
        yield "part_id", f"the row says it is in part {row['part_id']}", row_id
    if row["run_id"] not in runs:
        yield "unknown_run", f"there is no record of its run {row['run_id']}", row_id


def outcome_problems(row: Mapping[str, Any], row_id: str, counted: str) -> Iterator[Problem]:
    """Whether status, error and size of a row of `assets` or `clips` agree, with the column that counts what was found, too."""
    status, count = row["status"], row[counted]
    if status not in STATUSES:
        yield "status", f"status is {status!r}; allowed: {', '.join(STATUSES)}", row_id
    elif (status == "ok") != (count > 0):
        yield "status", f"status {status} with {counted} {count}", row_id
    if status == "failed" and not (row["error_code"] and row["error_message"]):
        yield "failed_row", "failed, without a code and a message", row_id
    if status != "failed" and (row["error_code"] or row["error_message"]):
        yield "failed_row", f"status {status}, with the error {row['error_code']}: {row['error_message']}", row_id
    if status == "ok" and not (row["width"] and row["height"]):
        yield "asset_size", f"{counted} is {count}, but width {row['width']} and height {row['height']}", row_id
    if status != "failed" and row["sha256"] is None and counted == "num_regions":
        yield "asset_size", f"status {status}, but the file's sha256 is not known", row_id


def region_problems(
    rows: Sequence[Mapping[str, Any]], part: str, assets: Mapping[str, AssetFacts], deep: bool, version: int
) -> Iterator[Problem]:
    """What is wrong with rows of `regions` in the part of these assets. version: of the dataset's schemas."""
    decodable = []
    for row in rows:
        region_id, asset_id = row["region_id"], row["asset_id"]
        if region_id != (expected := id_of_region(asset_id, row["region_index"], version)):
            yield "region_id", f"should be {expected}", region_id
        if row["part_id"] != part:
            yield "part_id", f"the row says it is in part {row['part_id']}", region_id
        facts = assets.get(asset_id)
        if facts is None:
            yield "stray_region", f"its asset {asset_id} is not in the assets part of the same name", region_id
            continue
        if row["run_id"] != facts.run_id:
            yield "mixed_runs", f"run {row['run_id']}, while its asset is of run {facts.run_id}", region_id
        yield from _own_problems(row, facts)
        if deep:
            for wrong in region_logprob_problems(row):
                yield "token_logprobs", wrong, region_id
            problem = mask_problem(row["mask"], facts.height, facts.width)
            if problem:
                yield "mask", problem, region_id
            else:
                decodable.append(row)
    yield from _mask_differences(decodable)


def _own_problems(row: Mapping[str, Any], facts: AssetFacts) -> Iterator[Problem]:
    """Scores, flags and the prompt of a region."""
    region_id, score = row["region_id"], row["object_score"]
    if row["region_index"] < 0:
        yield "value", f"region_index is {row['region_index']}", region_id
    if row["mask_source"] not in MASK_SOURCES:
        yield "value", f"mask_source is {row['mask_source']!r:.80}; known are {', '.join(MASK_SOURCES)}", region_id
    for name in ("predicted_iou", "stability"):
        if not is_share(row[name]):
            yield "score", f"{name} is {row[name]}, not from 0 to 1", region_id
    if not math.isfinite(score) or (score <= 0) != ("absent" in row["flags"]):
        yield "object_score", f"object_score is {score}, and the flags are {row['flags']}: at 0 or below it is absent", region_id
    for wrong in flag_problems("regions", row["flags"]):
        yield "flags", wrong, region_id
    for wrong in prompt_problems(row["prompt"], facts.width, facts.height):
        yield "prompt", wrong, region_id


def _mask_differences(rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    areas, boxes = areas_and_boxes([row["mask"] for row in rows])
    for row, area, box in zip(rows, areas, boxes, strict=True):
        if row["area_px"] != area:
            yield "area", f"area_px is {row['area_px']}, the mask has {area} pixels", row["region_id"]
        problem = box_problem(row["box_xyxy"], box)
        if problem:
            yield "box", problem, row["region_id"]
