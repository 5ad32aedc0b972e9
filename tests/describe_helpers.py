"""A describe job over the golden checkpoint, and samples as the perceive step leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datagen.job import Job, parse_job
from datagen.records import Asset, Prompt, Region, RegionTokens, Sample


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
