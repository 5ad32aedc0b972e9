"""What the benchmarks share: a mid-size checkpoint with random weights, and prompted pictures."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from datagen.job import Job, ModelOptions, parse_job
from datagen.pam.inspection import inspect_checkpoint
from datagen.pam.tiny import build_random
from datagen.run import run_job
from datagen.run.console import noise_to
from datagen.run.summary import RunSummary
from datagen.scenes import random_scene, render

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in a run, for both sides of a comparison
# SAM 2.1's own hiera_t, the smallest that was released: 39 M parameters.
HIERA_TINY: dict[str, Any] = {
    "num_maskmem": 7,
    "image_encoder.trunk.embed_dim": 96,
    "image_encoder.trunk.num_heads": 1,
    "image_encoder.trunk.stages": [1, 2, 7, 2],
    "image_encoder.trunk.global_att_blocks": [5, 7, 9],
    "image_encoder.trunk.window_pos_embed_bkg_spatial_size": [7, 7],
    "image_encoder.neck.backbone_channel_list": [768, 384, 192, 96],
    "memory_attention.num_layers": 4,
    "memory_attention.layer.dim_feedforward": 2048,
    "memory_attention.layer.self_attention.downsample_rate": 1,
    "memory_attention.layer.cross_attention.downsample_rate": 1,
    "memory_encoder.fuser.num_layers": 2,
}
# Mid-size models; what doing things once and together saves depends on which part costs most.
#   released: the smallest released SAM 2.1 at its 1024 px, so 1042 visual tokens a region; a small language model
#   language: a larger language model that costs ten times what perceiving a region does; 512 px, so 274 visual tokens a region
_LLM_200M = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 4}
LLM_25M = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2}
_SEGMENTER = {"image_encoder.trunk.embed_dim": 32, "image_encoder.neck.backbone_channel_list": [256, 128, 64, 32]}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "released": (LLM_25M, {"image_size": 1024, **HIERA_TINY}),
    "language": (_LLM_200M, {"image_size": 512, **_SEGMENTER}),
}
TASKS = ("label", "definition", "caption", "description")


def mid_checkpoint(folder: Path, shape: str) -> Path:
    """A random PAM of one of SHAPES. What datagen converts of it goes into `folder`, too."""
    llm, segmenter = SHAPES[shape]
    os.environ["DATAGEN_CACHE"] = str(folder / "cache")
    path = build_random(folder / "mid", llm=llm, segmenter=segmenter)
    counts = {name: group.num_parameters for name, group in inspect_checkpoint(ModelOptions(checkpoint=str(path))).groups.items()}
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in counts.items() if count > 1e5)
    print(f"{machine()}; random weights: {sizes}", flush=True)
    return path


def make_pictures(folder: Path, count: int, regions: int) -> Path:
    """A manifest of rendered pictures, each with `regions` boxes."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    rows = []
    for index in range(count):
        pixels = render(random_scene(index)).pixels
        Image.fromarray(pixels).save(folder / f"{index:03}.png")
        height, width = pixels.shape[:2]
        boxes = []
        for _ in range(regions):
            x, y = rng.uniform(0, width * 0.6), rng.uniform(0, height * 0.6)
            boxes.append({"box": [x, y, x + rng.uniform(0.2, 0.4) * width, y + rng.uniform(0.2, 0.4) * height]})
        rows.append({"uri": f"{index:03}.png", "prompts": boxes})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(json.dumps(row) for row in rows))
    return manifest


def mid_job(checkpoint: Path, manifest: Path, output: Path, max_tokens: int, max_num_seqs: int = 64) -> Job:
    """Four tasks, every answer at most `max_tokens` long, in float32."""
    return parse_job(
        {
            "name": "benchmark",
            "model": {"checkpoint": str(checkpoint)},
            "source": {"input": str(manifest)},
            "output": str(output),
            "perceive": {"batch_size": 2},
            "describe": {
                "tasks": list(TASKS),
                "max_tokens": dict.fromkeys(TASKS, max_tokens),
                "dtype": "float32",
                "max_num_seqs": max_num_seqs,
                "max_model_len": 2048,
            },
            "write": {"assets_per_part": 8},
        }
    )


def steady_rates(checkpoint: Path, folder: Path, images: int, regions: int, max_tokens: int, max_num_seqs: int = 64) -> Rates:
    """Run a job over `images` pictures. Returns rates per second, and the job, whose input and output stay in `folder`.

    Pictures are held back before the decoder until the language model has been loaded, and the clock starts when the perceive worker
    gets the first: loading counts on neither side of a comparison, and no picture is perceived for nothing meanwhile.
    """
    job = mid_job(checkpoint, make_pictures(folder / "in", images, regions), folder / "out", max_tokens, max_num_seqs)
    ready = folder / "ready"
    os.environ["DATAGEN_FAULTS"] = json.dumps({"worker.decode": {"wait_for": str(ready)}})

    @contextmanager
    def screen(log: Path) -> Iterator[Callable[[RunSummary], None]]:
        with noise_to(log):
            yield lambda summary: ready.touch() if summary.counters.get("describe_workers") else None

    summary = run_job(job, screen=screen)
    spans, usage = summary.spans, summary.usage
    seconds = max(end for _, end in spans.values()) - spans["perceive"][0]
    cached = usage["cached_tokens"] / usage["prompt_tokens"]
    print(
        f"datagen: {summary.regions} regions, {usage['output_tokens']} output tokens in {seconds:.1f} s; "
        f"{cached:.0%} of prompt tokens from the prefix cache",
        flush=True,
    )
    return Rates(summary.regions / seconds, usage["output_tokens"] / seconds, cached, job)


@dataclass(frozen=True)
class Rates:
    """Regions and output tokens per second, the share of prompt tokens that came from the prefix cache, and the job that was run."""

    regions: float
    tokens: float
    cached: float
    job: Job


def machine() -> str:
    """One line about where this ran."""
    memory = psutil.virtual_memory().total / 2**30
    busy = os.getloadavg()[0]
    return f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, load {busy:.1f} before"


def peak_memory(process: subprocess.Popen[str]) -> int:
    """The process's peak memory until it ends, bytes, without pages of Ray's object store, which all of its processes share."""
    driver, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            memory = driver.memory_info()
        except psutil.Error:
            break
        peak = max(peak, memory.rss - memory.shared)
        time.sleep(0.2)
    return peak
