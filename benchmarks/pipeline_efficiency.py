"""Pipeline efficiency: output tokens/s of `datagen run` over output tokens/s of bare vLLM on the very same prompt embeddings.

    python benchmarks/pipeline_efficiency.py

In turn, several rounds, with the same engine settings, in float32. The job's clock starts when its perceive worker gets the first picture
(common.steady_rates); bare vLLM gets all embeddings at once, ready in memory, through `LLM.generate`. Printed are every round's ratio,
the median and the spread, and the share of prompt tokens that came from the prefix cache on either side: a ratio is only worth something
where those are alike. The goal is 0.85 on a CPU, where perceiving and decoding share the cores with the language model, and 0.95 on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch

from datagen.decode.step import DecodeStep
from datagen.describe.prompter import PamPrompter, asked_keys
from datagen.job import Job, SourceOptions
from datagen.pam.checkpoint import Checkpoint, resolve_model
from datagen.pam.llm import load_tokenizer, prepare_llm, stop_token_ids
from datagen.pam.projector import load_projector
from datagen.pam.prompts import image_prompt, tokenize
from datagen.perceive.pam import PamPerceiveStep
from datagen.records import Sample
from datagen.sources import open_source


def make_embeddings(job: Job) -> tuple[Path, list[torch.Tensor], list[int]]:
    """The language model's folder, every prompt of the job as embeddings (L, H) in the order of regions and tasks, and the stop ids."""
    files = resolve_model(job.model)
    checkpoint = Checkpoint(files.checkpoint)
    llm = prepare_llm(checkpoint)
    tokenizer = load_tokenizer(llm)
    perceive = PamPerceiveStep(job.model, job.perceive)
    perceive.setup()
    decode = DecodeStep(job.decode, perceive.front_end.image_size)
    decode.setup()
    prompts = {key: tokenize(image_prompt(*key), tokenizer) for key in asked_keys(job.describe)}
    prompter = PamPrompter(load_projector(checkpoint, len(tokenizer)), prompts, job.describe)
    embeds = []
    for index, asset in enumerate(open_source(SourceOptions(input=job.source.input))):
        sample = perceive.process(decode.process([Sample(index, asset)]))[0]
        for region in prompter.requests(sample, 0, len(sample.regions)):
            embeds += [torch.as_tensor(request.embeds) for request in region.requests.values()]
    decode.teardown()
    return llm, embeds, list(stop_token_ids(Checkpoint(llm)))


def bare_engine(llm: Path, max_num_seqs: int) -> Any:
    """vLLM with the settings of the job, warm."""
    import os

    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    os.environ |= {"OMP_NUM_THREADS": str(os.cpu_count()), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    cpu = {} if torch.cuda.is_available() else {"block_size": 32, "enforce_eager": True}
    engine = LLM(
        model=str(llm),
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
        dtype="float32",
        max_num_seqs=max_num_seqs,
        max_model_len=2048,
        generation_config="vllm",
        **cpu,
    )
    hidden = json.loads((llm / "config.json").read_text())["hidden_size"]
    warm = SamplingParams(max_tokens=2, temperature=0.0, detokenize=False)
    engine.generate([{"prompt_embeds": torch.randn(64, hidden)}], warm, use_tqdm=False)
    return engine


def bare_run(engine: Any, embeds: list[torch.Tensor], stop: list[int], max_tokens: int) -> dict[str, float]:
    """Output tokens for these prompts, given all at once, the seconds it took, and the share of prompt tokens that were cached."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop_token_ids=stop, detokenize=False, logprobs=0)
    started = time.monotonic()
    outputs = engine.generate([{"prompt_embeds": embed} for embed in embeds], sampling, use_tqdm=False)
    seconds = time.monotonic() - started
    cached = sum(output.num_cached_tokens or 0 for output in outputs) / sum(len(embed) for embed in embeds)
    return {"tokens": sum(len(output.outputs[0].token_ids) for output in outputs), "seconds": seconds, "cached": cached}


def bare_vllm(folder: Path, max_tokens: int, max_num_seqs: int) -> None:
    """In a process of its own: generate from the saved embeddings, write what bare_run gives to bare.json."""
    saved = torch.load(folder / "embeds.pt", weights_only=True)
    engine = bare_engine(Path((folder / "llm").read_text()), max_num_seqs)
    (folder / "bare.json").write_text(json.dumps(bare_run(engine, saved["embeds"], saved["stop"], max_tokens)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--regions", type=int, default=8, help="per image")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare_vllm(arguments.bare, arguments.max_tokens, arguments.max_num_seqs)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = common.mid_checkpoint(folder, "language")
        print(
            f"{arguments.images} images x {arguments.regions} regions x 4 tasks, answers of at most {arguments.max_tokens} tokens",
            flush=True,
        )
        ratios = []
        for number in range(arguments.rounds):
            place = folder / f"round{number}"
            place.mkdir()
            ours = common.steady_rates(checkpoint, place, arguments.images, arguments.regions, arguments.max_tokens, arguments.max_num_seqs)
            if not number:
                llm, embeds, stop = make_embeddings(ours.job)
                torch.save({"embeds": embeds, "stop": stop}, folder / "embeds.pt")
                (folder / "llm").write_text(str(llm))
            sizes = ["--max-tokens", str(arguments.max_tokens), "--max-num-seqs", str(arguments.max_num_seqs)]
            subprocess.run([sys.executable, __file__, "--bare", str(folder), *sizes], stdout=subprocess.DEVNULL, check=True)
            bare = json.loads((folder / "bare.json").read_text())
            theirs = bare["tokens"] / bare["seconds"]
            ratios.append(ours.tokens / theirs)
            print(f"bare vLLM: {bare['tokens']} output tokens in {bare['seconds']:.1f} s")
            print(f"round {number + 1}: datagen {ours.tokens:.1f} tokens/s, bare vLLM {theirs:.1f} tokens/s: efficiency {ratios[-1]:.2f}")
            print(f"         from the prefix cache: datagen {ours.cached:.0%}, bare vLLM {bare['cached']:.0%} of prompt tokens", flush=True)
        print(f"median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
