"""A datagen dataset as training data: its images decoded once to the student's size, its masks, and the texts of its regions.

Pixels and masks lie in memory-mapped files beside the output, made anew when the dataset has changed, so that a training set may be
larger than memory. S is the student's image size, M = S/2 the size of the stored masks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from datagen.decode.step import DecodeStep
from datagen.errors import SourceError
from datagen.job import DecodeOptions
from datagen.masks import decode_mask
from datagen.records import LANGUAGES, RLE, TASKS, Asset, Language, Sample, Task
from datagen.sources.uris import Roots
from datagen.write import open_dataset
from datagen.write.done import read_parts
from datagen.write.marker import check_marker
from datagen.write.parts import part_ids
from datagen.write.schema import READABLE_VERSIONS, SCHEMA_KEY, schema_title
from datagen.write.store import Store

Key = tuple[str, str]
"""(task, language)"""
Box = tuple[float, float, float, float]
"""XYXY as shares of the picture's sides."""

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class RegionData:
    """One region. row: (region_id,). image: row of `Corpus.pixels`. size: width and height of the image in its file, px.
    texts: the answers, as the model gives them.
    """

    row: tuple[str]
    image: int
    box: Box
    size: tuple[int, int]
    texts: Mapping[Key, str]


@dataclass(frozen=True, slots=True)
class Corpus:
    """pixels: (N, S, S, 3) uint8 RGB. masks: (R, M, M) uint8, share of each cell that the region covers, 255 all. regions: R of them,
    those of an image one after another. of_image: image -> its regions.
    """

    pixels: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    regions: list[RegionData]
    of_image: list[range]

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """`count` images at random, none twice while there are enough."""
        return rng.choice(len(self.of_image), size=count, replace=len(self.of_image) < count)

    def pictures(self, images: NDArray[np.int64], flips: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """(B, S, S, 3) pixels of images, mirrored where `flips` says so."""
        pixels = self.pixels[images]
        return np.where(flips[:, None, None, None], pixels[:, :, ::-1], pixels)


def load_corpus(dataset: str, cache: Path, image_size: int) -> Corpus:
    """The images and regions of a dataset, through the cache.

    Relative URIs start from the dataset's folder; files in buckets are fetched. Raises SourceError when there is no dataset, no region,
    or a file that is missing or cannot be decoded; WriteError for another format or schema version.
    """
    store = open_dataset(dataset)
    check_marker(store)
    images = _images(store)
    regions = [row for row in table_rows(store, "regions", _region_columns()) if row["asset_id"] in images]
    if not regions:
        raise SourceError(f"{store.uri} has no region of an image to learn from: its `regions` table is empty")
    used = {asset_id: number for number, asset_id in enumerate(dict.fromkeys(row["asset_id"] for row in regions))}
    assets = [images[asset_id] for asset_id in used]
    regions.sort(key=lambda row: (used[row["asset_id"]], row["region_index"]))
    pixels, masks = cached_arrays(
        cache,
        _digest(image_size, assets, regions),
        {
            "pixels": ((len(assets), image_size, image_size, 3), _decoded(store, assets, image_size)),
            "masks": ((len(regions), image_size // 2, image_size // 2), (small_mask(row["mask"], image_size // 2) for row in regions)),
        },
    )
    data = [_region(row, used[row["asset_id"]], images[row["asset_id"]]) for row in regions]
    return Corpus(pixels, masks, data, _groups([region.image for region in data], len(assets)))


def answers(row: Mapping[str, Any]) -> dict[Key, str]:
    """What the model should answer for a row of `regions`. A definition is told after its label, as the task's prompt asks for both."""
    found: dict[Key, str] = {}
    for language in LANGUAGES:
        for task in TASKS:
            text, label = row[f"{task}_{language}"], row[f"label_{language}"]
            if text and task == "definition" and label:
                text = f"{label}: {text}" if language == "en" else f"{label}：{text}"
            if text:
                found[task, language] = text
    return found


def read_texts(dataset: str) -> tuple[list[str], list[str]]:
    """All texts of the regions and of the tracks of a dataset, as the model gives them."""
    store = open_dataset(dataset)
    check_marker(store)
    regions = [text for row in table_rows(store, "regions", _region_columns()) for text in answers(row).values()]
    captions = [f"caption_{language}" for language in LANGUAGES]
    tracks = [text for row in table_rows(store, "tracks", captions) for text in row.values() if text]
    return regions, tracks


def require_texts(corpus: Corpus, tasks: Sequence[Task], languages: Sequence[Language], dataset: str) -> None:
    """Raise SourceError naming the first text that is asked for and that no region has."""
    for task in tasks:
        for language in languages:
            if not any((task, language) in region.texts for region in corpus.regions):
                raise SourceError(
                    f"{dataset} has no {task}_{language} to learn from: the column is empty. Leave it out of the describe stage's "
                    f"tasks and languages, or run the job that made the dataset with describe.tasks and languages that hold it"
                )


def _images(store: Store) -> dict[str, dict[str, Any]]:
    columns = ["asset_id", "uri", "media_type", "status", "width", "height", "sha256"]
    rows = table_rows(store, "assets", columns)
    return {row["asset_id"]: row for row in rows if row["media_type"] == "image" and row["status"] == "ok"}


def _region_columns() -> list[str]:
    texts = [f"{task}_{language}" for task in TASKS for language in LANGUAGES]
    return ["region_id", "asset_id", "region_index", "mask", "box_xyxy", *texts]


def table_rows(store: Store, table: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table, some columns, in the order of its parts' names. Raises as table_parts does."""
    for part in table_parts(store, table, columns):
        yield from part.to_pylist()


def table_parts(store: Store, table: str, columns: list[str], *optional: str) -> Iterator[pa.Table]:
    """The parts of a table, some columns, in the order of their names; without those of `optional` that they do not have.

    Raises SourceError for a part of another schema version or without one of the columns, WriteError for one that cannot be read.
    """
    readable = [schema_title(table, version) for version in READABLE_VERSIONS]
    for part in read_parts(store, table, part_ids(store, table), [*columns, *optional]):
        found = (part.schema.metadata or {}).get(SCHEMA_KEY, b"no version").decode()
        missing = [name for name in columns if name not in part.column_names]
        if found not in readable or missing:
            lacks = f" without {', '.join(missing)}" if missing else ""
            raise SourceError(
                f"{store.uri} has a part of `{table}` of the schema {found}{lacks}; this version reads {' and '.join(readable)}. "
                "`datagen check` names the part; use the version of datagen that made the dataset, or make it again"
            )
        yield part


def _region(row: Mapping[str, Any], image: int, asset: Mapping[str, Any]) -> RegionData:
    size = asset["width"], asset["height"]
    return RegionData((row["region_id"],), image, relative_box(row["box_xyxy"], *size), size, answers(row))


def relative_box(box: Sequence[float], width: int, height: int) -> Box:
    """A box in pixels as shares of the sides."""
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _groups(images: Sequence[int], count: int) -> list[range]:
    starts = np.searchsorted(images, np.arange(count + 1))
    return [range(int(start), int(stop)) for start, stop in pairwise(starts)]


def cached_arrays(
    cache: Path, digest: str, arrays: Mapping[str, tuple[tuple[int, ...], Iterable[NDArray[Any]]]], dtype: str = "uint8"
) -> list[NDArray[Any]]:
    """Memory-mapped arrays by name, made of (shape, items along the first axis) unless those of `digest` are there already.

    The file `<first name>.done` is written last and says of what they were made.
    """
    names = list(arrays)
    done = cache / f"{names[0]}.done"
    if not done.is_file() or done.read_text() != digest:
        cache.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        for name, (shape, items) in arrays.items():
            _fill(cache / f"{name}.npy", shape, items, dtype)
        done.write_text(digest)
    return [np.load(cache / f"{name}.npy", mmap_mode="r") for name in names]


def _digest(size: int, assets: Sequence[Mapping[str, Any]], regions: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(f"{size}".encode())
    for row in (*assets, *regions):
        digest.update(json.dumps([row.get("sha256"), row.get("mask")]).encode())
    return digest.hexdigest()


def _fill(path: Path, shape: tuple[int, ...], items: Iterable[NDArray[Any]], dtype: str) -> None:
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)  # type: ignore[no-untyped-call]
    for index, item in enumerate(items):
        array[index] = item
    array.flush()  # type: ignore[attr-defined]


def _decoded(store: Store, assets: Sequence[Mapping[str, Any]], size: int) -> Iterator[NDArray[np.uint8]]:
    step, place = DecodeStep(DecodeOptions(), size), Roots(store.uri)
    step.setup()
    try:
        for start in range(0, len(assets), _AT_ONCE):
            rows = assets[start : start + _AT_ONCE]
            samples = [Sample(index, Asset(row["asset_id"], place.resolve(row["uri"]))) for index, row in enumerate(rows)]
            for sample in step.process(samples):
                if sample.failure is not None or sample.pixels is None:
                    reason = sample.failure.message if sample.failure else "it has no pixels"
                    raise SourceError(f"{store.uri} names {sample.asset.uri}, but its pixels are not at hand: {reason}")
                yield sample.pixels
    finally:
        step.teardown()


def small_mask(rle: RLE, size: int) -> NDArray[np.uint8]:
    """(size, size) share of each cell that a mask covers, 255 all of it."""
    mask = Image.fromarray(decode_mask(rle).astype(np.uint8) * np.uint8(255))
    return np.asarray(mask.resize((size, size), Image.Resampling.BOX))
