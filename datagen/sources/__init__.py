"""Sources: what is listed. A folder or bucket, a manifest, a COCO file, tars or a dataset become a stream of assets in a fixed order."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from datagen.errors import SourceError
from datagen.job import S3Options, SourceOptions
from datagen.records import Asset
from datagen.remote import SCHEMES, checked_uri, is_remote, scheme_of
from datagen.sources.files import is_pattern
from datagen.sources.listing import remote_files
from datagen.sources.prompts import note_prompts
from datagen.sources.secrets import refuse_secrets, without_secrets
from datagen.sources.uris import media_type_of
from datagen.tables import TABLE_SUFFIXES, image_columns, open_table
from datagen.tar import COMPRESSED_SUFFIXES

MANIFEST_SUFFIXES = (".parquet", ".jsonl", ".csv")
_ALLOWED = (
    "a folder of images or videos, a manifest (.parquet, .jsonl, .csv), a COCO .json file, tar archives, or a Hugging Face dataset "
    "(.parquet, or the folder that save_to_disk wrote), as a path or an s3://, gs:// or hf:// URI"
)
_LOOKED_AT = 1000
_REPOSITORY = re.compile(r"hf://datasets/[^/]+/[^/]+/?")
# What save_to_disk leaves at the top of its folder.
_DATASET_NOTES = ("state.json", "dataset_dict.json")


class Source(Protocol):
    """Assets in a deterministic order. Iterating again lists again; every entry of a manifest becomes exactly one asset.

    skipped: what the latest listing left out, by kind (such as `video` or `image`, `.txt file`, `unreadable folder`), as counts.
    """

    @property
    def skipped(self) -> Counter[str]:
        """See above."""

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when the input as a whole cannot be read."""

    def describe(self) -> str:
        """One line for a person: what is read, and how."""


class _Listing:
    """A source whose assets know the number and the hash of their prompts."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def skipped(self) -> Counter[str]:
        return self._source.skipped

    def describe(self) -> str:
        return self._source.describe()

    def __iter__(self) -> Iterator[Asset]:
        return map(without_secrets, map(note_prompts, self._source))


def open_source(options: SourceOptions, s3: S3Options | None = None) -> Source:
    """The source that `options` name. Raises SourceError when there is no such input or it cannot be listed, StorageError for a bucket."""
    if not options.input:
        raise SourceError(f"no input is given; allowed: {_ALLOWED}. Use --input PATH or `source.input` in the job file")
    for place, what in ((options.input, "the input"), (options.media_root, "source.media_root")):
        refuse_secrets(place or "", what)
    return _Listing(_source(options, s3 or S3Options()))


def _source(options: SourceOptions, s3: S3Options) -> Source:
    assert options.input
    place = checked_uri(options.input) if is_remote(options.input) else options.input
    kind = _kind_of(place, options, s3) if options.kind == "auto" else options.kind
    if kind == "manifest":
        from datagen.sources.manifest import ManifestSource

        return ManifestSource(place, options, s3)
    if kind == "coco":
        from datagen.sources.coco import CocoSource

        return CocoSource(place, options, s3)
    if kind == "webdataset":
        from datagen.sources.webdataset import TarSource

        return TarSource(place, options, s3)
    if kind == "dataset":
        from datagen.sources.image_table import ImageTableSource

        return ImageTableSource(place, options, s3)
    if kind == "frames":
        from datagen.sources.frames import FramesSource
        from datagen.sources.video_annotations import VideoJsonSource

        return (VideoJsonSource if place.lower().endswith(".json") else FramesSource)(place, options, s3)
    if is_remote(place):
        from datagen.sources.bucket import BucketSource

        return BucketSource(place, s3, options.media, reprocess_changed=options.reprocess_changed)
    from datagen.sources.folder import FolderSource

    return FolderSource(place, options.media, reprocess_changed=options.reprocess_changed)


def _kind_of(path: str, options: SourceOptions, s3: S3Options) -> str:
    scheme = scheme_of(path)
    if scheme and scheme not in SCHEMES:
        raise SourceError(f"an input that starts with {scheme}:// cannot be read; allowed: {_ALLOWED}")
    if os.path.isdir(path):
        return _kind_of_folder(path, options, s3)
    if not scheme and not os.path.exists(path) and not is_pattern(path):
        raise SourceError(f"the input {path} does not exist; allowed: {_ALLOWED}")
    name = path.lower() if not path.endswith("/") else ""
    if name.endswith((".tar", *COMPRESSED_SUFFIXES)):
        return "webdataset"
    if name.endswith(".arrow") or (name.endswith(".parquet") and (is_pattern(path) or _has_pictures(path, options, s3))):
        return "dataset"
    if name.endswith(MANIFEST_SUFFIXES):
        return "manifest"
    if name.endswith(".json"):
        from datagen.sources.video_annotations import is_of_videos

        return "frames" if is_of_videos(path, s3) else "coco"
    if scheme and not is_pattern(path):
        return _kind_of_folder(path, options, s3)
    if is_pattern(path):
        raise SourceError(f"the input {path} is a pattern, which are for tars and tables: end it in .tar or .parquet, or give the folder")
    raise SourceError(f"the input {path} is a file that ends in {Path(path).suffix.lower() or 'no extension'}; allowed: {_ALLOWED}")


def _kind_of_folder(folder: str, options: SourceOptions, s3: S3Options) -> str:
    """Media files first: what lies beside them is counted as skipped. A dataset's repository on the hub may show pictures beside it."""
    if not is_remote(folder):
        if any(os.path.isfile(os.path.join(folder, name)) for name in _DATASET_NOTES):
            return "dataset"
        from datagen.sources.folder import FolderSource

        files: Iterator[str] = FolderSource(folder).files()
    else:
        files = (file.uri for file in remote_files(folder, s3, Counter()))
    try:
        found = list(islice(files, _LOOKED_AT))
    except FileNotFoundError:
        return "folder"
    names = [file.lower() for file in found]
    has_media = any(media_type_of(name) != "other" for name in names)
    types = {media_type_of(name) for name in names}
    if options.media == "video" and "video" not in types and any("/jpegimages" in name for name in names):
        return "frames"
    if has_media and not _REPOSITORY.fullmatch(folder):
        return "folder"
    tables, tars = (any(name.endswith(suffixes) for name in names) for suffixes in (TABLE_SUFFIXES, (".tar", *COMPRESSED_SUFFIXES)))
    if tables and tars:  # img2dataset writes a table of its metadata beside each tar
        first = next(file for file in found if file.lower().endswith(TABLE_SUFFIXES))
        return "dataset" if _has_pictures(first, options, s3) else "webdataset"
    if tables:
        return "dataset"
    return "webdataset" if tars else "folder"


def _has_pictures(path: str, options: SourceOptions, s3: S3Options) -> bool:
    """Whether a Parquet file is a dataset with pictures and not a manifest. Raises SourceError for one that may be either."""
    if options.image_column:
        return True
    try:
        schema = open_table(path, s3).schema
    except SourceError:
        return False  # reading it as a manifest says what is wrong
    found = image_columns(schema)
    if found and "uri" in schema.names:
        raise SourceError(
            f"{path} has a column `uri`, as manifests have, and a column of pictures, `{found[0]}`, as datasets have; "
            "set source.kind to `manifest` or `dataset`"
        )
    return bool(found)
