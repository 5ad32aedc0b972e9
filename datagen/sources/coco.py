"""COCO-format JSON: its images, with each image's annotations as prompts."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, Literal

from datagen.errors import SourceError
from datagen.job import S3Options, SourceOptions
from datagen.records import Asset, Failure, Prompt
from datagen.sources.prompts import parse_box
from datagen.sources.rle import parse_polygons, parse_rle
from datagen.sources.rows import RowReader, absolute, open_source_file, plain

PromptKind = Literal["box", "mask"]

_ID_KEYS = ("id", "image_id", "category_id", "license")


class CocoSource:
    """Images of a COCO file in file order, annotations as prompts in file order; an image without any is segmented whole.

    The file is one JSON document and is held in memory; for tens of millions of annotations use a Parquet manifest.
    `Asset.extra` gets `coco_image_id` and `coco_annotations`: id, category and iscrowd of each prompt, in prompt order.
    """

    def __init__(self, path: str, options: SourceOptions, s3: S3Options) -> None:
        self.path = absolute(path)
        self.prompt = options.coco_prompt
        self.skipped: Counter[str] = Counter()
        self._reader = RowReader.of(self.path, options, s3)
        document = _load(self.path, s3)
        self._images = document["images"]
        self._categories = _names(document.get("categories"))
        self._licenses = _names(document.get("licenses"))
        self._annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in document.get("annotations") or []:
            self._annotations[annotation.get("image_id")].append(annotation)

    def describe(self) -> str:
        """One line for a person."""
        return f"images of the COCO file {self.path}, a {self.prompt} prompt per annotation, relative names from {self._reader.roots.root}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets; an image or annotation that makes no sense becomes an asset with its failure."""
        self.skipped.clear()
        yield from self._reader.assets(enumerate(self._images, start=1), self._asset)
        unknown = set(self._annotations) - {image.get("id") for image in self._images}
        lost = sum(len(self._annotations[image_id]) for image_id in unknown)
        if lost:
            self.skipped["annotation of an unknown image"] = lost

    def _asset(self, image: dict[str, Any], number: int) -> Asset:
        asset = self._reader.asset({"uri": image.get("file_name"), "license": self._licenses.get(image.get("license"))}, number)
        annotations = self._annotations.get(image.get("id"), [])
        asset.extra = {
            "coco_image_id": plain(image.get("id")),
            "coco_annotations": [
                {
                    "id": plain(annotation.get("id")),
                    "category": self._categories.get(annotation.get("category_id")),
                    "iscrowd": bool(annotation.get("iscrowd")),
                }
                for annotation in annotations
            ],
        }
        if asset.failure is None and annotations:
            self._add_prompts(asset, image, annotations)
        return asset

    def _add_prompts(self, asset: Asset, image: dict[str, Any], annotations: list[dict[str, Any]]) -> None:
        prompts = []
        for annotation in annotations:
            try:
                prompts.append(_prompt(annotation, image, self.prompt))
            except ValueError as error:
                message = f"annotation {annotation.get('id')} of {self.path}: {plain(str(error))}"
                asset.failure = Failure("manifest_bad_prompts", message)
                return
        asset.prompts = prompts


def _prompt(annotation: dict[str, Any], image: dict[str, Any], kind: PromptKind) -> Prompt:
    if kind == "box":
        try:
            x, y, width, height = parse_box(annotation.get("bbox"))
        except ValueError as error:
            raise ValueError(f"its bbox is not [x, y, width, height], found {annotation.get('bbox')!r:.80}") from error
        return Prompt(box=(x, y, x + width, y + height), source="coco")
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return Prompt(mask=parse_rle(segmentation), source="coco")
    return Prompt(mask=parse_polygons(segmentation, image.get("height"), image.get("width")), source="coco")


def _load(path: str, s3: S3Options) -> dict[str, Any]:
    try:
        with open_source_file(path, s3) as file:
            document = json.loads(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    found = ", ".join(list(document)[:8]) if isinstance(document, dict) else type(document).__name__
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise SourceError(f"{path} is not COCO: it needs a list `images` (and `annotations`, `categories`), found {found}")
    for name in ("images", "annotations", "categories", "licenses"):
        if not all(map(_is_record, document.get(name) or [])):
            raise SourceError(f"{path} is not COCO: every entry of `{name}` is an object whose ids are numbers or text")
    return document


def _is_record(entry: Any) -> bool:
    return isinstance(entry, dict) and not any(isinstance(entry.get(key), (list, dict)) for key in _ID_KEYS)


def _names(entries: list[dict[str, Any]] | None) -> dict[Any, str]:
    return {entry.get("id"): str(plain(entry.get("name"))) for entry in entries or []}
