"""The decode step: samples get the pixels, size and checksum of their file, or the reason why not."""

from __future__ import annotations

from datagen.decode.child import DecoderProcess
from datagen.errors import SourceError
from datagen.job import DecodeOptions
from datagen.records import Sample
from datagen.sources.uris import path_of_uri

# A thinner picture has no objects to find.
_MIN_SIDE_PX = 2


class DecodeStep:
    """Fills width, height, size_bytes, sha256 and pixels of each sample (guard.Step).

    A sample without prompts whose picture is thinner than 2 px keeps no pixels: the later steps pass it on and it ends as `empty`.
    """

    def __init__(self, options: DecodeOptions, image_size: int) -> None:
        self._decoder = DecoderProcess(options, image_size)

    def setup(self) -> None:
        """Start the decoding process. Raises ClusterError when the machine cannot."""
        self._decoder.start()

    def process(self, samples: list[Sample]) -> list[Sample]:
        """Decode the samples in order; one that cannot be decoded becomes a failed sample. Raises ClusterError only."""
        for sample in samples:
            if sample.failure is None:
                self._decode(sample)
        return samples

    def teardown(self) -> None:
        """End the decoding process."""
        self._decoder.close()

    def _decode(self, sample: Sample) -> None:
        asset = sample.asset
        if asset.failure is not None:
            sample.fail(asset.failure.code, asset.failure.message)
            return
        if asset.media_type != "image":
            sample.fail("unsupported_media", f"{asset.uri} is a {asset.media_type}; this step reads images alone")
            return
        try:
            path = path_of_uri(asset.uri)
        except SourceError as error:
            sample.fail(error.code, error.message)
            return
        outcome = self._decoder.decode(path, asset.uri)
        sample.size_bytes, sample.sha256 = outcome.size_bytes, outcome.sha256
        if outcome.decoded is not None:
            sample.width, sample.height = outcome.decoded.width, outcome.decoded.height
            too_thin = min(sample.width, sample.height) < _MIN_SIDE_PX
            sample.pixels = None if too_thin and asset.prompts is None else outcome.decoded.pixels
        elif outcome.error is not None:
            sample.fail(outcome.error.code, outcome.error.message)
