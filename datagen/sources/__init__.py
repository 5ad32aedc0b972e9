"""Sources: what is listed. A folder, a manifest or a COCO file becomes a stream of assets in a fixed order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.records import Asset

MANIFEST_SUFFIXES = (".parquet", ".jsonl", ".csv")
_ALLOWED = "a folder of images or videos, a manifest (.parquet, .jsonl, .csv) or a COCO .json file"


class Source(Protocol):
    """Assets in a deterministic order. Iterating again lists again; every entry of a manifest becomes exactly one asset.

    skipped: what the latest listing left out, by kind (such as `video` or `image`, `other file`, `unreadable folder`), as counts.
    """

    skipped: Counter[str]

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when the input as a whole cannot be read."""

    def describe(self) -> str:
        """One line for a person: what is read, and how."""


def open_source(options: SourceOptions) -> Source:
    """The source that `options` name. Raises SourceError when there is no such input or it cannot be listed."""
    if not options.input:
        raise SourceError(f"no input is given; allowed: {_ALLOWED}. Use --input PATH or `source.input` in the job file")
    kind = _kind_of(options.input) if options.kind == "auto" else options.kind
    if kind == "folder":
        from datagen.sources.folder import FolderSource

        return FolderSource(options.input, options.media, reprocess_changed=options.reprocess_changed)
    if kind == "manifest":
        from datagen.sources.manifest import ManifestSource

        return ManifestSource(options.input, options.media_root, reprocess_changed=options.reprocess_changed)
    from datagen.sources.coco import CocoSource

    return CocoSource(options.input, options.media_root, options.coco_prompt, reprocess_changed=options.reprocess_changed)


def _kind_of(path: str) -> str:
    if "://" in path:
        raise SourceError(f"{path}: an input is a local path for now; allowed: {_ALLOWED}")
    if os.path.isdir(path):
        return "folder"
    if not os.path.exists(path):
        raise SourceError(f"the input {path} does not exist; allowed: {_ALLOWED}")
    suffix = Path(path).suffix.lower()
    if suffix in MANIFEST_SUFFIXES:
        return "manifest"
    if suffix == ".json":
        return "coco"
    raise SourceError(f"the input {path} is a file that ends in {suffix or 'no extension'}; allowed: {_ALLOWED}")
