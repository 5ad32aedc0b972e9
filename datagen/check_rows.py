"""What must hold within a row of `assets` and `regions`; masks are decoded, not trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

STATUSES = ("ok", "empty", "failed")
_MAX_CHARACTERS_PER_RUN = 7
_MASKS_PER_CALL = 255  # pycocotools counts the masks of a call in one byte

Problem = tuple[str, str, str | None]


class AssetFacts(NamedTuple):
    """What the regions of an asset are checked against. width and height in pixels."""

    status: str
    num_regions: int
    width: int | None
    height: int | None
    run_id: str


def asset_facts(row: Mapping[str, Any]) -> AssetFacts:
    """The facts of a row of `assets`."""
    return AssetFacts(row["status"], row["num_regions"], row["width"], row["height"], row["run_id"])


def asset_problems(row: Mapping[str, Any], part: str, runs: set[str]) -> Iterator[Problem]:
    """(code, message, asset_id) of what is wrong with a row of `assets`. runs: ids of the runs that left a record."""
    asset_id, status, num_regions = row["asset_id"], row["status"], row["num_regions"]
    if row["part_id"] != part:
        yield "part_id", f"the row says it is in part {row['part_id']}", asset_id
    if row["run_id"] not in runs:
        yield "unknown_run", f"there is no record of its run {row['run_id']}", asset_id
    if status not in STATUSES:
        yield "status", f"status is {status!r}; allowed: {', '.join(STATUSES)}", asset_id
    if status == "failed" and not (row["error_code"] and row["error_message"]):
        yield "failed_row", "failed, without a code and a message", asset_id
    if status != "failed" and (row["error_code"] or row["error_message"]):
        yield "failed_row", f"status {status}, with the error {row['error_code']}: {row['error_message']}", asset_id
    if (status == "ok") != (num_regions > 0):
        yield "status", f"status {status} with num_regions {num_regions}", asset_id
    if status == "ok" and not (row["width"] and row["height"]):
        yield "asset_size", f"regions, but width {row['width']} and height {row['height']}", asset_id


def region_problems(rows: Sequence[Mapping[str, Any]], part: str, assets: Mapping[str, AssetFacts], deep: bool) -> Iterator[Problem]:
    """(code, message, region_id) of what is wrong with rows of `regions` in the part of these assets."""
    decodable = []
    for row in rows:
        region_id, asset_id = row["region_id"], row["asset_id"]
        if region_id != f"{asset_id}-{row['region_index']:04d}":
            yield "region_id", f"should be {asset_id}-{row['region_index']:04d}", region_id
        if row["part_id"] != part:
            yield "part_id", f"the row says it is in part {row['part_id']}", region_id
        facts = assets.get(asset_id)
        if facts is None:
            yield "stray_region", f"its asset {asset_id} is not in the assets part of the same name", region_id
            continue
        if row["run_id"] != facts.run_id:
            yield "mixed_runs", f"run {row['run_id']}, while its asset is of run {facts.run_id}", region_id
        if deep:
            problem = _mask_problem(row["mask"], facts)
            if problem:
                yield "mask", problem, region_id
            else:
                decodable.append(row)
    for start in range(0, len(decodable), _MASKS_PER_CALL):
        yield from _mask_differences(decodable[start : start + _MASKS_PER_CALL])


def rle_runs(counts: str) -> np.ndarray:
    """Run lengths, (runs,) int64, of COCO's compressed string, background first. Raises ValueError when it is none.

    5 bits per character (offset 48, low bits first); bit 6 says that more follow, bit 5 of the last one is the sign. From the
    fourth run on, the difference to the run two before is stored. pycocotools reads past the end of a string that breaks this.
    """
    bits = np.frombuffer(counts.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not bits.size or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise ValueError("counts is no compressed run-length string")
    ends = np.flatnonzero((bits & 32) == 0)
    lengths = np.diff(ends, prepend=-1)
    if lengths.max() > _MAX_CHARACTERS_PER_RUN:
        raise ValueError("counts holds a number that no picture has")
    starts = ends - lengths + 1
    shifts = 5 * (np.arange(bits.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts)
    runs -= np.where(bits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _mask_problem(mask: Mapping[str, Any], facts: AssetFacts) -> str | None:
    size = list(mask["size"])
    if size != [facts.height, facts.width]:
        return f"size is {size}, the image's is {[facts.height, facts.width]} (height, width)"
    try:
        runs = rle_runs(mask["counts"])
    except ValueError as error:
        return str(error)
    if runs.min() < 0 or runs.sum() != size[0] * size[1]:
        return f"the runs cover {runs.sum()} pixels, the image has {size[0] * size[1]}"
    return None


def _mask_differences(rows: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    """Area and box as stored, against those of the mask as pycocotools reads it."""
    masks = [{"size": row["mask"]["size"], "counts": row["mask"]["counts"].encode()} for row in rows]
    areas = coco_mask.area(masks)
    boxes = coco_mask.toBbox(masks)
    boxes[:, 2:] += boxes[:, :2]
    for row, area, box in zip(rows, areas, boxes, strict=True):
        if row["area_px"] != area:
            yield "area", f"area_px is {row['area_px']}, the mask has {area} pixels", row["region_id"]
        stored = row["box_xyxy"]
        if len(stored) != 4 or not np.allclose(stored, box, rtol=0, atol=0.01):
            yield "box", f"box_xyxy is {stored}, the mask's is {box.tolist()}", row["region_id"]
