"""Tracking: does memory grow with the clip, does time per frame, and what does one more object cost?

    python benchmarks/tracking.py

The models are real, with random weights; only the pictures are made up.

Memory and time per frame: the embedded tiny checkpoint over clips of growing length, each in a process of its own. Peak resident
memory, and its growth over the shortest clip; what is found, the encoded masks, is counted (last column) and let go. The last 200
frames are tracked in turn with those of a fresh clip of 200, one of each, so that whatever else the machine does slows both: the
ratio of the two is what the length costs.

Objects: 1 to 16 in one pass over the same frames, for the tiny checkpoint and for one with the smallest released SAM 2.1
architecture; as a share of what so many passes of one object would take.

Times are CPU time of one thread, medians over frames. Goals: memory within 5 %, time per frame within 10 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import common
import numpy as np
import torch
from video_memory import peak_mb

from datagen.job import ModelOptions
from datagen.pam.checkpoint import resolve_model
from datagen.pam.front_end import load_front_end
from datagen.pam.tiny import build_random, build_tiny
from datagen.pam.tracker import Tracker
from datagen.perceive.tracking import ClipTracking
from datagen.records import Frame, Prompt

WIDTH, HEIGHT, FPS = 320, 240, 8
PAIRED_FRAMES = 200


class Clip:
    """A clip of any length being tracked, one frame at a time. What is found is counted and let go: it is the result, not memory."""

    def __init__(self, tracker: Tracker, num_objects: int, num_frames: int) -> None:
        boxes = [(10.0 + 15 * number, 40.0, 70.0 + 15 * number, 110.0) for number in range(num_objects)]
        objects = [{0: Prompt(box=box)} for box in boxes]
        self._tracking = ClipTracking(tracker, objects, num_frames, WIDTH, HEIGHT)
        self._pictures = pictures(tracker.front_end.image_size)
        self._next = 0
        self.result_bytes = 0

    def step(self) -> float:
        """Track one more frame; CPU seconds."""
        frame = Frame(self._next, self._next / FPS, next(self._pictures))
        self._next += 1
        started = time.process_time()
        found = self._tracking.push(frame)
        seconds = time.process_time() - started
        self.result_bytes += sum(len(item.mask["counts"]) for item in found if item.mask is not None)
        return seconds


def pictures(size: int) -> Iterator[np.ndarray]:
    """Discs that circle over a textured ground, without end; (size, size, 3) uint8."""
    ground = np.random.default_rng(0).integers(70, 130, (size, size, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:size, :size]
    index = 0
    while True:
        picture = ground.copy()
        for number in range(6):
            angle = index / 30 + number
            x, y = size * (0.5 + 0.35 * np.cos(angle)), size * (0.5 + 0.35 * np.sin(angle))
            picture[(columns - x) ** 2 + (rows - y) ** 2 < (size / 12) ** 2] = (40 * number, 250 - 40 * number, 120)
        yield picture
        index += 1


def load_tracker(checkpoint: Path) -> Tracker:
    """A tracker on one thread: CPU time is then the work itself, without threads that wait for each other."""
    torch.set_num_threads(1)
    return Tracker(load_front_end(resolve_model(ModelOptions(checkpoint=str(checkpoint)))))


def measure_length(checkpoint: Path, num_frames: int, num_objects: int) -> dict[str, float]:
    """Track a clip of `num_frames`, its last frames in turn with those of a fresh short one."""
    tracker = load_tracker(checkpoint)
    clip = Clip(tracker, num_objects, num_frames)
    for _ in range(num_frames - PAIRED_FRAMES):
        clip.step()
    short = Clip(tracker, num_objects, PAIRED_FRAMES)
    late, early = zip(*((clip.step(), short.step()) for _ in range(PAIRED_FRAMES)), strict=True)
    warm = PAIRED_FRAMES // 5  # the short clip's memory bank must be full, too
    return {
        "peak_mb": peak_mb(),
        "late_ms": 1000 * median(late[warm:]),
        "early_ms": 1000 * median(early[warm:]),
        "masks_mb": clip.result_bytes / 1e6,
    }


def measure_objects(checkpoint: Path, counts: list[int], num_frames: int) -> dict[int, float]:
    """CPU ms per frame for each number of objects. The clips take turns, frame by frame, as above."""
    tracker = load_tracker(checkpoint)
    clips = {count: Clip(tracker, count, num_frames) for count in counts}
    times: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(num_frames):
        for count, clip in clips.items():
            times[count].append(clip.step())
    return {count: 1000 * median(values[num_frames // 3 :]) for count, values in times.items()}


def print_lengths(checkpoint: Path, lengths: list[int], num_objects: int) -> None:
    print(f"\ntiny checkpoint, {num_objects} objects")
    print(f"{'frames':>8} {'peak MB':>9} {'over first':>11} {'ms/frame, late':>15} {'fresh clip':>11} {'late/fresh':>11} {'masks MB':>9}")
    first = 0.0
    for length in lengths:
        command = [sys.executable, __file__, "--length", str(length), "--objects", str(num_objects), "--checkpoint", str(checkpoint)]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        first = first or row["peak_mb"]
        print(
            f"{length:>8} {row['peak_mb']:>9.0f} {row['peak_mb'] / first - 1:>11.1%} {row['late_ms']:>15.1f} {row['early_ms']:>11.1f} "
            f"{row['late_ms'] / row['early_ms']:>11.2f} {row['masks_mb']:>9.1f}",
            flush=True,
        )


def print_objects(name: str, checkpoint: Path, counts: list[int], num_frames: int) -> None:
    times = measure_objects(checkpoint, counts, num_frames)
    print(f"\n{name}")
    print(f"{'objects':>8} {'ms/frame':>9} {'per object':>11} {'of one by one':>14}")
    for count, ms in times.items():
        print(f"{count:>8} {ms:>9.1f} {ms / count:>11.1f} {ms / (count * times[counts[0]] / counts[0]):>14.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[200, 5000], help=f"frames, {PAIRED_FRAMES} at least")
    parser.add_argument("--objects", type=int, default=2, help="for the lengths")
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="numbers of objects, the first is the measure")
    parser.add_argument("--frames", type=int, default=30, help="for the numbers of objects")
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.length:
        print(json.dumps(measure_length(arguments.checkpoint, arguments.length, arguments.objects)))
        return
    with tempfile.TemporaryDirectory() as name:
        tiny = build_tiny(Path(name) / "tiny")
        print(common.machine(), flush=True)
        if arguments.lengths:
            print_lengths(tiny, arguments.lengths, arguments.objects)
        if arguments.counts:
            print_objects("tiny checkpoint", tiny, arguments.counts, arguments.frames)
            small = build_random(Path(name) / "small", segmenter={"image_size": 256, **common.HIERA_TINY})
            print_objects("SAM 2.1 hiera_t at 256 px", small, arguments.counts, arguments.frames)


if __name__ == "__main__":
    main()
