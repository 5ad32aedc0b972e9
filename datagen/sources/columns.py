"""Columns of a manifest: those with a meaning, and those that look as if they had one and are not read."""

from __future__ import annotations

import difflib
import re
from collections import Counter
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
_FILE_COLUMN = re.compile(r"(?:images?|img|video|media)?(?:uris?|urls?|paths?|files?|filenames?|filepath|gcsuri)|images?|img|video")
_VIDEO_COLUMNS = ("frame", "time_s", "object_id")
ASKING = ("prompts", "box", "points", "mask")
"""Columns of which each alone asks for something."""
_NOT_READ = "column `{}`, passed through and not read as a prompt"
_HINTS = {name: hint for hint, names in _SIMILAR.items() for name in names.split()}
# Of videos only: ordinary columns of pictures.
_OF_VIDEOS = {"frame", "times", "objectid"} | {name for name, hint in _HINTS.items() if hint.split("`")[1] in _VIDEO_COLUMNS}
_CORNERS = (
    *(("left", "top", "right", "bottom"), ("left", "top", "width", "height"), ("xtl", "ytl", "xbr", "ybr"), ("bx", "by", "bw", "bh")),
    *(("cx", "cy", "w", "h"), ("cx", "cy", "width", "height")),
)

# Longer names by their words: `gt_boxes`, `input_points`, `boundingBoxAnnotations`. What says of boxes anything but where they are is none.
_WORDS = re.compile(r"\d+[dD](?![a-z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_VOCABULARY = {
    "box": "box boxes bbox bboxes bndbox bndboxes",
    "outline": "polygon polygons segmentation segmentations rle rles",
    "point": "point points click clicks keypoint keypoints",
    "mask": "mask masks",
    "which points": "input prompt prompts positive negative pos neg fg bg 2d x y xy coord coords coordinates",
    "where": (
        "xyxy xywh cxcywh xyxyn xywhn ltrb ltwh yolo coco voc norm normed normalized normalised rel relative abs absolute px pixel pixels "
        "2d x y w h cx cy min max xmin ymin xmax ymax left top right bottom width height center centre coord coords coordinates json str "
        "list gt pred prompt prompts annotation annotations rle rles polygon polygons path paths dir file files filename url urls uri uris"
    ),
    "else": (
        "num n nr no count counts number total has is with without 3d area areas score scores conf confidence confidences id ids type "
        "types color colour name names label labels class classes category categories iou size sizes format version ratio quality"
    ),
}
_MEANING = {kind: frozenset(words.split()) for kind, words in _VOCABULARY.items()}

_NESTED_NAMES = (
    r"bbox(?:es)?|box(?:es)?|bounding_?(?:box|boxes|poly)|bndbox|polygons?|segmentations?|keypoints|all_points_x|rectangle(?:labels)?"
)
_NESTED = re.compile(_NESTED_NAMES, re.IGNORECASE)
_NESTED_TEXT = re.compile(rf'"(?:{_NESTED_NAMES}|rect)"\s*[:,}}]', re.IGNORECASE)
_MOST_KINDS = 100
_CHARS_LOOKED_AT, _VALUES_LOOKED_AT, _ITEMS_LOOKED_AT = 1 << 16, 4096, 8


def unread(names: Iterable[str], passed: Collection[str] = (), *, video: bool = False, read: Collection[str] = COLUMNS) -> dict[str, str]:
    """Columns that look like prompts, or like one of `read` in another spelling, and are not read: name -> what to write instead.

    passed: names that the job wants passed through as they are. video: the row is one, where also frames, times and objects are asked for.
    """
    keys = {name: _key(name) for name in names if name not in passed}
    asks = any(name in ASKING for name in keys)
    known = {_key(name): f"`{name}`" for name in ("uri", "asset_id", "prompts", *ASKING)}
    known |= {_key(name): f"`{name}`" for name in _VIDEO_COLUMNS}
    found: dict[str, str] = {}
    for name, key in keys.items():
        hint = known.get(key) or _HINTS.get(key) or _hint_of_words(name)
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
    similar = _similar(tuple(map(str, row)), tuple(passed), tuple(read))
    for name in similar:
        yield _NOT_READ.format(name)
    if not given.num:
        yield from nested(row, {*passed, *similar, *ASKING}, read)
    for name in ASKING:
        value = row.get(name)
        if value in (None, "", []) or name in given.used or name in passed:
            continue
        if name in read or has_form(value, name):
            yield _NOT_READ.format(name)


def count(skipped: Counter[str], kinds: Iterable[str]) -> None:
    """Count what `not_read` or `nested` says; names may be as many as rows, so of very many only the first are told apart."""
    for kind in kinds:
        is_new = kind not in skipped and len(skipped) >= _MOST_KINDS
        skipped["further columns, passed through and not read as prompts" if is_new else kind] += 1


def nested(row: Mapping[str, Any], passed: Collection[str], read: Collection[str] = COLUMNS) -> Iterator[str]:
    """What to count of a row without prompts: each column within which boxes, outlines or points of other tools lie, also as JSON text."""
    for name, value in row.items():
        if name not in read and name not in passed and _holds_prompts(value):
            yield _NOT_READ.format(name)


def _holds_prompts(value: Any) -> bool:
    if isinstance(value, str):
        return '"' in value and _NESTED_TEXT.search(value, 0, _CHARS_LOOKED_AT) is not None
    level, left = [value], _VALUES_LOOKED_AT
    while level and left > 0:
        left -= len(level)
        mappings = [one for one in level if isinstance(one, Mapping)]
        if any(inner not in (None, "", []) and _NESTED.fullmatch(str(key)) for one in mappings for key, inner in one.items()):
            return True
        lists = [one for one in level if isinstance(one, (list, tuple))]
        level = [inner for one in (*(one.values() for one in mappings), *(one[:_ITEMS_LOOKED_AT] for one in lists)) for inner in one]
        level = [inner for inner in level if isinstance(inner, (Mapping, list, tuple))]
    return False


@lru_cache(maxsize=256)
def _similar(names: tuple[str, ...], passed: tuple[str, ...], read: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(unread(names, passed, read=(*read, *ASKING)))


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
    nearest = [name for name in names if _FILE_COLUMN.fullmatch(_key(name))] or difflib.get_close_matches("uri", names, n=1)
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


def _hint_of_words(name: str) -> str | None:
    """What to write instead of a column whose name has words for boxes, outlines, masks or points, and none for another thing."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if len(words) < 2:
        return _PROMPTS if difflib.get_close_matches(_key(name), ["prompts"], n=1, cutoff=0.85) else None
    if _MEANING["else"] & set(words):
        return _POINTS if {"labels", "label"} & set(words) and {"input", "prompt"} & set(words) else None
    for meant, hint in ((_MEANING["box"], _BOX), (_MEANING["outline"], _MASK)):
        places = [place for place, word in enumerate(words) if word in meant]
        if places and all(word in _MEANING["where"] or word.isdecimal() for word in words[places[-1] + 1 :]):
            return hint
    if (
        _MEANING["mask"] & set(words)
        and words[0] in _MEANING["mask"] | {"input", "prompt"}
        and set(words[1:]) <= _MEANING["where"] | _MEANING["mask"]
    ):
        return _MASK
    if _MEANING["point"] & set(words) and set(words) <= _MEANING["point"] | _MEANING["which points"]:
        return _POINTS
    return None


def _key(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
