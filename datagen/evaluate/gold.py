"""Gold to measure against: a datagen dataset, or a COCO or LVIS JSON file, as objects per picture and tracks per video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datagen.errors import PromptError, SourceError
from datagen.evaluate.items import Item, Medium, TrackItem, items_of, media_of, tracks_of
from datagen.evaluate.matching import path_parts
from datagen.job import S3Options
from datagen.masks import Box
from datagen.records import RLE
from datagen.sources.coco_document import CocoAnnotation, CocoImage, Document, id_key, read_document
from datagen.sources.rows import absolute
from datagen.sources.values import shown
from datagen.write import open_dataset
from datagen.write.marker import check_marker
from datagen.write.store import Store

Size = tuple[int, int]
_MOST_PROBLEMS = 20
# What RefCOCO, RefCOCOg and their like call the text of a sentence.
_SENTENCE_KEYS = ("sent", "raw", "sentence", "caption", "text")


@dataclass(slots=True)
class Truth:
    """What is true of one picture. crowds: masks of many objects at once, in which whatever is found counts neither way; crowd_ids: of
    their annotations. unusable: annotations that cannot be measured against, by code, and problems: what is wrong with them."""

    items: list[Item] = field(default_factory=list)
    crowds: list[RLE] = field(default_factory=list)
    crowd_ids: set[str] = field(default_factory=set)
    unusable: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Gold:
    """images: pictures in order; `truth(image, size)` says what is true of one, of which the dataset says that it has this size.

    videos, tracks: by asset id. problems: what in gold could not be used at all.
    """

    where: str
    images: list[Medium]
    truth: Callable[[Medium, Size | None], Truth]
    videos: list[Medium] = field(default_factory=list)
    tracks: dict[str, list[TrackItem]] = field(default_factory=dict)
    unusable: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    is_coco: bool = False

    def ids_of(self, asset: Medium) -> tuple[str, ...]:
        """The ids by which a dataset's picture may be one of gold: its own, or for a COCO file those of the entries it was listed from."""
        if not self.is_coco:
            return (asset.key,)
        several = asset.extra.get("coco_image_ids")
        listed = several if isinstance(several, list) else [asset.extra.get("coco_image_id")]
        return tuple(key for key in map(id_key, listed) if key is not None)


def read_gold(where: str) -> Gold:
    """Gold from a dataset's folder or a COCO/LVIS `.json`. Raises SourceError when it is neither, or has no object."""
    if where.lower().endswith(".json"):
        try:
            document = read_document(absolute(where), S3Options())
        except SourceError as error:
            raise SourceError(f"cannot read the gold {where}: {error.message}") from error
        if not document.has_annotations:
            raise SourceError(f"{where} is no COCO or LVIS file with truth in it: it needs the lists `images` and `annotations`")
        return _from_coco(document)
    return _from_dataset(where, open_dataset(where))


def _from_dataset(where: str, store: Store) -> Gold:
    check_marker(store)
    media, items, tracks = media_of(store), items_of(store), tracks_of(store)
    if not items and not tracks:
        raise SourceError(f"{where} has no object to measure against")
    images = [medium for medium in media["image"].values() if not medium.failed]
    videos = [medium for medium in media["video"].values() if not medium.failed or medium.key in tracks]
    return Gold(where, images, lambda image, _: Truth(items.get(image.key, [])), videos, tracks)


def _from_coco(document: Document) -> Gold:
    """Annotations in file order. Two entries of one file are one picture."""
    groups: dict[Any, list[CocoImage]] = {}
    for image in document.images:
        name = image.text("file_name") or image.text("coco_url")
        groups.setdefault(tuple(path_parts(name)) or image.place, []).append(image)
    media: list[Medium] = []
    images: dict[str, list[CocoImage]] = {}
    gold = Gold(document.path, media, lambda medium, size: _truth(images[medium.key], medium.size or size), is_coco=True)
    gold.unusable, gold.problems = Counter(document.lost), list(document.examples)
    for group in groups.values():
        problem = next((image.problem for image in group if image.problem), "") or _sizes_of_one_file(group)
        if problem:
            gold.unusable["image"] += 1
            gold.problems.append(f"image {group[0].place}: {problem}")
            continue
        medium = _coco_medium(group)
        media.append(medium)
        images[medium.key] = group
    if not any(annotation for group in images.values() for image in group for annotation in image.annotations):
        raise SourceError(f"{document.path} has no object to measure against{_because(gold.problems)}")
    _refuse_useless(gold)
    return gold


def _refuse_useless(gold: Gold) -> None:
    """Raise SourceError when no annotation can be measured against, naming the first."""
    problems: list[str] = []
    for image in gold.images:
        truth = gold.truth(image, None)
        if truth.items:
            return
        problems += truth.problems
    raise SourceError(f"{gold.where} has no object to measure against{_because([*problems, *gold.problems])}")


def _because(problems: list[str]) -> str:
    return f": {problems[0]}" if problems else ""


def _coco_medium(group: list[CocoImage]) -> Medium:
    first = group[0]
    keys = tuple(image.key for image in group if image.key is not None)
    names = tuple(name for name in (first.text("file_name"), first.text("coco_url")) if name)
    size = next((image.size for image in group if image.size is not None), None) or _size_of_masks(group)
    return Medium(f"#{first.place}", keys, names or (f"image {shown(first.raw.get('id'))}",), size)


def _sizes_of_one_file(group: list[CocoImage]) -> str:
    sizes = {image.size for image in group if image.size is not None}
    return f"its entries state different sizes, {' and '.join(f'{w} x {h}' for w, h in sorted(sizes))}" if len(sizes) > 1 else ""


def _size_of_masks(group: list[CocoImage]) -> Size | None:
    """Of the first mask that says its own."""
    for annotation in _annotations(group):
        if isinstance(annotation.raw.get("segmentation"), Mapping):
            try:
                height, width = annotation.mask(None)["size"]
            except PromptError:
                continue
            return width, height
    return None


def _annotations(group: list[CocoImage]) -> Iterator[CocoAnnotation]:
    for image in group:
        yield from image.annotations


def _truth(group: list[CocoImage], size: Size | None) -> Truth:
    truth = Truth()
    for number, annotation in enumerate(_annotations(group)):
        try:
            mask = _mask(annotation, size)
        except PromptError as error:
            truth.unusable[error.code] += 1
            if len(truth.problems) < _MOST_PROBLEMS:
                truth.problems.append(f"{annotation.name} has no usable segmentation: {error.message}")
            continue
        if annotation.is_crowd:
            truth.crowds += [mask] if mask is not None else []
            truth.crowd_ids |= {annotation.key} if annotation.key is not None else set()
        else:
            truth.items.append(Item(number, mask, _coco_texts(annotation), id=annotation.key, box=_box(annotation, size)))
    return truth


def _mask(annotation: CocoAnnotation, size: Size | None) -> RLE | None:
    """None for polygons of a picture whose size nobody says, as it is not there."""
    segmentation = annotation.raw.get("segmentation")
    if size is None and isinstance(segmentation, list) and segmentation:
        return None
    return annotation.mask(size)


def _box(annotation: CocoAnnotation, size: Size | None) -> Box | None:
    """As it is asked: cut to the picture. None where the mask's own is as good."""
    try:
        x1, y1, x2, y2 = annotation.box()
    except PromptError:
        return None
    if size is None:
        return x1, y1, x2, y2
    cut = max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1]))
    return cut if cut[0] < cut[2] and cut[1] < cut[3] else None


def _coco_texts(annotation: CocoAnnotation) -> dict[str, list[str]]:
    """The category's name as the label; captions from `caption`, `captions` or, as in RefCOCOg, `sentences`."""
    label = (annotation.category or "").replace("_", " ").strip()
    captions = [text for name in ("caption", "captions", "sentences") for text in _sentences(annotation.raw.get(name))]
    texts = {"label_en": [label] if label else [], "caption_en": list(dict.fromkeys(captions))}
    return {column: references for column, references in texts.items() if references}


def _sentences(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, Mapping):
        return next((_sentences(value[name]) for name in _SENTENCE_KEYS if isinstance(value.get(name), str)), [])
    return [text for one in value if isinstance(one, (str, Mapping)) for text in _sentences(one)] if isinstance(value, list) else []
