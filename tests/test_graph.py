"""Samples as Arrow rows, and the workers a job gets."""

from __future__ import annotations

import numpy as np
import pytest

from datagen.blocks import Waiting, from_table, to_table
from datagen.job import parse_job
from datagen.records import Asset, RegionTokens, Sample
from datagen.room import pools


def test_a_sample_survives_the_trip_without_copying_its_arrays() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    tokens = RegionTokens(np.ones((2, 5, 3), np.float32), np.zeros((2, 1, 2), np.int16), is_bfloat16=True)
    table = to_table(
        [Sample(0, Asset("a", "a.png"), pixels=pixels), Sample(1, Asset("b", "é.png"), tokens=tokens), Sample(2, Asset("c", "c"))]
    )
    with_pixels, with_tokens, light = from_table(table)

    assert np.array_equal(with_pixels.pixels, pixels)
    assert with_pixels.pixels.base is not None
    assert np.array_equal(with_tokens.tokens.image, tokens.image)
    assert with_tokens.tokens.semantic.dtype == np.int16
    assert with_tokens.tokens.is_bfloat16
    assert (light.pixels, light.tokens, light.asset.asset_id) == (None, None, "c")


def test_strided_arrays_travel_too() -> None:
    pixels = np.arange(96, dtype=np.uint8).reshape(4, 8, 3)[:, ::2]
    assert np.array_equal(from_table(to_table([Sample(0, Asset("a", "a"), pixels=pixels)]))[0].pixels, pixels)


def test_a_laptop_gets_one_worker_of_each_and_no_gpu() -> None:
    sizes = pools(parse_job({}), {"CPU": 6.0})
    assert {step: pool.min_workers for step, pool in sizes.items()} == {"decode": 1, "perceive": 1, "describe": 1, "write": 1}
    assert all(not pool.num_gpus for pool in sizes.values())
    assert (sizes["perceive"].num_cpus, sizes["describe"].num_cpus) == (1, 2)


@pytest.mark.parametrize("cpus", [1, 2, 4, 6, 8, 16, 64, 96])
def test_without_a_gpu_every_step_fits_and_leaves_room_for_writing(cpus: int) -> None:
    sizes = pools(parse_job({}), {"CPU": float(cpus)})
    assert sum(pool.num_cpus * pool.min_workers for pool in sizes.values()) + 1 <= max(cpus, 4)


def test_every_gpu_gets_a_perceive_and_a_describe_worker() -> None:
    sizes = pools(parse_job({}), {"CPU": 64.0, "GPU": 8.0})
    assert sizes["perceive"].min_workers == sizes["describe"].max_workers == 8
    assert sizes["perceive"].num_gpus + sizes["describe"].num_gpus == pytest.approx(1.0)
    assert 2 * sizes["perceive"].num_gpus > 1, "two of them on one GPU leave no describe worker room on any"


def test_the_job_overrides_the_defaults() -> None:
    job = parse_job({"perceive": {"pool": {"max_workers": 2, "num_gpus": 0.25}}, "describe": {"pool": {"min_workers": 3}}})
    sizes = pools(job, {"CPU": 64.0, "GPU": 8.0})
    assert (sizes["perceive"].min_workers, sizes["perceive"].max_workers, sizes["perceive"].num_gpus) == (2, 2, 0.25)
    assert (sizes["describe"].min_workers, sizes["describe"].max_workers) == (3, 8)


def test_waiting_samples_come_out_as_they_went_in() -> None:
    waiting = Waiting()
    assert not waiting
    for index in range(150):
        waiting.append(Sample(index, Asset(f"{index:04x}", f"é {index}.png", extra={"n": index})))
    assert len(waiting) == 150
    for _ in range(2):
        assert [(sample.index, sample.asset.extra["n"]) for sample in waiting] == [(index, index) for index in range(150)]
