"""A COCO or LVIS annotation file, read and checked once, for the source of prompts and for the gold of `datagen eval`.

An entry that makes no sense costs itself. What makes the whole file ambiguous (two images, or two categories, with one id) is refused
by name, and so is a file of another kind. Ids are compared as text, so that `7`, `"7"` and `7.0` are one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datagen.errors import PromptError, SourceError
from datagen.job import S3Options
from datagen.masks import mask_area
from datagen.records import RLE, Prompt
from datagen.sources.json_text import is_deep, parse_document
from datagen.sources.prompts import PromptRefusedError, refuse_shares
from datagen.sources.rle import is_number, parse_polygons, parse_rle, whole_number
from datagen.sources.rows import open_source_file
from datagen.sources.values import plain, shown

Box = tuple[float, float, float, float]

NESTED = "prompt_nested"
"""Code of an annotation with a field that is nested too deeply."""

# What of an annotation becomes its prompt, and is not kept a second time.
_SHAPE_KEYS = ("image_id", "category_id", "bbox", "segmentation", "iscrowd")
_IMAGE_KEYS = ("id", "file_name", "width", "height", "license")
_MAX_COORDINATE = 1e9
_EXAMPLES = 3


@dataclass(slots=True)
class CocoAnnotation:
    """One annotation. raw: as it stands in the file. key: its id as text, None where it has none. category: the name."""

    raw: Mapping[str, Any]
    key: str | None
    category: str | None
    is_crowd: bool

    @property
    def name(self) -> str:
        """For messages."""
        return f"annotation {shown(self.raw.get('id'))}"

    def box(self) -> Box:
        """Its `bbox` as (x1, y1, x2, y2) px. Raises PromptError: `prompt_empty` (none), `prompt_malformed`, `prompt_nan`,
        `prompt_inverted` (a side of 0 or less), `prompt_outside` (beyond any picture), `prompt_shares` (of the sides, no pixels)."""
        value = self.raw.get("bbox")
        if value is None or value == []:
            raise PromptError("it has no bbox", code="prompt_empty")
        if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(map(is_number, value)):
            raise PromptError(f"its bbox is not [x, y, width, height], found {shown(value)}", code="prompt_malformed")
        if any(side != side for side in value):  # NaN; math.isnan fails on a number that is too large for a float
            raise PromptError(f"its bbox holds a number that is none: {shown(value)}", code="prompt_nan")
        if any(abs(side) > _MAX_COORDINATE for side in value):
            raise PromptError(f"its bbox lies beyond any picture: {shown(value)}", code="prompt_outside")
        x, y, width, height = map(float, value)
        if width <= 0 or height <= 0:
            raise PromptError(f"its bbox is {width:g} px wide and {height:g} px high", code="prompt_inverted")
        corners = x, y, x + width, y + height
        _refuse_shares("bbox", Prompt(box=corners))
        return corners

    def mask(self, size: tuple[int, int] | None) -> RLE:
        """Its `segmentation`. size: (width, height) px of the picture, if it is known; polygons cannot do without.

        Raises PromptError: `prompt_empty` (none, or without a pixel), `prompt_mask_size` (an RLE of another picture), `prompt_shares`
        (corners are shares of the sides, no pixels), `prompt_mask`.
        """
        value = self.raw.get("segmentation")
        if value is None or value in ([], {}):
            raise PromptError("it has no segmentation", code="prompt_empty")
        try:
            rle = parse_rle(value) if isinstance(value, Mapping) else _polygons(value, size)
        except ValueError as error:
            raise PromptError(str(error), code="prompt_mask") from error
        if size is not None and rle["size"] != [size[1], size[0]]:
            height, width = rle["size"]
            message = f"its mask is of a picture of {width} x {height}, the file says {size[0]} x {size[1]} (width x height)"
            raise PromptError(message, code="prompt_mask_size")
        if mask_area(rle) == 0:
            raise PromptError("its segmentation has no pixel", code="prompt_empty")
        return rle

    def extra(self) -> dict[str, Any]:
        """What else the file says of it, ready for JSON: its id and category, and every field that is not its shape."""
        told = {"id": None, "category": self.category, "category_id": self.raw.get("category_id"), "iscrowd": self.is_crowd}
        told |= {key: value for key, value in self.raw.items() if key not in _SHAPE_KEYS}
        return {str(plain(str(key))): plain(value) for key, value in told.items() if not is_deep(value)}

    def check_fields(self) -> None:
        """Raise PromptError (`prompt_nested`) when a field is nested too deeply to be kept."""
        deep = next((key for key, value in self.raw.items() if key not in _SHAPE_KEYS and is_deep(value)), None)
        if deep is not None:
            raise PromptError(f"its field {shown(deep)} is nested too deeply", code=NESTED)


@dataclass(slots=True)
class CocoImage:
    """One image. place: of its entry in the file, from 1. key: its id as text. size: (width, height) px as stated, None where not.

    problem: why its entry cannot be used, empty where it can.
    """

    raw: Mapping[str, Any]
    place: int
    key: str | None = None
    size: tuple[int, int] | None = None
    license: str | None = None
    problem: str = ""
    annotations: list[CocoAnnotation] = field(default_factory=list)

    @property
    def id(self) -> Any:
        """As it stands in the file, ready for JSON; None where it is no id."""
        return plain(self.raw.get("id")) if self.key is not None else None

    def text(self, name: str) -> str:
        """A field that is a text, empty where it is not."""
        value = self.raw.get(name)
        return value.strip() if isinstance(value, str) else ""

    def extra(self) -> dict[str, Any]:
        """Every further field of the entry, ready for JSON."""
        more: dict[str, Any] = plain({key: value for key, value in self.raw.items() if key not in _IMAGE_KEYS and not is_deep(value)})
        stated = self.raw.get("license")
        if self.license is None and stated is not None and not is_deep(stated):
            more["license"] = plain(stated)
        return more


@dataclass(slots=True)
class Document:
    """A whole file. images: in file order, each with its annotations in file order. has_annotations: whether it has such a key.

    lost: annotations of no image of the file, and categories without a name, by what is wrong; examples: of the former, for a message.
    """

    path: str
    images: list[CocoImage]
    has_annotations: bool
    lost: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def annotations(self) -> Iterator[CocoAnnotation]:
        """All that belong to an image."""
        for image in self.images:
            yield from image.annotations


def read_document(path: str, s3: S3Options | None = None) -> Document:
    """Read and check a COCO or LVIS file, here or in a bucket.

    Raises SourceError when it cannot be read, is of another kind, or gives one id to two images or categories.
    """
    document = _load(path, s3 or S3Options())
    named = _entries(path, document, "categories")
    categories = _names(path, "category", named)
    licenses = _names(path, "license", _entries(path, document, "licenses"))
    images = [_image(entry, place, licenses) for place, entry in enumerate(document["images"], start=1)]
    if images and not any(map(_is_record, document["images"])):
        raise SourceError(f"{path} is not COCO: every entry of `images` is an object whose ids are numbers or text")
    found = Document(path, images, "annotations" in document)
    if nameless := sum(not _is_named(entry) for entry in named):
        found.lost["category without an id and a name"] = nameless
    by_key = _by_key(path, images)
    for entry in _entries(path, document, "annotations"):
        if not isinstance(entry, Mapping):
            found.lost["annotation that is no object"] += 1
            continue
        key = id_key(entry.get("image_id"))
        if key is not None and key in by_key:
            by_key[key].annotations.append(_annotation(entry, categories))
            continue
        found.lost["annotation of an unknown image"] += 1
        if len(found.examples) < _EXAMPLES:
            of_image = f"of image {shown(entry.get('image_id'))}, which the file has not" if "image_id" in entry else "of no image"
            found.examples.append(f"annotation {shown(entry.get('id'))} is {of_image}")
    return found


def id_key(value: Any) -> str | None:
    """An id as text, the same for a whole number however it is written; None for what is no id."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _polygons(value: Any, size: tuple[int, int] | None) -> RLE:
    if size is None:
        raise ValueError("polygons need the picture's `width` and `height`, which the file does not say")
    mask = parse_polygons(value, size[1], size[0])
    corners = [corner for polygon in value for corner in zip(polygon[0::2], polygon[1::2], strict=True)]
    _refuse_shares("segmentation", Prompt(points=corners))
    return mask


def _refuse_shares(name: str, shape: Prompt) -> None:
    try:
        refuse_shares(shape)
    except PromptRefusedError as error:
        raise PromptError(f"its {name}: {error}", code=error.code) from error


def _load(path: str, s3: S3Options) -> dict[str, Any]:
    try:
        with open_source_file(path, s3) as file:
            document = parse_document(file.read())
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if (other := _other_kind(document)) is not None:
        raise SourceError(f"{path} {other}")
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        found = ", ".join(shown(key).strip("'") for key in list(document)[:8]) if isinstance(document, dict) else type(document).__name__
        raise SourceError(f"{path} is not COCO: it needs a list `images` (and `annotations`, `categories`), found {found}")
    return document


def _other_kind(document: Any) -> str | None:
    """What a file is that looks like COCO's annotations and is something else, and what to do."""
    if isinstance(document, list):
        first = next((entry for entry in document if isinstance(entry, dict)), {})
        if "image_id" in first and ("score" in first or "category_id" in first or "caption" in first):
            return (
                "is a COCO results file (a list of detections or captions), which does not say where its images are; put the list into the "
                "annotation file as `annotations`, beside its `images` and `categories`"
            )
        return None
    if not isinstance(document, dict):
        return None
    if isinstance(document.get("videos"), list):
        return (
            "is of videos (it has `videos`, as YouTube-VIS has); it is no list of pictures. Leave source.kind at `auto`, "
            "or set it to `frames`"
        )
    if isinstance(document.get("image"), dict) and "images" not in document:
        return "is of one picture (`image`, as SA-1B has); give the folder or tar of its pictures, or put it into a list `images`"
    entries = document.get("annotations")
    some = [entry for entry in entries[:1000] if isinstance(entry, dict)] if isinstance(entries, list) else []
    if some and all("segments_info" in entry for entry in some):
        return (
            "is a COCO panoptic file, whose masks are in PNG files beside it; convert it with panopticapi's "
            "panoptic2detection_coco_format.py and give the result"
        )
    if some and all("caption" in entry and "bbox" not in entry and "segmentation" not in entry for entry in some):
        return (
            "is a COCO captions file: it has texts for whole pictures and no object; give an instances file, or the folder of the pictures"
        )
    return None


def _entries(path: str, document: Mapping[str, Any], name: str) -> Sequence[Any]:
    entries = document.get(name)
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise SourceError(f"{path} is not COCO: `{name}` is a list, found {shown(entries)}")
    return entries


def _names(path: str, what: str, entries: Sequence[Any]) -> dict[str, str]:
    """Id -> name. An entry without either is passed over: what refers to it has no name then."""
    names: dict[str, str] = {}
    for entry in entries:
        if not _is_named(entry):
            continue
        key, text = str(id_key(entry["id"])), str(plain(str(entry["name"])))
        if names.setdefault(key, text) != text:
            raise SourceError(f"{path}: two entries have the {what} id {key}: {names[key]!r} and {text!r}; give each its own")
    return names


def _is_named(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and id_key(entry.get("id")) is not None
        and isinstance(name := entry.get("name"), (str, int, float))
        and name != ""
    )


def _image(entry: Any, place: int, licenses: Mapping[str, str]) -> CocoImage:
    if not isinstance(entry, Mapping):
        return CocoImage({}, place, problem=f"an image is an object, found {shown(entry)}")
    image = CocoImage(entry, place, id_key(entry.get("id")), license=_license(entry.get("license"), licenses))
    if image.key is None and entry.get("id") is not None:
        image.problem = f"its id is a number or a text, found {shown(entry['id'])}"
    elif (deep := next((key for key, value in entry.items() if is_deep(value)), None)) is not None:
        image.problem = f"its field {shown(deep)} is nested too deeply"
    else:
        _set_size(image)
    return image


def _set_size(image: CocoImage) -> None:
    """0, -1 and null are what tools write for a size that they do not know."""
    sides = [image.raw.get(name) for name in ("width", "height")]
    whole = [0 if side is None else whole_number(side) for side in sides]
    if any(side is None or side >= 2**31 for side in whole):
        image.problem = f"its width and height are pixels, found {shown(sides[0])} and {shown(sides[1])}"
    elif all(side is not None and side > 0 for side in whole):
        image.size = whole[0] or 0, whole[1] or 0


def _license(value: Any, licenses: Mapping[str, str]) -> str | None:
    key = id_key(value)
    if key is not None and key in licenses:
        return licenses[key]
    return str(plain(value)) if isinstance(value, str) and whole_number(value) is None and value.strip() else None


def _is_record(entry: Any) -> bool:
    return isinstance(entry, Mapping) and (entry.get("id") is None or id_key(entry["id"]) is not None)


def _by_key(path: str, images: Sequence[CocoImage]) -> dict[str, CocoImage]:
    """Refuses two images of one id; an entry that is there twice word by word counts once."""
    found: dict[str, CocoImage] = {}
    for image in images:
        if image.key is None:
            continue
        other = found.setdefault(image.key, image)
        if other is not image and other.raw != image.raw:
            names = " and ".join(shown(one.text("file_name") or one.text("coco_url")) for one in (other, image))
            raise SourceError(
                f"{path}: two images have the id {image.key}: {names} (entries {other.place} and {image.place}), so that nobody knows "
                "whose an annotation is; number the images of merged files anew"
            )
    return found


def _annotation(entry: Mapping[str, Any], categories: Mapping[str, str]) -> CocoAnnotation:
    category = id_key(entry.get("category_id"))
    crowd = entry.get("iscrowd")
    if isinstance(crowd, str):
        crowd = crowd.strip().lower() == "true" or whole_number(crowd)
    is_crowd = bool(whole_number(crowd)) if isinstance(crowd, float) else bool(crowd)
    return CocoAnnotation(entry, id_key(entry.get("id")), categories.get(category) if category else None, is_crowd)
