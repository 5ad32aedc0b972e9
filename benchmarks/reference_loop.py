"""datagen against the reference's way of working, with the same weights, pictures, prompts and tasks, in the same run.

    python benchmarks/reference_loop.py [--shape language]

Two loops are written here, over transformers and the same modules:

- the reference's: one region and one task at a time: encode the picture, decode one prompt, run the perceiver, `generate` with batch
  size 1;
- a competent user's: encode each picture once, perceive each region once, `generate` its tasks as one batch, padded on the left.

All decode greedily in float32; a caption that differs from datagen's ends the benchmark with an error. Both loops do one region before
their clock starts, and datagen's clock starts when its models are loaded. The loops take whole pictures, as many as give the regions
asked for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import Qwen2ForCausalLM

from datagen.decode.image import to_rgb
from datagen.job import ModelOptions
from datagen.pam.checkpoint import Checkpoint, resolve_model
from datagen.pam.front_end import load_front_end
from datagen.pam.llm import load_tokenizer, prepare_llm, stop_token_ids
from datagen.pam.projector import load_projector
from datagen.pam.prompts import image_prompt, tokenize
from datagen.perceive.prompts import encode_prompt
from datagen.records import Prompt

Describe = Callable[[Path, list[Prompt]], list[dict[str, str]]]


class Loop:
    """What both loops are made of."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        files = resolve_model(ModelOptions(checkpoint=str(folder)))
        checkpoint = Checkpoint(files.checkpoint)
        llm = prepare_llm(checkpoint)
        self.tokenizer = load_tokenizer(llm)
        self.front_end = load_front_end(files)
        self.projector = load_projector(checkpoint, len(self.tokenizer))
        self.model = Qwen2ForCausalLM.from_pretrained(llm, dtype=torch.float32).eval()
        self.stop = list(stop_token_ids(Checkpoint(llm)))
        self.max_tokens = max_tokens

    def reference(self, path: Path, prompts: list[Prompt]) -> list[dict[str, str]]:
        """Texts by task of each region of a picture; everything is computed anew for every one."""
        return [{task: self._texts(self._perceive(*self._encode(path), prompt), [task])[0] for task in common.TASKS} for prompt in prompts]

    def competent(self, path: Path, prompts: list[Prompt]) -> list[dict[str, str]]:
        """The same: a picture is encoded once, a region perceived once, and its tasks are one batch."""
        features, size = self._encode(path)
        tasks = list(common.TASKS)
        return [dict(zip(tasks, self._texts(self._perceive(features, size, prompt), tasks), strict=True)) for prompt in prompts]

    @torch.inference_mode()
    def _encode(self, path: Path) -> tuple[Any, tuple[int, int]]:
        """Features of a picture, and its width and height in pixels."""
        size = self.front_end.image_size
        with Image.open(path) as image:
            pixels = to_rgb(image).resize((size, size))
            return self.front_end.encode(torch.from_numpy(np.asarray(pixels)[None].copy())), image.size

    @torch.inference_mode()
    def _perceive(self, features: Any, size: tuple[int, int], prompt: Prompt) -> torch.Tensor:
        """The visual part of a region's prompts, (L, H)."""
        encoded = encode_prompt(prompt, *size, self.front_end.image_size)
        points, labels = torch.from_numpy(encoded.points)[None], torch.from_numpy(encoded.labels)[None]
        image_tokens, semantic = self.front_end.perceive(self.front_end.decode(features, torch.tensor([0]), points, labels))
        return self.projector.regions(image_tokens, semantic)[0]

    @torch.inference_mode()
    def _texts(self, visual: torch.Tensor, tasks: list[str]) -> list[str]:
        prompts = [self.projector.prompt(visual, tokenize(image_prompt(task, "en"), self.tokenizer)) for task in tasks]
        longest = max(len(prompt) for prompt in prompts)
        embeds = torch.stack([torch.nn.functional.pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in prompts])
        mask = torch.stack([(torch.arange(longest) >= longest - len(prompt)).long() for prompt in prompts])
        out = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=self.max_tokens,
            do_sample=False,
            eos_token_id=self.stop,
            pad_token_id=self.stop[0],
        )
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--regions", type=int, default=8, help="per image")
    parser.add_argument("--reference-regions", type=int, default=8, help="how many regions each loop does at least")
    parser.add_argument("--shape", choices=list(common.SHAPES), default="released", help="of the model, see common.py")
    parser.add_argument("--max-tokens", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = common.mid_checkpoint(folder, arguments.shape)
        print(
            f"{arguments.images} images x {arguments.regions} regions x 4 tasks, answers of at most {arguments.max_tokens} tokens",
            flush=True,
        )
        ours = common.steady_rates(checkpoint, folder, arguments.images, arguments.regions, arguments.max_tokens)
        output = Path(ours.job.output or "")
        rows = pq.read_table(output / "regions").to_pylist()
        assets = {row["asset_id"]: row["uri"] for row in pq.read_table(output / "assets").to_pylist()}
        loop = Loop(checkpoint, arguments.max_tokens)
        pictures = by_picture(rows, assets, arguments.reference_regions)
        for name, describe in (("reference", loop.reference), ("competent", loop.competent)):
            warm, prompts = next(iter(pictures.items()))
            describe(warm, [Prompt(box=tuple(prompts[0]["prompt"]["box"]))])
            rate = measured(describe, pictures)
            print(
                f"{name}: {rate:.3f} regions/s with the same captions; datagen {ours.regions:.3f}: ratio {ours.regions / rate:.1f}",
                flush=True,
            )


def by_picture(rows: list[dict[str, Any]], files: dict[str, str], count: int) -> dict[Path, list[dict[str, Any]]]:
    """Rows of whole pictures, until there are as many as asked for."""
    pictures: dict[Path, list[dict[str, Any]]] = {}
    for row in rows:
        pictures.setdefault(Path(files[row["asset_id"]]), []).append(row)
    found: dict[Path, list[dict[str, Any]]] = {}
    for path, regions in pictures.items():
        if sum(map(len, found.values())) < count:
            found[path] = regions
    return found


def measured(describe: Describe, pictures: dict[Path, list[dict[str, Any]]]) -> float:
    """Regions/s of a loop. Ends the benchmark when a caption differs from datagen's."""
    started, texts = time.monotonic(), {}
    for path, rows in pictures.items():
        texts[path] = describe(path, [Prompt(box=tuple(row["prompt"]["box"])) for row in rows])
    seconds = time.monotonic() - started
    for path, rows in pictures.items():
        for row, text in zip(rows, texts[path], strict=True):
            if text["caption"] != row["caption_en"]:
                raise SystemExit(f"{row['region_id']}: the loop says {text['caption']!r}, datagen {row['caption_en']!r}")
    return sum(map(len, pictures.values())) / seconds


if __name__ == "__main__":
    main()
