"""COCO-format JSON: its images, with each image's annotations as prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from datagen.errors import PromptError, SourceError
from datagen.ids import asset_id_of
from datagen.job import S3Options, SourceOptions
from datagen.records import Asset, Failure, Prompt
from datagen.sources.coco_document import CocoAnnotation, CocoImage, Document, read_document
from datagen.sources.coco_media import MediaFinder, Place
from datagen.sources.prompts import MAX_PROMPTS
from datagen.sources.rle import is_number
from datagen.sources.rows import RowReader, absolute
from datagen.sources.uris import uri_of
from datagen.sources.values import ROW_TOO_LARGE, plain
from datagen.stated import CROWD

PromptKind = Literal["box", "mask"]

_SHAPES = {"box": "bbox", "mask": "segmentation"}
# Boxes that reach out of their pictures: fewer may be no more than annotated so.
_FEWEST_OUTSIDE = 3
_OTHER: dict[str, PromptKind] = {"box": "mask", "mask": "box"}


class CocoSource:
    """Images of a COCO file in file order, annotations as prompts in file order; an image without any is segmented whole.

    The file is one JSON document and is held in memory; for tens of millions of annotations use a Parquet manifest. Two entries of one
    file are one asset with the annotations of both. An annotation that makes no sense is counted in `Asset.dropped` and keeps its place
    among the others, and so is a crowd, which is no object.
    `Asset.extra` gets `coco_image_id`, `coco_annotations` (of each annotation, in file order: id, category, iscrowd and every field that is
    not its shape; `dropped` says why one is no prompt), and every further field of the image.
    """

    def __init__(self, path: str, options: SourceOptions, s3: S3Options) -> None:
        self.path = absolute(path)
        self.prompt: PromptKind = options.coco_prompt
        self.skipped: Counter[str] = Counter()
        self._reader = RowReader.of(self.path, options, s3)
        self._s3 = s3
        self._document = read_document(self.path, s3)
        _check_shapes(self._document, self.prompt)

    def describe(self) -> str:
        """One line for a person."""
        root, document = self._reader.roots.root, self._document
        line = f"images of the COCO file {self.path}, a {self.prompt} prompt per annotation, relative names from {root}"
        if document.examples:
            line += f"; {document.lost.total()} annotations are of no image of the file: {', '.join(document.examples)}"
        return line

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets; an image that makes no sense becomes an asset with its failure."""
        self.skipped.clear()
        yield from self._reader.assets(enumerate(self._by_file(), start=1), self._asset)
        self.skipped.update(self._document.lost)

    def _by_file(self) -> Iterator[tuple[str, list[CocoImage], str]]:
        """(URI, its entries, why it is not there) of each file, in the order of first entries; the URI is empty where there is none."""
        finder = MediaFinder(self._reader.roots, self._s3, self._document.images)
        files: dict[str, tuple[str, list[CocoImage], str]] = {}
        for image in self._document.images:
            uri, missing = Place("") if image.problem else finder.find(image)
            # Joined by what the URI names: `./a.jpg` is `a.jpg`.
            files.setdefault(self._resolved(uri) or f"#{image.place}", (uri, [], missing))[1].append(image)
        yield from files.values()

    def _resolved(self, uri: str) -> str:
        try:
            return self._reader.roots.resolve(uri) if uri else ""
        except SourceError:
            return uri

    def _asset(self, file: tuple[str, list[CocoImage], str], _: int) -> Asset:
        uri, images, missing = file
        first = images[0]
        where = f"image {first.place} of {self.path}"
        asset = self._reader.located(uri, where) if uri else self._unnamed(first, where)
        asset.license = next((image.license for image in images if image.license is not None), None)
        annotations = [annotation for image in images for annotation in image.annotations]
        told = [annotation.extra() for annotation in annotations]
        asset.extra = {key: value for image in reversed(images) for key, value in image.extra().items()}
        asset.extra |= {"coco_image_id": first.id, "coco_annotations": told}
        if len(images) > 1:
            asset.extra["coco_image_ids"] = [image.id for image in images]
        sizes = {image.size for image in images if image.size is not None}
        asset.stated_size = next(iter(sizes), None)
        if asset.failure is None and len(sizes) > 1:
            asset.failure = _two_sizes(images, where)
        if asset.failure is None and len(annotations) > MAX_PROMPTS:
            asset.failure = Failure(ROW_TOO_LARGE, f"{where} has {len(annotations)} annotations; at most {MAX_PROMPTS} are read")
        if asset.failure is None and annotations:
            self._add_prompts(asset, annotations, told)
        if asset.failure is None and missing:
            asset.failure = Failure("missing_file", f"{where}: {plain(missing)}")
        return asset

    def _add_prompts(self, asset: Asset, annotations: Sequence[CocoAnnotation], told: Sequence[dict[str, Any]]) -> None:
        prompts: list[Prompt] = []
        dropped: Counter[str] = Counter()
        for index, (annotation, extra) in enumerate(zip(annotations, told, strict=True)):
            try:
                prompt = _prompt(annotation, asset.stated_size, self.prompt)
            except PromptError as error:
                extra["dropped"] = error.code
                dropped[error.code] += 1
                if error.code != CROWD:
                    asset.problem = asset.problem or f"{annotation.name}: {error.message}"
                continue
            prompt.id, prompt.index = annotation.key, index
            prompts.append(prompt)
        asset.prompts, asset.dropped = prompts, dict(dropped)

    def _unnamed(self, image: CocoImage, where: str) -> Asset:
        uri = f"{uri_of(self.path)}#row={image.place}"
        if image.problem:
            return Asset(asset_id_of(uri), uri, failure=Failure("manifest_bad_row", f"{where}: {plain(image.problem)}"))
        why = f"{where} has no file_name and no coco_url; give the path of a file"
        return Asset(asset_id_of(uri), uri, failure=Failure("manifest_no_uri", why))


def _prompt(annotation: CocoAnnotation, size: tuple[int, int] | None, kind: PromptKind) -> Prompt:
    """Raises PromptError."""
    if annotation.is_crowd:
        raise PromptError("it is of a crowd, which is no object", code=CROWD)
    annotation.check_fields()
    if kind == "box":
        return Prompt(box=annotation.box(), source="coco")
    return Prompt(mask=annotation.mask(size), source="coco")


def _check_shapes(document: Document, kind: PromptKind) -> None:
    """Refuse a file of which no annotation has what the job wants as prompts, or whose boxes are written otherwise. Raises SourceError."""
    some = [annotation for annotation in document.annotations() if not annotation.is_crowd]
    shape, other = _SHAPES[kind], _SHAPES[_OTHER[kind]]
    if some and not any(annotation.raw.get(shape) for annotation in some):
        hint = f"; set source.coco_prompt to {_OTHER[kind]}" if any(annotation.raw.get(other) for annotation in some) else ""
        raise SourceError(
            f"{document.path}: none of its {len(some)} annotations has a `{shape}`, which source.coco_prompt: {kind} needs{hint}"
        )
    if kind == "box":
        _check_boxes(document)


def _check_boxes(document: Document) -> None:
    """Shares of the sides, and corners, are what other formats call a box."""
    boxes = [(box, image.size) for image in document.images for one in image.annotations if not one.is_crowd and (box := _numbers(one))]
    if boxes and all(abs(side) <= 1 for box, _ in boxes for side in box):
        raise SourceError(
            f"{document.path}: every bbox lies within 0 and 1, as shares of the sides do; a COCO bbox is [x, y, width, height] in "
            "pixels: multiply by the pictures' width and height"
        )
    sized = [(box, size) for box, size in boxes if size is not None]
    outside = sum(not _fits([x, y, x + width, y + height], size) for (x, y, width, height), size in sized)
    if outside >= _FEWEST_OUTSIDE and 2 * outside > len(boxes) and all(_fits(box, size) for box, size in sized):
        raise SourceError(
            f"{document.path}: {outside} of its {len(boxes)} boxes reach out of their pictures as [x, y, width, height], which a COCO bbox "
            f"is, and none does as [x1, y1, x2, y2], such as {sized[0][0]}; write the width and the height as the last two"
        )


def _fits(corners: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether x1, y1, x2, y2 are in order, and in a picture of this (width, height), but for a pixel."""
    x1, y1, x2, y2 = corners
    return -1 <= x1 < x2 <= size[0] + 1 and -1 <= y1 < y2 <= size[1] + 1


def _numbers(annotation: CocoAnnotation) -> list[float] | None:
    value = annotation.raw.get("bbox")
    return value if isinstance(value, list) and len(value) == 4 and all(is_number(side) and abs(side) <= 1e9 for side in value) else None


def _two_sizes(images: Sequence[CocoImage], where: str) -> Failure:
    sizes = " and ".join(dict.fromkeys(f"{image.size[0]} x {image.size[1]}" for image in images if image.size is not None))
    return Failure("stated_size", f"{where}: its {len(images)} entries state different sizes of one file, {sizes} (width x height)")
