"""Images with more prompts than may go through at once: they go through in portions, and end as one part.

A region's tokens take 2 MB (4 MB in float32) from the perceive step to the describe step, so that ten thousand of them would not fit
anywhere. Each portion is a sample of its own with some of the prompts; its rows are staged, and when the last portion is there, the driver
makes the asset's part of them. Until then nothing of the asset is committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from datagen.records import Sample

PORTION_REGIONS = 256
"""Prompts of one image that go through together."""

TOGETHER_REGIONS = 512
"""Regions that samples which travel together may have, unless one alone has more."""


def in_portions(samples: Iterable[Sample], size: int = PORTION_REGIONS) -> Iterator[Sample]:
    """The samples; those with more prompts than `size` as portions, whose prompts keep their places."""
    for sample in samples:
        prompts = sample.asset.prompts or []
        starts = range(0, len(prompts), size)
        if len(starts) < 2:
            yield sample
            continue
        placed = [prompt if prompt.index is not None else replace(prompt, index=place) for place, prompt in enumerate(prompts)]
        for number, start in enumerate(starts):
            # What the source refused is counted with the first.
            dropped = dict(sample.asset.dropped) if number == 0 else {}
            asset = replace(sample.asset, prompts=placed[start : start + size], dropped=dropped)
            yield Sample(sample.index, asset, attempts=sample.attempts, portion=(number, len(starts)))


def weighed(samples: Iterable[Sample], most: int, max_regions: int, regions: int = TOGETHER_REGIONS) -> Iterator[list[Sample]]:
    """Lists of at most `most` samples, which together have at most `regions` regions. max_regions: of an image without prompts."""
    some: list[Sample] = []
    weight = 0
    for sample in samples:
        more = max_regions if sample.asset.prompts is None else len(sample.asset.prompts)
        if some and (len(some) == most or weight + more > regions):
            yield some
            some, weight = [], 0
        some.append(sample)
        weight += more
    if some:
        yield some


def is_counted(sample: Sample) -> bool:
    """Whether a sample is counted as an asset: of an image in portions, the first is."""
    return sample.portion is None or sample.portion[0] == 0
