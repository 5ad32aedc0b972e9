"""One manifest row to one asset. A row that cannot be used becomes an asset that carries its failure, never an exception."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from datagen.at_once import in_order
from datagen.errors import SourceError
from datagen.ids import asset_id_of, id_problem
from datagen.job import S3Options, SourceOptions
from datagen.records import Asset, Failure
from datagen.remote import checked_uri, is_remote, open_file, redacted, version_of
from datagen.sources.columns import COLUMNS
from datagen.sources.prompts import SHORTHANDS, Given, given_prompts
from datagen.sources.rle import whole_number
from datagen.sources.uris import Media, Roots, inside, media_type_of, path_of_uri, uri_of, version_of_path
from datagen.sources.values import ROW_TOO_LARGE, plain, shown
from datagen.tables import BadRow

__all__ = ["COLUMNS", "RowReader", "absolute", "extra_of", "fill", "open_source_file", "plain", "version_of_file"]

_Row = TypeVar("_Row")
_Made = TypeVar("_Made")
_AT_ONCE = 16


@dataclass(frozen=True)
class RowReader:
    """What turns rows of one manifest into assets. manifest: absolute path or URI of the file."""

    manifest: str
    roots: Roots
    s3: S3Options
    reprocess_changed: bool = False
    media: Media = "any"
    columns: tuple[str, ...] = COLUMNS
    passed: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: str, options: SourceOptions, s3: S3Options) -> RowReader:
        """The reader for a manifest's rows as the job wants them. Raises SourceError for a `media_root` that is none."""
        local_allowed = options.allow_local_uris or not is_remote(manifest)
        roots = Roots(_root_of(manifest, options.media_root), options.media_root is not None, local_allowed)
        columns = tuple(name for name in COLUMNS if name not in options.pass_through)
        return cls(manifest, roots, s3, options.reprocess_changed, options.media, columns, options.pass_through)

    def assets(self, rows: Iterable[tuple[int, _Row]], make: Callable[[_Row, int], _Made]) -> Iterator[_Made]:
        """make(row, number) for each (number, row), in order; several at a time where each asks a bucket for its file's version."""
        if not self.reprocess_changed:
            yield from (make(row, number) for number, row in rows)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from in_order(pool, lambda numbered: make(numbered[1], numbered[0]), rows, 4 * _AT_ONCE)

    def asset(self, row: Mapping[str, Any] | BadRow, number: int) -> Asset:
        """The asset of row `number` (counted from 1). Problems end in its `failure`: `manifest_bad_row`, `manifest_no_uri`,
        `manifest_bad_id`, `manifest_bad_prompts`, `unsupported_uri`, `refused_uri`."""
        where = f"row {number} of {self.manifest}"
        if isinstance(row, BadRow):
            return self.unnamed(number, Failure(row.code, f"{where}: {row.message}"))
        uri = row.get("uri")
        if not isinstance(uri, str) or not uri.strip():
            found = "it is empty" if uri is None or uri == "" else f"found {shown(uri)}"
            asset = self.unnamed(number, Failure("manifest_no_uri", f"{where} has no uri: {found}; give the path of a file"))
        else:
            asset = self.located(uri, where, explicit_id(row))
        fill(asset, row, where, self.columns, passed=self.passed)
        return asset

    def located(self, uri: str, where: str, asset_id: str | None = None) -> Asset:
        """The asset of a URI as written in the manifest; relative ones start from `root`. asset_id: where the manifest gives it."""
        try:
            resolved = self._resolved(uri)
        except SourceError as error:
            text = redacted(str(plain(uri)))
            return Asset(asset_id_of(text), text, failure=Failure(error.code, f"{where}: {plain(error.message)}"))
        version = self._version(resolved) if self.reprocess_changed else ""
        # A row that is asked for as a video is one, also where a folder would take such a name for a picture.
        is_video = media_type_of(resolved, self.media) == "video" or (self.media == "video" and resolved.lower().endswith(".webp"))
        return Asset(asset_id or asset_id_of(resolved, version), resolved, "video" if is_video else "image")

    def _resolved(self, uri: str) -> str:
        """The URI as it is stored; of a path from Windows with `/`, where a file has that name and none has the one with `\\`."""
        resolved = self.roots.resolve(uri)
        if "\\" in uri and not is_remote(resolved) and not os.path.lexists(path_of_uri(resolved)):
            turned = self.roots.resolve(uri.replace("\\", "/"))
            if os.path.lexists(path_of_uri(turned)):
                return turned
        return resolved

    def _version(self, uri: str) -> str:
        place = inside(uri)
        file = place.file if place else uri
        return version_of_file(file if is_remote(file) else path_of_uri(file), self.s3)

    def unnamed(self, number: int, failure: Failure) -> Asset:
        """A row that stands for itself."""
        uri = f"{uri_of(self.manifest)}#row={number}"
        return Asset(asset_id_of(uri), uri, failure=failure)


def fill(
    asset: Asset,
    row: Mapping[str, Any],
    where: str,
    columns: Sequence[str] = COLUMNS,
    *,
    passed: Sequence[str] = (),
    lenient: bool = False,
) -> Given:
    """Put into an asset what a row says of it: id, license, size, prompts, and in `extra` what of it is not read.

    columns: those with a meaning. passed: those of which the job says that they have none, `width` and `height` among them. lenient: see
    given_prompts. Where no prompt can be used, it fails with `manifest_bad_prompts`, and where its id can be none, with
    `manifest_bad_id`. where: the row, for messages. Returns what was asked for.
    """
    own = explicit_id(row)
    problem = None if own is None else _id_problem(row["asset_id"], own)
    if problem:  # a row of its own, and never that of another id
        asset.asset_id = asset_id_of(f"{asset.uri}#asset_id={plain(ascii(own))}")
        asset.failure = asset.failure or Failure("manifest_bad_id", f"{where}: its asset_id {own!a:.80} cannot be used: {problem}")
    elif own:
        asset.asset_id = own
    asset.license = license_of(row)
    asset.stated_size = None if {"width", "height"} & set(passed) else size_of(row)
    given = Given(used=frozenset(columns))
    try:
        given = given_prompts(row, asset.media_type, columns, lenient)
        if asset.failure is None:
            given.put_into(asset)
    except ValueError as error:
        code = ROW_TOO_LARGE if getattr(error, "code", "") == ROW_TOO_LARGE else "manifest_bad_prompts"
        asset.failure = asset.failure or Failure(code, f"{where}: {plain(str(error))}")
    asset.extra = extra_of(row, columns, given)
    return given


def size_of(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) px of the picture where a row says so in columns of these names, which pass through all the same."""
    width, height = whole_number(row.get("width")), whole_number(row.get("height"))
    if width is None or height is None or min(width, height) < 1 or max(width, height) >= 2**31:
        return None
    return width, height


def license_of(row: Mapping[str, Any]) -> str | None:
    """The licence that a row names."""
    value = plain(row.get("license"))
    return None if value is None else str(value)


def extra_of(row: Mapping[str, Any], columns: Sequence[str], given: Given) -> dict[str, Any]:
    """What passes through of a row: the columns without a meaning, and those that might have had one and were not read."""
    read = {name for name in columns if name not in SHORTHANDS and name != "prompts"} | given.used
    return {str(plain(key)): plain(value) for key, value in row.items() if key not in read}


def open_source_file(path: str, s3: S3Options) -> BinaryIO:
    """A manifest or COCO file for reading, here or in a bucket. Raises OSError, StorageError."""
    return open_file(path, s3) if is_remote(path) else open(path, "rb")


def version_of_file(place: str, s3: S3Options) -> str:
    """What changes when a file does, here by its path or in a bucket by its URI. Raises as remote.version_of does."""
    return version_of(place, s3) if is_remote(place) else version_of_path(place)


def absolute(path: str) -> str:
    """The absolute path of a local file; a URI as it is."""
    return path if is_remote(path) else os.path.abspath(path)


def _root_of(manifest: str, media_root: str | None) -> str:
    if media_root is None:
        return manifest.rpartition("/")[0] if is_remote(manifest) else os.path.dirname(manifest)
    if is_remote(media_root):
        return checked_uri(media_root.rstrip("/"))
    if not os.path.isdir(media_root):
        raise SourceError(f"source.media_root is {media_root}, which is not a folder; give the folder that relative URIs start from")
    return os.path.abspath(media_root)


def explicit_id(row: Mapping[str, Any]) -> str | None:
    """The id that a row gives its asset, as text. A float of a whole number is that: pandas makes floats of numbers beside missing ones."""
    value = row.get("asset_id")
    if value is None or value == "" or value != value:  # NaN is a missing number
        return None
    number = whole_number(value) if isinstance(value, float) else None
    return str(value if number is None else number)


def _id_problem(value: Any, text: str) -> str | None:
    if isinstance(value, (bool, bytes, list, tuple, Mapping)):
        return f"it is of the type {type(value).__name__}; give a text or a whole number"
    return id_problem(text)
