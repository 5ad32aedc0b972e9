"""How long a run waits for its workers: it never waits for ever, and never gives up on workers that are merely slow."""

from __future__ import annotations

import pytest

from datagen.job import Pool
from datagen.patience import ROUNDS, Death, Patience, Pulse, Seen, in_short
from datagen.room import no_room, side_by_side

START = 1_000_000.0


def patience() -> Patience:
    made = Patience(deaths_s=90, idle_s=900, loading_s=1800)
    made.resume(START)
    assert made.look(START, Pulse(), Seen()) is None
    return made


def deaths(times: range, kind: str = "memory") -> list[Death]:
    return [Death(START + at, kind, f"because of {kind} at {at}") for at in times]


def test_workers_that_die_again_and_again_end_the_run_with_their_latest_words() -> None:
    run, pending = patience(), {"decode": "0.5 CPU"}
    assert run.look(START + 80, Pulse(), Seen(deaths(range(3, 80, 3)), pending)) is None
    assert "waits for workers: 26 died since 1970-01-12 13:46:43 UTC. because of memory at 78" in str(run.waits)
    ends = run.look(START + 90, Pulse(), Seen([*deaths(range(3, 90, 3)), *deaths(range(80, 82), "rust")], pending))
    assert ends is not None
    assert "31 in 90 s. because of memory at 87" in ends


def test_workers_that_die_with_their_node_die_once() -> None:
    run = patience()
    together = [Death(START + 5, "node", "the node went")] * 64
    assert run.look(START + 800, Pulse(in_hand=1), Seen(together)) is None
    # One round more than allowed, and it is over.
    rounds = [Death(START + 5 + 10 * index, "node", "the node went") for index in range(ROUNDS)]
    assert run.look(START + 801, Pulse(in_hand=1), Seen(rounds[:-1] * 16)) is None
    assert run.look(START + 802, Pulse(in_hand=1), Seen(rounds)) is not None


def test_whatever_gets_done_begins_a_new_count() -> None:
    run = patience()
    for second in range(10, 1000, 10):
        assert run.look(START + second, Pulse(finished=second), Seen(deaths(range(0, second, 3)))) is None
        assert run.waits is None
    run.resume(START + 5000)  # the driver was busy: those that died meanwhile say nothing of the wait
    assert run.look(START + 5001, Pulse(finished=990), Seen(deaths(range(0, 5000, 3)))) is None


def test_a_step_that_finds_no_room_ends_the_run_also_while_others_hold_samples() -> None:
    run = patience()
    seen = Seen(pending={"describe": "8 CPU and 0.49 GPU"}, there={"decode", "perceive"}, room="Free on 1 nodes: 2 of 6 CPU, 0 of 0 GPU")
    assert run.look(START + 899, Pulse(in_hand=4), seen) is None
    assert run.waits == "waits for workers: describe asks 8 CPU and 0.49 GPU. Free on 1 nodes: 2 of 6 CPU, 0 of 0 GPU"
    ends = run.look(START + 900, Pulse(in_hand=4), seen)
    assert ends is not None
    assert "describe asks 8 CPU and 0.49 GPU" in ends
    assert "run.workers_timeout_s is 900" in ends


def test_a_second_worker_may_wait_for_room_as_long_as_it_likes() -> None:
    run = patience()
    seen = Seen(pending={"perceive": "1 GPU"}, there={"decode", "perceive", "describe"})
    for minute in range(1, 100):
        assert run.look(START + 60 * minute, Pulse(in_hand=4), seen) is None


def test_when_nobody_has_anything_to_do_the_run_ends_and_when_one_works_long_it_does_not() -> None:
    run = patience()
    for minute in range(1, 100):
        assert run.look(START + 60 * minute, Pulse(in_hand=1), Seen()) is None
    assert run.look(START + 60 * 99 + 899, Pulse(), Seen()) is None
    assert "nothing has happened for 900 s" in str(run.look(START + 60 * 99 + 900, Pulse(), Seen()))


def test_loading_a_model_may_take_long_and_not_for_ever() -> None:
    run = patience()
    seen = Seen(pending={"describe": "2 CPU"}, there={"decode"})  # Ray calls a worker pending for as long as it loads
    assert run.look(START + 1798, Pulse(loading={"describe": 1700.0}), seen) is None
    assert run.waits is None
    assert run.look(START + 1799, Pulse(loading={"describe": 1799.0, "perceive": 3.0}), Seen()) is None
    assert "describe (1800 s)" in str(run.look(START + 1800, Pulse(loading={"describe": 1800.0, "perceive": 4.0}), Seen()))


def test_what_ray_says_is_said_in_short() -> None:
    memory = (
        "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 908e) was 2.20GB used / "
        "23.54GB limit (0.093314)\nOOM kill reason: ...\n" + "Refer to the documentation. " * 50
    )
    assert in_short(memory).startswith(
        "Ray kills workers for memory: the memory of node 10.0.0.7 is above its threshold (2.20GB of 23.54GB"
    )
    traceback = "\x1b[36mray::Map()\x1b[39m failed\nTraceback:\n" + "  File x\n" * 100 + "ImportError: libfoo.so.1: cannot open\n"
    assert in_short(traceback).startswith("ray::Map() failed Traceback:")
    assert in_short(traceback).endswith("ImportError: libfoo.so.1: cannot open")
    assert in_short("Worker exits.\n") == "Worker exits."


# --- room ------------------------------------------------------------------------------------------------------------------------


def pool(cpus: float, gpus: float, workers: int = 1) -> Pool:
    return Pool(num_cpus=cpus, num_gpus=gpus, min_workers=workers, max_workers=workers)


@pytest.mark.parametrize(
    ("pools", "nodes", "fits"),
    [
        # A worker with two whole GPUs does not fit on two that fractions are on.
        ([pool(1, 2), pool(1, 0.5, 2)], [(8, 2)], False),
        ([pool(1, 2), pool(1, 0.5, 2)], [(8, 3)], True),
        ([pool(1, 2), pool(1, 0.5, 3)], [(8, 3)], False),
        ([pool(1, 0.5, 2), pool(1, 2)], [(8, 2), (8, 1)], True),
        ([pool(1, 2, 2)], [(8, 3), (8, 1)], False),
        ([pool(1, 0.51, 2), pool(1, 0.49, 2)], [(8, 2)], True),
        ([pool(1, 0.51, 2), pool(1, 0.51, 1)], [(8, 2)], False),
        # Workers without a GPU go where there is none, so that those with one find its node's CPUs free.
        ([pool(4, 0), pool(4, 1)], [(4, 1), (4, 0)], True),
        ([pool(4, 0), pool(4, 1)], [(4, 0), (4, 1)], True),
        ([pool(4, 0, 2), pool(4, 1)], [(4, 1), (4, 0)], False),
        # The worker with a GPU goes to the node with the fewest, and leaves the other's CPUs free.
        ([pool(2, 1), pool(4, 0, 2)], [(8, 2), (2, 1)], True),
    ],
)
def test_the_fewest_workers_side_by_side(pools: list[Pool], nodes: list[tuple[float, int]], fits: bool) -> None:
    assert side_by_side(pools, nodes) is fits
    assert side_by_side(list(reversed(pools)), list(reversed(nodes))) is fits


def test_no_room_names_the_step_or_the_crowd() -> None:
    assert no_room({"decode": pool(0.5, 0), "describe": pool(2, 0)}, [(4.0, 0)], "this machine") is None
    alone = no_room({"describe": pool(8, 1)}, [(4.0, 1), (16.0, 0)], "this machine")
    assert alone is not None
    assert "describe asks 8 CPU and 1 GPU for each worker, which fits on no node of this machine; the largest has 4 CPU and 1 GPU" in alone
    crowd = no_room({"perceive": pool(2, 0, 2), "describe": pool(2, 0)}, [(4.0, 0)], "this machine")
    assert crowd is not None
    assert "2 x perceive with 2 CPU, 1 x describe with 2 CPU" in crowd
