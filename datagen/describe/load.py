"""A job's checkpoint to prompters and an engine."""

from __future__ import annotations

from pathlib import Path

import torch

from datagen.describe import Engine, OnDeath
from datagen.describe.events import EventPrompter, PamEventPrompter
from datagen.describe.prompter import PamPrompter, Prompter, asked_keys
from datagen.errors import JobError
from datagen.job import DescribeOptions, Job
from datagen.pam.checkpoint import Checkpoint, checkpoint_folder
from datagen.pam.llm import load_tokenizer, prepare_llm
from datagen.pam.projector import load_projector
from datagen.pam.prompts import image_prompt, tokenize


def load_parts(job: Job, on_engine_death: OnDeath) -> tuple[Prompter, EventPrompter, Engine]:
    """Raises ModelLoadError when the checkpoint is not whole, JobError when the job asks for a device that is not there."""
    options = job.describe
    device, dtype = device_and_dtype(options)
    checkpoint = Checkpoint(checkpoint_folder(job.model))
    folder = prepare_llm(checkpoint)
    tokenizer = load_tokenizer(folder)
    # The engine first: vLLM reserves its share of the GPU before anything of ours is there.
    engine = make_engine(folder, options, on_engine_death)
    projector = load_projector(checkpoint, len(tokenizer), device, dtype)
    prompts = {key: tokenize(image_prompt(*key), tokenizer) for key in asked_keys(options)}
    return PamPrompter(projector, prompts, options), PamEventPrompter(projector, tokenizer, options), engine


def make_engine(folder: Path, options: DescribeOptions, on_engine_death: OnDeath) -> Engine:
    """The engine that a job names, over a folder made by `prepare_llm`."""
    device, dtype = device_and_dtype(options)
    if options.engine == "transformers":
        from datagen.describe.transformers import TransformersEngine

        return TransformersEngine(folder, device, dtype)
    from datagen.describe.vllm import VllmEngine

    return VllmEngine(folder, options, device, dtype, on_engine_death)


def device_and_dtype(options: DescribeOptions) -> tuple[str, torch.dtype]:
    """`auto` resolved: a GPU where there is one, in bfloat16; else the CPU, in float32."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise JobError(f"describe.device is {device}, but torch sees no GPU here. Use `auto` or `cpu`, or give this step a GPU")
    if options.dtype == "auto":
        return device, torch.bfloat16 if device.startswith("cuda") else torch.float32
    return device, getattr(torch, options.dtype)
