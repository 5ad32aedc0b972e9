"""A folder of a bucket or hub, recursively: every file with an image extension (or a video extension), in the order of the listing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from datagen.errors import SourceError
from datagen.ids import asset_id_of
from datagen.job import S3Options
from datagen.records import Asset, Failure
from datagen.remote import list_files
from datagen.sources.listing import count_other, refuse_nothing, remote_files, without_companions
from datagen.sources.uris import inside, media_type_of


class BucketSource:
    """Images or videos below a URI such as s3://bucket/photos/; a page of the listing is in memory at a time.

    Raises SourceError when nothing is there, FileNotFoundError never, StorageError when it cannot be listed.
    """

    def __init__(
        self, uri: str, s3: S3Options, media: Literal["image", "video", "any"] = "image", *, reprocess_changed: bool = False
    ) -> None:
        self.uri, self.media, self.reprocess_changed = uri, media, reprocess_changed
        self.skipped: Counter[str] = Counter()
        self._s3 = s3
        try:
            is_empty = next(list_files(uri, s3), None) is None
        except FileNotFoundError:
            is_empty = True
        if is_empty:
            raise SourceError(f"there is nothing below {uri}; check the name, or give the URI of a manifest or a COCO file")

    def describe(self) -> str:
        """One line for a person."""
        return f"{'images and videos' if self.media == 'any' else self.media + 's'} below {self.uri}"

    def __iter__(self) -> Iterator[Asset]:
        """Stream the assets. Raises SourceError when there is none."""
        self.skipped.clear()
        is_empty = True
        for file in without_companions(remote_files(self.uri, self._s3, self.skipped), self.skipped, lambda one: one.uri):
            if count_other(self.skipped, file.uri, self.media):
                continue
            is_video = media_type_of(file.uri, self.media) == "video"
            asset_id = asset_id_of(file.uri, file.version if self.reprocess_changed else "")
            asset = Asset(asset_id, file.uri, "video" if is_video else "image")
            if inside(file.uri):
                asset.failure = Failure("unsupported_uri", f"{file.uri}: its name reads as that of a member of an archive; rename it")
            is_empty = False
            yield asset
        if is_empty:
            refuse_nothing(f"below {self.uri}", self.media, self.skipped)
