"""vLLM's asynchronous engine behind the engine protocol, on a thread and an event loop of its own. The only file that imports vllm."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datagen.describe import Completion, OnDeath, Request, Sampling, exit_process
from datagen.describe.loop import LoopThread
from datagen.describe.overhear import Overheard
from datagen.describe.reaper import Reaper
from datagen.errors import ClusterError, EngineDiedError, ModelLoadError, ModelOutputError
from datagen.job import DescribeOptions
from datagen.machine import settle, socket_folder
from datagen.pam.checkpoint import Checkpoint
from datagen.pam.llm import load_tokenizer, stop_token_ids, tokenizer_fingerprint
from datagen.records import TokenLogprobs
from datagen.watchdog import Watchdog

_CPU_BLOCK_TOKENS = 32  # the smallest that vLLM's CPU attention takes; its default of 128 would cut up to 127 tokens off a shared prefix
_MAX_LOGPROBS = 100  # as many as a job may ask for
_GPU_BATCHED_TOKENS = 8192  # prefill a few regions per step: fills the GPU without holding up those that decode


class VllmEngine:
    """Continuous batching with automatic prefix caching.

    An engine that gives no token for `hang_timeout_s` while requests wait is taken for dead, and its processes are killed. `on_death`
    is called once when the engine can answer no more, from any thread; then all requests raise EngineDiedError.
    """

    def __init__(self, folder: Path, options: DescribeOptions, device: str, dtype: torch.dtype, on_death: OnDeath = exit_process) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._fingerprint = tokenizer_fingerprint(self._tokenizer)
        self._stop_ids = list(stop_token_ids(Checkpoint(folder)))
        self._on_death = on_death
        self._dtype = dtype
        self._numbers = itertools.count()
        self._closed = False
        self._dying = threading.Lock()
        self._death: EngineDiedError | None = None
        self._engine: Any = None
        self._reaper = Reaper()
        # The first process that Python spawns comes with a helper of its own, and starting that unblocks Ctrl-C.
        resource_tracker.ensure_running()
        self._loop = LoopThread("vllm")
        with _environment(options, device):
            self._start(_engine_arguments(folder, options, device, dtype))
        self._watchdog = Watchdog(options.hang_timeout_s, self._on_hang)

    async def generate(self, request: Request) -> Completion:
        """Hand one request to the engine and wait for its text."""
        return self._completion(request, await asyncio.wrap_future(self._loop.submit(self._generate(request))))

    def close(self) -> None:
        """Stop the engine, its processes and the thread, in this order."""
        if self._closed:
            return
        self._closed = True
        self._watchdog.close()
        self._loop.run(_shut_down(self._engine))
        self._engine = None  # else it would try to shut down once more when the interpreter is half gone
        self._loop.stop()
        self._reaper.close()

    def _start(self, arguments: dict[str, Any]) -> None:
        overheard = Overheard()
        try:
            with self._reaper.marking(), overheard.listening():
                self._loop.run(self._open(arguments))
        except Exception as error:  # vLLM, and what it is made of, have many
            self._loop.stop()
            self._reaper.close()
            raise _explained(error, overheard.last_error()) from error

    async def _open(self, arguments: dict[str, Any]) -> None:
        self._engine = _make_engine(arguments)
        # Asked once and kept. Left to the first request, it would wait for ever if the engine died meanwhile.
        await self._engine.get_supported_tasks()
        if self._engine.output_handler is not None:
            self._engine.output_handler.add_done_callback(lambda _: self._die("its output ended"))
        # Requests hear only of their end; here every step of the engine comes by that made a token.
        take = self._engine.output_processor.process_outputs

        def take_and_note(*args: Any, **kwargs: Any) -> Any:
            self._watchdog.heard()
            return take(*args, **kwargs)

        self._engine.output_processor.process_outputs = take_and_note

    async def _generate(self, request: Request) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = {"prompt_embeds": torch.as_tensor(request.embeds).to(self._dtype)}
        # A number makes the id unique when a sample is tried again.
        name = f"{request.request_id}-{next(self._numbers)}"
        try:
            with self._watchdog.waiting():
                async for output in self._engine.generate(prompt, _sampling_params(request.sampling, self._stop_ids), request_id=name):
                    last = output
        except EngineDeadError as error:
            raise self._die(str(error)) from error
        if last.outputs[0].finish_reason == "abort":
            # Nobody here aborts a request, so the engine was told to end, as all processes are on a machine that shuts down.
            raise self._die("it aborted its requests")
        return last

    def _on_hang(self, silent_s: float) -> None:
        message = f"the vLLM engine hung: requests wait, and none got a token for {silent_s:.0f} s (describe.hang_timeout_s)"
        self._tell(EngineDiedError(message, code="engine_hung"))
        self._reaper.close()  # vLLM then notices a dead engine, and ends all requests

    def _die(self, reason: str) -> EngineDiedError:
        """The error for whoever waits; the first one says why."""
        self._tell(EngineDiedError(f"the vLLM engine died: {reason}"))
        death = self._death or EngineDiedError("the vLLM engine was closed")
        return EngineDiedError(death.message, code=death.code)

    def _tell(self, death: EngineDiedError) -> None:
        with self._dying:  # also while it is told: no request may fail before a worker that is to end has ended
            if not self._closed and self._death is None:
                self._death = death
                self._on_death(death)

    def _completion(self, request: Request, output: Any) -> Completion:
        answer = output.outputs[0]
        ids = tuple(answer.token_ids)
        logprob = answer.cumulative_logprob / max(len(ids), 1)
        if answer.finish_reason not in ("stop", "length") or not ids or not math.isfinite(logprob):
            raise ModelOutputError(
                f"{request.request_id}: the engine ended with {answer.finish_reason}, {len(ids)} tokens, log-probability {logprob}"
            )
        text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        told = self._token_logprobs(answer) if request.sampling.logprobs else None
        return Completion(text, ids, logprob, answer.finish_reason, len(request.embeds), output.num_cached_tokens or 0, told)

    def _token_logprobs(self, answer: Any) -> TokenLogprobs:
        """vLLM lists at every place the token that it said, then the most likely ones, which may be that one again."""
        shape = len(answer.token_ids), -1
        ids = np.asarray(answer.logprobs.token_ids, np.int32).reshape(shape)
        logprobs = np.asarray(answer.logprobs.logprobs, np.float32).reshape(shape)
        columns = (ids[:, 0], logprobs[:, 0], ids[:, 1:], logprobs[:, 1:])
        return TokenLogprobs(self._fingerprint, *(np.ascontiguousarray(column) for column in columns))


@contextmanager
def _environment(options: DescribeOptions, device: str) -> Iterator[None]:
    """What vLLM and the processes it starts read from the environment. What the user has set stays; afterwards all is as before."""
    wanted = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        # Forking a process that has threads may hang; ours has at least two.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if device == "cpu":
        wanted |= {
            "VLLM_CPU_KVCACHE_SPACE": str(options.cpu_kv_cache_gib),
            # By default every engine binds itself to the machine's first cores, whatever else runs there.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(max(1, round(options.pool.num_cpus or len(os.sched_getaffinity(0))))),
        }
        if _is_eager(options, device):
            # Otherwise the first request waits 15 s for a C++ compiler, to speed up the rank of a log-probability.
            wanted["TORCHDYNAMO_DISABLE"] = "1"
    before = dict(os.environ)
    settle()  # this may be a worker on another machine than the driver's
    if "VLLM_RPC_BASE_PATH" not in before and (sockets := socket_folder()) != tempfile.gettempdir():
        wanted["VLLM_RPC_BASE_PATH"] = sockets
    os.environ.update({name: value for name, value in wanted.items() if name not in before})
    try:
        yield
    finally:
        # vLLM sets variables too (LD_PRELOAD, for one) that are not meant for what we start later.
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _is_eager(options: DescribeOptions, device: str) -> bool:
    return device == "cpu" if options.enforce_eager is None else options.enforce_eager


def _engine_arguments(folder: Path, options: DescribeOptions, device: str, dtype: torch.dtype) -> dict[str, Any]:
    shared = {
        "model": str(folder),
        # Prompts come as embeddings and ids are decoded here, so the engine needs no tokenizer.
        "skip_tokenizer_init": True,
        "enable_prompt_embeds": True,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "dtype": str(dtype).removeprefix("torch."),
        "seed": options.seed,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "max_logprobs": _MAX_LOGPROBS,
        "enforce_eager": _is_eager(options, device),
        "disable_log_stats": True,
    }
    if device == "cpu":
        return shared | {"block_size": _CPU_BLOCK_TOKENS}
    batched_tokens = max(_GPU_BATCHED_TOKENS, options.max_model_len)
    return shared | {"gpu_memory_utilization": options.gpu_memory_fraction, "max_num_batched_tokens": batched_tokens}


def _make_engine(arguments: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))


async def _shut_down(engine: Any) -> None:
    # The output handler first: it would take the end of the engine core for its death, and log so.
    handler = engine.output_handler
    if handler is not None:
        handler.cancel()
        await asyncio.gather(handler, return_exceptions=True)
    engine.shutdown()


def _sampling_params(sampling: Sampling, stop_ids: list[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    greedy = sampling.temperature == 0
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=None if greedy else sampling.seed,
        stop_token_ids=[] if sampling.ignore_eos else stop_ids,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,  # 0: of the chosen token alone
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _explained(error: Exception, said: str) -> Exception:
    if isinstance(error, ImportError):
        return ModelLoadError(
            f"vLLM cannot be imported ({error}). `make setup` in a checkout installs it (with LOCK=requirements/gpu.lock "
            "for CUDA); or set describe.engine to transformers"
        )
    own = " ".join(str(error).split())
    # Where a process of its own failed, vLLM itself says only that; the cause is what that process said last.
    cause = f"{type(error).__name__}: {own}" if not said or not isinstance(error, RuntimeError) else said
    hint = ""
    if any(word in f"{cause} {own}".lower() for word in ("memory", "kv cache", "cache blocks")):
        hint = " Lower describe.gpu_memory_fraction or describe.cpu_kv_cache_gib, or free the GPU."
    return ClusterError(f"the vLLM engine did not start: {cause.rstrip('.')}. The run's log has the whole.{hint}")
