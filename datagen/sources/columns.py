"""Columns of a manifest: those with a meaning, and those that look as if they had one and are not read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from datagen.errors import SourceError
from datagen.sources.prompts import SHORTHANDS, Given, has_form

COLUMNS = ("uri", "asset_id", "license", "prompts", *SHORTHANDS)
"""Columns with a meaning; every other one passes through to `Asset.extra`."""

_BOX = '`box`: [x1, y1, x2, y2] in pixels, or several as `prompts`: [{"box": [...]}, ...]'
_POINTS = "`points`: [[x, y], ...] in pixels, with `labels`: [1, 0, ...] where some are outside the object"
_MASK = "`mask`: {size: [height, width], counts: ...}, run-length encoded as COCO does"
_PROMPTS = "`prompts`: [{box: ...}, {points: ...}, ...]"

_SIMILAR = {
    _BOX: (
        "bbox bboxes boxes boundingbox boundingboxes bndbox bndboxes box2d boxes2d bbox2d bboxes2d boxxyxy bboxxyxy boxesxyxy bboxesxyxy "
        "boxxywh bboxxywh xyxy xywh cxcywh ltrb ltwh rect rects rectangle rectangles roi rois x1 y1 x2 y2 x0 y0 xmin ymin xmax ymax minx "
        "miny maxx maxy bboxx bboxy bboxw bboxh bboxwidth bboxheight bboxx1 bboxy1 bboxx2 bboxy2 bboxxmin bboxymin bboxxmax bboxymax boxx1 "
        "boxy1 boxx2 boxy2 boxxmin boxymin boxxmax boxymax xcenter ycenter detections"
    ),
    _POINTS: "point pointcoords pointscoords coords click clicks keypoint keypoints pointlabel pointlabels pointslabels",
    _MASK: "masks segmentation segmentations segment rle rles maskrle maskrles polygon polygons poly polys annmask",
    _PROMPTS: "prompt annotation annotations anns objects instances",
    "`object_id`": "objectids objid trackid",
    "`frame`: its number in the video, from 0": "frameindex frameidx frameno framenumber frameid",
    "`time_s`: seconds after the video's first frame": "times time timesec timeseconds timestamps timestamp timems",
}
_VIDEO_COLUMNS = ("frame", "time_s", "object_id")
_ASKING = ("prompts", "box", "points", "mask")
_NOT_READ = "column `{}`, passed through and not read as a prompt"
_HINTS = {name: hint for hint, names in _SIMILAR.items() for name in names.split()}
# Of videos only: ordinary columns of pictures.
_OF_VIDEOS = {"frame", "times", "objectid"} | {name for name, hint in _HINTS.items() if hint.split("`")[1] in _VIDEO_COLUMNS}
_CORNERS = (("left", "top", "right", "bottom"), ("left", "top", "width", "height"))


def unread(names: Iterable[str], passed: Collection[str] = (), *, video: bool = False, read: Collection[str] = COLUMNS) -> dict[str, str]:
    """Columns that look like prompts, or like one of `read` in another spelling, and are not read: name -> what to write instead.

    passed: names that the job wants passed through as they are. video: the row is one, where also frames, times and objects are asked for.
    """
    keys = {name: _key(name) for name in names if name not in passed}
    asks = any(name in _ASKING for name in keys)
    known = {_key(name): f"`{name}`" for name in ("uri", "asset_id", "prompts", *_ASKING)}
    known |= {_key(name): f"`{name}`" for name in _VIDEO_COLUMNS}
    found: dict[str, str] = {}
    for name, key in keys.items():
        hint = known.get(key) or _HINTS.get(key)
        if hint and name not in read and (key not in _OF_VIDEOS or (video and asks)):
            found[name] = hint
    for corners in _CORNERS:
        if set(corners) <= set(keys.values()):
            found |= {name: _BOX for name, key in keys.items() if key in corners}
    if {"x", "y"} <= set(keys.values()) and not {"z", "zoom"} & set(keys.values()):  # those of a map's tile
        found |= {name: _POINTS for name, key in keys.items() if key in ("x", "y")}
    return found


def not_read(row: Mapping[str, Any], given: Given, passed: Collection[str], read: Collection[str] = COLUMNS) -> Iterator[str]:
    """What to count of a row that other tools made: each of its columns that looks like a prompt and was not read as one."""
    for name in _similar(tuple(map(str, row)), tuple(passed), tuple(read)):
        yield _NOT_READ.format(name)
    for name in _ASKING:
        value = row.get(name)
        if value in (None, "", []) or name in given.used or name in passed:
            continue
        if name in read or has_form(value, name):
            yield _NOT_READ.format(name)


@lru_cache(maxsize=256)
def _similar(names: tuple[str, ...], passed: tuple[str, ...], read: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(unread(names, passed, read=(*read, *_ASKING)))


def refuse_unread(where: str, names: Iterable[str], passed: Collection[str], *, video: bool = False) -> None:
    """Raises SourceError where columns look like prompts and would not be read. where: the manifest. video: they are of videos, too."""
    found = unread(names, passed, video=video)
    if found:
        said = "; ".join(f"`{name}`: write {hint}" for name, hint in found.items())
        raise SourceError(
            f"{where} has columns that look like prompts and are not read: {said}. To keep them as they are, in `extra` only, set "
            f"source.pass_through: [{', '.join(found)}]"
        )


def refuse_without_uri(path: str, names: Collection[str]) -> None:
    """Raises SourceError where no column is `uri`."""
    if not names or "uri" in names:
        return
    nearest = difflib.get_close_matches("uri", names, n=1)
    hint = f"rename `{nearest[0]}` to `uri`" if nearest else "name the column with the files' paths `uri`"
    if path.lower().endswith(".parquet"):
        hint += "; or name a column that holds the pictures themselves, as bytes, in source.image_column"
    raise SourceError(
        f"{path} has no column `uri`; found: {', '.join(names)}; known: {', '.join(COLUMNS)}, any other passes through. {hint}"
    )


def refuse_doubled(where: str, names: Iterable[str]) -> None:
    """Raises SourceError where two columns have one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SourceError(f"{where} has two columns of the name `{name}`, of which one would be lost; rename one")
        seen.add(name)


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
