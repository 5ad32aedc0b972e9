"""The decode step: samples get the pixels, size and checksum of their file, or the reason why not."""

from __future__ import annotations

from concurrent.futures import Future

from datagen.decode.child import DecoderProcess
from datagen.decode.copies import LocalCopies
from datagen.decode.files import largest_image_bytes
from datagen.errors import DecodeError, PromptError
from datagen.job import DecodeOptions, S3Options
from datagen.portions import is_counted
from datagen.records import Asset, Sample
from datagen.stated import check_stated_size

# A thinner picture has no objects to find.
_MIN_SIDE_PX = 2

FURTHER_FRAMES = "further_frames"
"""What `dropped` calls the frames of an animation, or the pages of a TIFF, after the first."""


class DecodeStep:
    """Fills width, height, num_frames (of several), size_bytes, sha256 and pixels of each sample (guard.Step).

    Of an animation or a TIFF of several pages the first is used, and the others are counted in `dropped`.

    A sample without prompts whose picture is thinner than 2 px keeps no pixels: the later steps pass it on and it ends as `empty`.
    """

    def __init__(self, options: DecodeOptions, image_size: int, s3: S3Options | None = None) -> None:
        self._decoder = DecoderProcess(options, image_size)
        self._copies = LocalCopies(s3 or S3Options(), largest_image_bytes(options.max_pixels), options.fetch_threads)

    def setup(self) -> None:
        """Start the decoding process. Raises ClusterError when the machine cannot."""
        self._decoder.start()

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Decode the samples in order, while the next ones are fetched; one that cannot be decoded becomes a failed sample.

        Raises ClusterError, and StorageError for what concerns all files of a bucket.
        """
        fetching = {sample.index: self._copies.begin(sample.asset.uri, sample.asset.span) for sample in samples if _is_readable(sample)}
        for sample in samples:
            if sample.index in fetching:
                self._decode(sample, fetching[sample.index])
            elif sample.failure is None:
                _fail_unread(sample)
        return samples

    def teardown(self) -> None:
        """End the decoding process, and remove fetched files."""
        self._decoder.close()
        self._copies.close()

    def _decode(self, sample: Sample, fetching: Future[str]) -> None:
        asset = sample.asset
        try:
            with self._copies.copy(asset.uri, fetching) as path:
                outcome = self._decoder.decode(path, asset.uri)
        except DecodeError as error:
            sample.fail(error.code, error.message)
            return
        sample.size_bytes, sample.sha256 = outcome.size_bytes, outcome.sha256
        if outcome.decoded is not None:
            sample.width, sample.height = outcome.decoded.width, outcome.decoded.height
            too_thin = min(sample.width, sample.height) < _MIN_SIDE_PX
            if outcome.decoded.num_frames > 1:
                sample.num_frames = outcome.decoded.num_frames
                sample.dropped |= {FURTHER_FRAMES: sample.num_frames - 1} if is_counted(sample) else {}
            sample.pixels = None if too_thin and asset.prompts is None else outcome.decoded.pixels
            try:
                check_stated_size(asset, sample.width, sample.height, is_turned=outcome.decoded.is_turned)
            except PromptError as error:
                sample.fail(error.code, error.message)
        elif outcome.error is not None:
            sample.fail(outcome.error.code, outcome.error.message)


def _is_readable(sample: Sample) -> bool:
    asset: Asset = sample.asset
    return sample.failure is None and asset.failure is None and asset.media_type == "image"


def _fail_unread(sample: Sample) -> None:
    asset = sample.asset
    if asset.failure is not None:
        sample.fail(asset.failure.code, asset.failure.message)
    else:
        sample.fail("unsupported_media", f"{asset.uri} is a {asset.media_type}; this step reads images alone")
