"""Streaming captions: output tokens/s of the describe step over those of bare vLLM on the very same prompt embeddings.

    python benchmarks/stream_efficiency.py

Rendered videos are decoded and tracked as a stream, each object described segment after segment, every caption told the one before
it. Such a chain has one request at a time, so the engine is full only if the chains of all objects of all videos run side by side.
Bare vLLM knows no chain: it gets all the prompts at once, ready in memory, through `LLM.generate`. Same engine settings, a language
model of 23 M with random weights, on the CPU, in float32. Both engines are up all the time and take turns, round by round on other
videos, so that whatever else the machine does slows both; the result is the median ratio. Goal: 0.8 with 32 chains or more.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import common
import torch
from pipeline_efficiency import bare_engine, bare_run

from datagen.decode import make_video_reader
from datagen.describe import Completion, Engine, Request
from datagen.describe.step import DescribeStep
from datagen.job import DescribeOptions, Job, parse_job
from datagen.pam.checkpoint import Checkpoint, resolve_model
from datagen.pam.llm import prepare_llm, stop_token_ids
from datagen.pam.tiny import IMAGE_SIZE, build_random
from datagen.perceive import make_video_step
from datagen.records import Asset, Prompt, Sample
from datagen.scenes import encode_video, random_clip, render_clip


class Recorder:
    """An engine that keeps the prompts it passes on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.embeds: list[torch.Tensor] = []
        self.open = self.most_open = 0

    async def generate(self, request: Request) -> Completion:
        self.embeds.append(torch.as_tensor(request.embeds))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            return await self._engine.generate(request)
        finally:
            self.open -= 1

    def close(self) -> None:
        self._engine.close()


def make_video(path: Path, seed: int, num_objects: int, num_frames: int) -> Asset:
    """The start of a rendered clip, and boxes on its first frame, anywhere: what they hold is described alike."""
    frames = [frame.pixels for frame in islice(render_clip(random_clip(seed)), num_frames)]
    path.write_bytes(encode_video(frames))
    height, width = frames[0].shape[:2]
    return Asset(path.stem, str(path), "video", list(_boxes(random.Random(seed), num_objects, width, height)))


def _boxes(rng: random.Random, count: int, width: int, height: int) -> Iterator[Prompt]:
    for _ in range(count):
        x, y = rng.uniform(0, 0.6) * width, rng.uniform(0, 0.6) * height
        yield Prompt(box=(x, y, x + rng.uniform(0.15, 0.4) * width, y + rng.uniform(0.15, 0.4) * height))


def stream_job(checkpoint: Path, segment_frames: int, max_tokens: int, max_num_seqs: int) -> Job:
    """A job of streaming captions in one language."""
    describe = {
        "max_tokens": {"event": max_tokens},
        "max_num_seqs": max_num_seqs,
        "max_model_len": 1024,
        "device": "cpu",
        "dtype": "float32",
    }
    options = {"model": {"checkpoint": str(checkpoint)}, "perceive": {"track": {"segment_frames": segment_frames}}, "describe": describe}
    return parse_job(options)


def tracked(job: Job, assets: list[Asset]) -> list[Sample]:
    """The videos' clips, as they reach the describe step."""
    step = make_video_step(job, IMAGE_SIZE, partial(make_video_reader, job))
    step.setup()
    clips = [clip for index, asset in enumerate(assets) for clip in step.clips(Sample(index, asset))]
    step.teardown()
    return clips


def described(step: DescribeStep, clips: list[Sample]) -> tuple[int, float, Recorder]:
    """Output tokens of the step, called as a job calls it: clip by clip, several calls at a time; seconds; and what it asked."""
    engine, step.engine = step.engine, Recorder(step.engine)
    recorder = step.engine
    started = time.monotonic()
    with ThreadPoolExecutor(DescribeOptions().concurrent_batches) as calls:
        list(calls.map(lambda clip: step.process([clip]), clips))
    seconds = time.monotonic() - started
    step.engine = engine
    failures = [clip.failure.message for clip in clips if clip.failure is not None]
    if failures:
        raise SystemExit(f"{len(failures)} clips failed: {failures[0]}")
    return sum(clip.usage["output_tokens"] for clip in clips), seconds, recorder


def serve_bare(pipe: Connection, llm: Path, stop: list[int], max_tokens: int, max_num_seqs: int) -> None:
    """In a process of its own: answer every list of prompt embeddings with tokens and seconds, until None comes."""
    engine = bare_engine(llm, max_num_seqs)
    pipe.send("ready")
    while (embeds := pipe.recv()) is not None:
        pipe.send(bare_run(engine, [torch.from_numpy(embed) for embed in embeds], stop, max_tokens))
    engine.llm_engine.engine_core.shutdown()  # or the end of this process waits for it for ever


@contextmanager
def bare_vllm(job: Job) -> Iterator[Callable[[list[torch.Tensor]], tuple[int, float]]]:
    """A function from prompt embeddings to tokens and seconds."""
    llm = prepare_llm(Checkpoint(resolve_model(job.model).checkpoint))
    stop = list(stop_token_ids(Checkpoint(llm)))
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, llm, stop, job.describe.max_tokens.event, job.describe.max_num_seqs)
    process = context.Process(target=serve_bare, args=arguments)
    process.start()
    theirs.close()
    ours.recv()

    def ask(embeds: list[torch.Tensor]) -> tuple[int, float]:
        ours.send([embed.numpy() for embed in embeds])
        return ours.recv()

    yield ask
    ours.send(None)
    process.join()


def compare(job: Job, warm_up: Sample, rounds: list[list[Sample]]) -> None:
    """Let both have a turn in every round, and print who was how fast."""
    step = DescribeStep(job)
    step.setup()
    step.process([warm_up])
    ratios = []
    with bare_vllm(job) as ask:
        print(f"{'round':>6} {'requests':>9} {'at a time':>10} {'tokens':>7} {'datagen tokens/s':>17} {'bare vLLM':>10} {'ratio':>6}")
        for number, clips in enumerate(rounds):
            tokens, seconds, recorder = described(step, clips)
            bare_tokens, bare_seconds = ask(recorder.embeds)
            ours, theirs = tokens / seconds, bare_tokens / bare_seconds
            ratios.append(ours / theirs)
            asked, at_a_time = len(recorder.embeds), recorder.most_open
            print(
                f"{number:>6} {asked:>9} {at_a_time:>10} {tokens:>7} {ours:>17.1f} {theirs:>10.1f} {ratios[-1]:>6.2f}",
                flush=True,
            )
    step.teardown()
    print(f"efficiency {median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--videos", type=int, default=4, help="per round")
    parser.add_argument("--objects", type=int, default=8, help="per video")
    parser.add_argument("--segments", type=int, default=3, help="per video")
    parser.add_argument("--segment-frames", type=int, default=2, help="few, since tracking them is not what is measured")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    arguments = parser.parse_args()
    num_frames = arguments.segments * arguments.segment_frames
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = stream_job(
            build_random(folder / "model", llm=common.LLM_25M), arguments.segment_frames, arguments.max_tokens, arguments.max_num_seqs
        )
        seeds = range(arguments.rounds * arguments.videos + 1)
        warm_up, *clips = tracked(job, [make_video(folder / f"{seed}.mp4", seed, arguments.objects, num_frames) for seed in seeds])
        rounds = [clips[start : start + arguments.videos] for start in range(0, len(clips), arguments.videos)]
        chains = [len(track.events) for clip in rounds[0] for track in clip.tracks]
        print(
            f"{common.machine()}; first round: {len(chains)} chains of {max(chains)} events at most, in {len(rounds[0])} videos", flush=True
        )
        compare(job, warm_up, rounds)


if __name__ == "__main__":
    main()
