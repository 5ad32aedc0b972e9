"""Sources: what is listed. A folder or bucket, a manifest or a COCO file becomes a stream of assets in a fixed order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from datagen.errors import SourceError
from datagen.job import S3Options, SourceOptions
from datagen.records import Asset
from datagen.remote import SCHEMES, checked_uri, is_remote, scheme_of

MANIFEST_SUFFIXES = (".parquet", ".jsonl", ".csv")
_ALLOWED = (
    "a folder of images or videos, a manifest (.parquet, .jsonl, .csv) or a COCO .json file, as a path or an s3://, gs:// or hf:// URI"
)


class Source(Protocol):
    """Assets in a deterministic order. Iterating again lists again; every entry of a manifest becomes exactly one asset.

    skipped: what the latest listing left out, by kind (such as `video` or `image`, `other file`, `unreadable folder`), as counts.
    """

    skipped: Counter[str]

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when the input as a whole cannot be read."""

    def describe(self) -> str:
        """One line for a person: what is read, and how."""


def open_source(options: SourceOptions, s3: S3Options | None = None) -> Source:
    """The source that `options` name. Raises SourceError when there is no such input or it cannot be listed, StorageError for a bucket."""
    if not options.input:
        raise SourceError(f"no input is given; allowed: {_ALLOWED}. Use --input PATH or `source.input` in the job file")
    s3 = s3 or S3Options()
    place = checked_uri(options.input) if is_remote(options.input) else options.input
    kind = _kind_of(place) if options.kind == "auto" else options.kind
    if kind == "manifest":
        from datagen.sources.manifest import ManifestSource

        return ManifestSource(place, options, s3)
    if kind == "coco":
        from datagen.sources.coco import CocoSource

        return CocoSource(place, options, s3)
    if is_remote(place):
        from datagen.sources.bucket import BucketSource

        return BucketSource(place, s3, options.media, reprocess_changed=options.reprocess_changed)
    from datagen.sources.folder import FolderSource

    return FolderSource(place, options.media, reprocess_changed=options.reprocess_changed)


def _kind_of(path: str) -> str:
    scheme = scheme_of(path)
    if scheme and scheme not in SCHEMES:
        raise SourceError(f"an input that starts with {scheme}:// cannot be read; allowed: {_ALLOWED}")
    if os.path.isdir(path):
        return "folder"
    if not scheme and not os.path.exists(path):
        raise SourceError(f"the input {path} does not exist; allowed: {_ALLOWED}")
    suffix = Path(path).suffix.lower() if not path.endswith("/") else ""
    if suffix in MANIFEST_SUFFIXES:
        return "manifest"
    if suffix == ".json":
        return "coco"
    if scheme:
        return "folder"
    raise SourceError(f"the input {path} is a file that ends in {suffix or 'no extension'}; allowed: {_ALLOWED}")
