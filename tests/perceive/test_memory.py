"""Where memory is short, less goes through the model at once, the answers stay, and after a while it is as much as before."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from datagen.check import check_dataset
from datagen.job import Job, ModelOptions, parse_job
from datagen.masks import decode_mask
from datagen.perceive import memory, pam
from datagen.perceive.memory import CallSize, CallTooLargeError
from datagen.run import run_job

GOLDEN = Path(__file__).parents[1] / "golden"
COUNT, BATCH, PROMPTS = 16, 4, 8
# As torch's allocators say it, on a GPU and on a CPU.
ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


@dataclass
class Neighbour:
    """Takes memory away: until `calls` calls were made, one of more than `room` things does not fit."""

    module: Callable[[Any], torch.nn.Module]
    error: Exception
    room: int
    calls: int
    sizes: list[int] = field(default_factory=list)

    def move_in(self, segmenter: Any) -> None:
        self.module(segmenter).register_forward_pre_hook(self._allocate)

    def _allocate(self, _: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.sizes.append(len(inputs[0]))
        if len(self.sizes) <= self.calls and len(inputs[0]) > self.room:
            raise self.error


def job_of(folder: Path, model: ModelOptions, output: str) -> Job:
    rows = [
        {"uri": str(GOLDEN / "images" / f"image_{number % 3}.png"), "asset_id": f"{number:04x}"}
        | {"prompts": [{"box": [10 + 3 * n, 20, 150 + 9 * n, 200]} for n in range(6)]}
        for number in range(COUNT)
    ]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return parse_job(
        {
            "model": model.model_dump(),
            "source": {"input": str(manifest), "media_root": "/"},
            "output": str(folder / output),
            "perceive": {"batch_size": BATCH, "prompts_per_call": PROMPTS, "device": "cpu"},
            "describe": {"engine": "fake"},
            "run": {"executor": "inprocess"},
        }
    )


def regions(job: Job) -> list[dict[str, Any]]:
    rows = pq.read_table(f"{job.output}/regions").to_pylist()
    return sorted(rows, key=lambda row: row["region_id"])


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> list[Neighbour]:
    """Those that share the device with every model that is loaded from now on."""
    monkeypatch.setattr(memory, "_CALM", 2)
    load, all_of_them = pam.load_front_end, list[Neighbour]()

    def load_beside_them(*arguments: Any) -> Any:
        front_end = load(*arguments)
        for neighbour in all_of_them:
            neighbour.move_in(front_end.segmenter)
        return front_end

    monkeypatch.setattr(pam, "load_front_end", load_beside_them)
    return all_of_them


def test_a_run_goes_on_with_less_at_a_time_and_comes_back_to_as_much_as_before(
    tmp_path: Path, model: ModelOptions, neighbours: list[Neighbour]
) -> None:
    alone = job_of(tmp_path, model, "alone")
    run_job(alone)
    encoder = Neighbour(lambda segmenter: segmenter.image_encoder, ON_GPU, room=1, calls=5)
    decoder = Neighbour(lambda segmenter: segmenter.sam_mask_decoder.transformer, ON_CPU, room=2, calls=12)
    neighbours += [encoder, decoder]

    beside = job_of(tmp_path, model, "beside")
    summary = run_job(beside)

    assert summary.statuses == {"ok": COUNT}
    assert check_dataset(beside.output or "").ok
    assert encoder.sizes[:3] == [4, 2, 1]
    assert max(encoder.sizes[3:]) == BATCH, "as many images as before"
    assert decoder.sizes[:3] == [6, 3, 1]
    assert max(decoder.sizes[3:]) == PROMPTS, "as many prompts as before"
    expected, found = regions(alone), regions(beside)
    assert [row["region_id"] for row in found] == [row["region_id"] for row in expected]
    for one, other in zip(expected, found, strict=True):
        assert other["predicted_iou"] == pytest.approx(one["predicted_iou"], abs=1e-4)
        assert np.count_nonzero(decode_mask(one["mask"]) ^ decode_mask(other["mask"])) <= 4
    events = map(json.loads, Path(f"{beside.output}/_datagen/logs/{summary.run_id}.jsonl").read_text().splitlines())
    sizes: dict[str, list[int]] = {}
    for event in events:
        if event["event"] in ("memory_short", "memory_ample"):
            assert event["step"] == "perceive"
            sizes.setdefault(event["option"], [event["limit"]]).append(event["value"])
    assert sizes["perceive.batch_size"][:3] == [4, 2, 1]
    assert sizes["perceive.prompts_per_call"][:3] == [8, 3, 1]
    assert [some[-1] for some in sizes.values()] == [BATCH, PROMPTS]
    assert summary.counters["memory_short"] == sum(b < a for some in sizes.values() for a, b in itertools.pairwise(some))


def test_an_image_that_never_fits_is_a_row_that_says_what_to_lower(
    tmp_path: Path, model: ModelOptions, neighbours: list[Neighbour]
) -> None:
    neighbours.append(Neighbour(lambda segmenter: segmenter.image_encoder, ON_GPU, room=0, calls=10**6))
    job = job_of(tmp_path, model, "corpus")
    summary = run_job(job, limit=2)
    assert summary.failures == {"out_of_memory": 2}
    message = pq.read_table(f"{job.output}/assets").to_pylist()[0]["error_message"]
    assert "Tried to allocate 2.00 GiB" in message
    assert "lower describe.gpu_memory_fraction" in message


def test_a_size_that_fails_again_and_again_is_tried_ever_more_rarely() -> None:
    size = CallSize("perceive.batch_size", 8, lambda *_, **__: None)
    gaps = []
    for _ in range(8):
        assert size.shrink(CallTooLargeError(size.option, size.value, "no room"))
        gaps.append(0)
        while size.value < 8:
            size.fitted(size.value)
            gaps[-1] += 1
    assert gaps == [16, 32, 64, 128, 256, 512, 1024, 1024]
    for _ in range(1024):
        size.fitted(8)
    size.shrink(CallTooLargeError(size.option, 8, "no room"))
    for _ in range(16):
        size.fitted(3)
    assert size.value == 4, "what is not full proves nothing"
    for _ in range(16):
        size.fitted(4)
    assert size.value == 8, "once it held, all is forgotten"


def test_a_single_thing_cannot_be_halved() -> None:
    size = CallSize("perceive.batch_size", 8, lambda *_, **__: None)
    assert not size.shrink(CallTooLargeError(size.option, 1, "no room"))
    assert size.value == 8, "the others are not to blame"


def test_the_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(CallTooLargeError("perceive.batch_size", 8, "no room")))
    assert (error.option, error.count, error.message) == ("perceive.batch_size", 8, "no room")
