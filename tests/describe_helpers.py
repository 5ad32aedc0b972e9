"""A describe job over the golden checkpoint, and samples as the perceive step leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datagen.job import Job, parse_job
from datagen.records import Asset, Clip, Event, Prompt, Region, RegionTokens, Sample, Track, TrackFrame, TrackTokens


def golden_job(golden: Path, engine: str = "vllm", **describe: object) -> Job:
    short = {"label": 8, "definition": 12, "caption": 12, "description": 16}
    options = {"engine": engine, "device": "cpu", "dtype": "float32", "max_tokens": short, **describe}
    return parse_job({"model": {"checkpoint": str(golden / "pam_tiny")}, "describe": options})


def sample_with_tokens(num_regions: int, seed: int = 0, image_tokens: int = 1024, name: str = "sample") -> Sample:
    """A sample as the perceive step leaves it, with random tokens."""
    random = np.random.default_rng(seed)
    rle = {"size": [4, 4], "counts": "08"}
    regions = [Region(n, Prompt(box=(0, 0, 4, 4)), rle, (0.0, 0.0, 4.0, 4.0), 16, 0.9, 0.97, 3.0) for n in range(num_regions)]
    tokens = RegionTokens(
        random.standard_normal((num_regions, image_tokens, 1024), dtype=np.float32),
        random.standard_normal((num_regions, 16, 256), dtype=np.float32),
    )
    return Sample(0, Asset(name, f"{name}.png"), width=4, height=4, regions=regions, tokens=tokens)


def clip_with_tracks(events: list[int], name: str = "clip", clip_index: int = 0, sizes: tuple[int, int] = (4, 2), seed: int = 0) -> Sample:
    """A clip as the perceive step leaves it: one track for each number of events, with random tokens.

    sizes: image tokens of the first of the 16 frames, and of each later one; 1024 and 256 for PAM.
    """
    random = np.random.default_rng(seed)
    tracks = []
    for index, count in enumerate(events):
        frames = [TrackFrame(index, n, n / 4, {"size": [4, 4], "counts": "08"}, (0.0, 0.0, 4.0, 4.0), 3.0, 0.9) for n in range(16 * count)]
        track = Track(index, {0: Prompt(box=(0, 0, 4, 4))}, frames, track_id=f"{name}-t{index:04d}")
        for start in range(0, 16 * count, 16):
            tokens = TrackTokens(
                list(range(start, start + 16)),
                random.standard_normal((sizes[0], 1024), dtype=np.float32),
                random.standard_normal((15, sizes[1], 1024), dtype=np.float32),
                random.standard_normal((16, 16, 256), dtype=np.float32),
            )
            track.events.append(Event(start / 4, start / 4 + 4, start, start + 15, tokens))
        tracks.append(track)
    num_frames = 16 * max(events, default=1)
    clip = Clip(clip_index, 0.0, num_frames / 4, num_frames, is_last=True)
    return Sample(0, Asset(name, f"{name}.mp4", "video"), width=4, height=4, clip=clip, tracks=tracks)
