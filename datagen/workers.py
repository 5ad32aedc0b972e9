"""What Ray knows of a run's workers: which died, and why; which find no room. A run that waits for them in vain ends with the cause.

Ray starts a worker that died again, without end and without a word to the driver: one that is killed for memory, or whose library is
missing, never gets as far as telling the run's ledger. So the driver asks Ray itself. This file, too, knows Ray.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from datagen.errors import ClusterError, DatagenError, JobError
from datagen.events import log_event
from datagen.job import Job, RunOptions
from datagen.ledger import LedgerClient
from datagen.patience import Death, Patience, Pulse, Seen, in_short
from datagen.room import no_room, pools

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import RefBundle

_LOOK_S = 2.0
_ANSWER_S = 30.0
_SHOWN_CHARS = 300
_THREADS_END_S = 10.0
_STEPS = {"Decode": "decode", "Perceive": "perceive", "Clips": "perceive", "Describe": "describe"}
_STEP_OF = re.compile(r"\((?:\w+->)*\w*?(Decode|Perceive|Clips|Describe)Worker")

T = TypeVar("T")
logger = logging.getLogger(__name__)


class _InVain(BaseException):
    """Raised in the thread that waits."""


class Overseer:
    """Watches over the workers of one run while its driver waits for them.

    find: what Ray knows, asked only while nothing gets done.
    """

    def __init__(self, options: RunOptions, ledger: LedgerClient, find: Callable[[], Seen] | None = None) -> None:
        self._ledger, self._find = ledger, find or seen
        self._patience = Patience(options.deaths_timeout_s, options.workers_timeout_s, options.loading_timeout_s)
        self._problem: DatagenError | None = None
        self._waiter: int | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._finished, self._said = -1, ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for as long as the context lasts."""
        thread = threading.Thread(target=self._watch, name="overseer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(timeout=_ANSWER_S)
            self._say("")

    def wait_for(self, action: Callable[[], T]) -> T:
        """action(), which waits for workers. Raises the error that stopped the run, or ClusterError when it waits in vain."""
        with self._lock:
            self._patience.resume(time.time())
            self._waiter = threading.get_ident()
        try:
            try:
                return action()
            finally:
                self._let_go()
        except _InVain:
            pass
        raise self._problem or ClusterError("the run was ended")

    def _let_go(self) -> None:
        """From here on this thread is not interrupted any more."""
        with self._lock:
            self._waiter = None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)
        if self._problem is not None:
            raise _InVain

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            with self._lock:
                waits = self._waiter is not None
            if waits and (problem := self._look()) is not None:
                self._end(problem)
                return

    def _look(self) -> DatagenError | None:
        try:
            asked: dict[str, Any] | None = self._ledger.ask_within(_ANSWER_S, "pulse")
            pulse = Pulse(self._finished) if asked is None else Pulse(**asked)
            calm = pulse.finished != self._finished
            self._finished = pulse.finished
            why = self._patience.look(time.time(), pulse, Seen() if calm else self._find())
        except ClusterError as error:
            return error
        except Exception:  # Ray changes; the run itself may go on
            logger.exception("what Ray knows of the workers is not known")
            return None
        self._say(self._patience.waits or "")
        if why is None:
            return None
        fatal: DatagenError | None = self._ledger.ask_within(_ANSWER_S, "fatal")
        return fatal or ClusterError(f"{why.rstrip('.')}. Rerun the same command to resume.")

    def _say(self, waits: str) -> None:
        if waits and not self._said:
            log_event("waiting", waits, level=logging.WARNING)
        if waits != self._said:
            self._said = waits
            self._ledger.tell("wait", waits or None)

    def _end(self, problem: DatagenError) -> None:
        with self._lock:
            if self._waiter is not None:
                self._problem = problem
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._waiter), ctypes.py_object(_InVain))


def seen() -> Seen:
    """What Ray knows of the workers of this driver's job."""
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    job_id = ray.get_runtime_context().get_job_id()
    accessor = state._connect_and_get_accessor()
    workers = (gcs_pb2.WorkerTableData.FromString(data) for data in accessor.get_worker_table())
    dead = [worker for worker in workers if not worker.is_alive and worker.job_id.hex() == job_id]
    actors = [gcs_pb2.ActorTableData.FromString(data) for data in accessor.get_actor_table(None, None)]
    steps = [(_STEPS[match[1]], actor) for actor in actors if actor.job_id.hex() == job_id and (match := _STEP_OF.search(actor.class_name))]
    absent = (gcs_pb2.ActorTableData.PENDING_CREATION, gcs_pb2.ActorTableData.RESTARTING, gcs_pb2.ActorTableData.DEPENDENCIES_UNREADY)
    pending = {step: _resources(actor.required_resources) for step, actor in steps if actor.state in absent}
    there = {step for step, actor in steps if actor.state == gcs_pb2.ActorTableData.ALIVE}
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    # A worker that went with its node did not die of anything of its own.
    deaths = [
        Death(worker.end_time_ms / 1000, str(worker.exit_type), _why(worker))
        for worker in dead
        if worker.exit_type not in _ON_PURPOSE and worker.worker_address.node_id.hex() in nodes
    ]
    return Seen(deaths, pending, there, _room(len(nodes)))


# common_pb2.WorkerExitType: INTENDED_SYSTEM_EXIT, INTENDED_USER_EXIT; NODE_OUT_OF_MEMORY.
_ON_PURPOSE = (1, 3)
_OUT_OF_MEMORY = 4


def _why(worker: Any) -> str:
    if worker.exit_type == _OUT_OF_MEMORY:
        return in_short(worker.exit_detail)
    said = _last_words(worker)
    quoted = f"; it said: {said}" if said else ""
    who = f"process {worker.pid} on {worker.worker_address.ip_address}"
    return f"the latest ended without being told to ({who}): {in_short(worker.exit_detail)}{quoted}"


def _last_words(worker: Any) -> str:
    """The last line that a worker of this machine wrote to its standard error; empty where there is none."""
    import ray

    node = getattr(ray._private.worker.global_worker, "node", None)
    if node is None:
        return ""
    for path in Path(node.get_session_dir_path(), "logs").glob(f"worker-*-{worker.pid}.err"):
        lines = [line.strip() for line in path.read_bytes()[-16384:].decode("utf-8", "replace").splitlines()]
        errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)]
        return next(reversed(errors or [line for line in lines if line]), "")[:_SHOWN_CHARS]
    return ""


def _resources(required: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in sorted(required.items())) or "nothing but a process"


def _room(num_nodes: int) -> str:
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    have = ", ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    return f"Free on {num_nodes} nodes: {have}"


def refuse_crowd(job: Job) -> None:
    """Raises JobError for workers that can never all be there: a machine does not grow."""
    import ray

    nodes = [(node["Resources"].get("CPU", 0.0), int(node["Resources"].get("GPU", 0))) for node in ray.nodes() if node["Alive"]]
    if problem := no_room(pools(job, ray.cluster_resources()), nodes, "the Ray that this run started"):
        raise JobError(f"{problem}, or give it more with run.num_cpus, which are logical ones")


def let_executors_end() -> None:
    """Threads of Ray Data outlive an execution that was ended early, and one that asks Ray after its shutdown ends the process."""
    until = time.monotonic() + _THREADS_END_S
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.join(max(0.0, until - time.monotonic()))


def tables_of(bundle: RefBundle) -> list[pa.Table]:
    """The tables that Ray Data hands out."""
    import ray

    found: list[pa.Table] = ray.get([entry.ref for entry in bundle.blocks])
    return found
