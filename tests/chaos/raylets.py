"""A Ray of several raylets on this machine, with GPUs that are not there, whose raylets can be killed and replaced."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from types import TracebackType
from typing import Any

# Ray gives up on a node that takes more than half a minute to start, which one of several on two busy cores may.
PATIENT = {"RAY_raylet_start_wait_time_s": "240", "RAY_gcs_server_request_timeout_seconds": "240"}
_STORE_BYTES = 200 * 2**20
# A lost raylet is given up after about five seconds instead of a quarter of a minute; one that is only slow is not.
_HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}


class Raylets:
    """A head without CPUs, where drivers live, and `count` raylets with the workers. All of its files are in a folder of its own.

    What os.environ has when this is made, every worker has.
    """

    def __init__(self, count: int = 2, num_cpus: int = 4) -> None:
        self._folder = tempfile.mkdtemp(prefix="ry-", dir="/tmp")  # short: sockets lie in it
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": self._folder, **PATIENT}
        from ray.cluster_utils import Cluster

        self._node: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": 1, "object_store_memory": _STORE_BYTES}
        head = {"num_cpus": 0, "object_store_memory": _STORE_BYTES, "include_dashboard": False, "_system_config": _HEALTH}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._lost: list[Any] = []
        self._count = count
        while len(self._alive()) < count:
            self.mend()

    @property
    def address(self) -> str:
        """For `run.ray_address`."""
        return str(self._cluster.address)

    def pids(self) -> list[int]:
        """Of the raylets that were not killed, without the head's."""
        return [_raylet(node).pid for node in self._alive()]

    def kill(self, rng: random.Random) -> bool:
        """SIGKILL a raylet; its workers find out by themselves. False when there is none left to kill."""
        alive = self._alive()
        if not alive:
            return False
        node = rng.choice(alive)
        _raylet(node).kill()
        self._lost.append(node)
        return True

    def mend(self) -> None:
        """Put a new raylet in the place of each that was killed; the next call goes on where a busy machine does not start one in time."""
        while self._lost:
            self._cluster.remove_node(self._lost.pop(), allow_graceful=False)
        with contextlib.suppress(Exception):  # Ray has no other kind for a raylet that is late; it comes, or not, and is not one of ours
            while len(self._alive()) < self._count:
                self._cluster.add_node(wait=False, **self._node)

    def __enter__(self) -> Raylets:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        while self._lost:
            self._cluster.remove_node(self._lost.pop(), allow_graceful=False)
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _alive(self) -> list[Any]:
        return sorted((node for node in self._cluster.worker_nodes if node not in self._lost), key=lambda node: _raylet(node).pid)


def _raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process
