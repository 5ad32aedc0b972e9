"""datagen against the reference's way of working, with the same weights, pictures, prompts and tasks, in the same run.

    python benchmarks/reference_loop.py [--shape language]

The reference takes one region and one task at a time: encode the picture, decode one prompt, run the perceiver, `generate` with
batch size 1. That loop is written here, over transformers and the same modules. Both decode greedily in float32, so their texts can
be compared. Start-up (loading, engine) is left out on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

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


class ReferenceLoop:
    """One region, one task, one sample at a time."""

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

    @torch.inference_mode()
    def describe(self, path: Path, prompt: Prompt, task: str) -> str:
        """The text of one task for one region, everything computed from the file on."""
        with Image.open(path) as image:
            width, height = image.size
            size = self.front_end.image_size
            pixels = to_rgb(image).resize((size, size))
        features = self.front_end.encode(torch.from_numpy(np.asarray(pixels)[None].copy()))
        encoded = encode_prompt(prompt, width, height, size)
        points, labels = torch.from_numpy(encoded.points)[None], torch.from_numpy(encoded.labels)[None]
        image_tokens, semantic = self.front_end.perceive(self.front_end.decode(features, torch.tensor([0]), points, labels))
        ids = tokenize(image_prompt(task, "en"), self.tokenizer)
        embeds = self.projector.prompt(self.projector.regions(image_tokens, semantic)[0], ids)[None]
        out = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=self.max_tokens,
            do_sample=False,
            eos_token_id=self.stop,
            pad_token_id=self.stop[0],
        )
        return self.tokenizer.decode(out[0], skip_special_tokens=True).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--regions", type=int, default=8, help="per image")
    parser.add_argument("--reference-regions", type=int, default=6, help="how many regions the slow loop does")
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
        loop = ReferenceLoop(checkpoint, arguments.max_tokens)
        same, started = 0, time.monotonic()
        step = max(1, len(rows) // arguments.reference_regions)
        chosen = rows[::step][: arguments.reference_regions]
        for row in chosen:
            for task in common.TASKS:
                loop.describe(Path(assets[row["asset_id"]]), Prompt(box=tuple(row["prompt"]["box"])), task)
        seconds = time.monotonic() - started
        for row in chosen:
            text = loop.describe(Path(assets[row["asset_id"]]), Prompt(box=tuple(row["prompt"]["box"])), "caption")
            same += text == row["caption_en"]
        theirs = len(chosen) / seconds
        print(f"reference: {len(chosen)} regions in {seconds:.1f} s = {theirs:.3f} regions/s; same caption in {same} of {len(chosen)}")
        print(f"datagen {ours.regions:.3f} regions/s, reference {theirs:.3f} regions/s: ratio {ours.regions / theirs:.1f}")


if __name__ == "__main__":
    main()
