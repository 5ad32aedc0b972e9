"""The vLLM engine inside the describe step: prefix cache, vocabulary, failures, death."""

from __future__ import annotations

import asyncio
import signal
import threading
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from describe_helpers import golden_job, sample_with_tokens

from datagen.describe import Request, Sampling, make_describe_step
from datagen.describe.step import DescribeStep
from datagen.errors import EngineDiedError
from datagen.graph import note_to
from datagen.guard import Guarded
from datagen.job import RunOptions
from datagen.ledger import Ledger, LocalLedger
from datagen.pam.checkpoint import Checkpoint
from datagen.records import TASKS
from datagen.write import open_store

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_four_tasks_share_one_prefill(vllm_step: DescribeStep):
    samples = [sample_with_tokens(num_regions, seed, name=f"share{seed}") for seed, num_regions in enumerate((5, 1, 12))]
    vllm_step.process(samples)
    usage = {name: sum(sample.usage[name] for sample in samples) for name in samples[0].usage}
    assert usage["requests"] == 18 * 4
    assert usage["cached_tokens"] / usage["prompt_tokens"] >= 0.7
    # The cache keeps whole blocks of 32 tokens, so a little of each shared prefix is computed again.
    assert 0 <= usage["shareable_tokens"] - usage["cached_tokens"] < 32 * usage["requests"]
    for sample in samples:
        assert sample.tokens is None
        assert all(set(region.texts) == {(task, "en") for task in TASKS} for region in sample.regions)
        assert usage["output_tokens"] == sum(t.num_tokens for s in samples for r in s.regions for t in r.texts.values())


def test_calls_from_many_threads_answer_their_own_regions(vllm_step: DescribeStep):
    together = [sample_with_tokens(3, seed, name=f"threads{seed}") for seed in range(4)]
    threads = [threading.Thread(target=vllm_step.process, args=([sample],)) for sample in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = [sample_with_tokens(3, seed, name=f"threads{seed}") for seed in range(4)]
    vllm_step.process(alone)
    pairs = [
        (region.texts[key].text, again.texts[key].text)
        for sample, other in zip(together, alone, strict=True)
        for region, again in zip(sample.regions, other.regions, strict=True)
        for key in region.texts
    ]
    # Another batch means other rounding, and this random model has near ties; mixed-up answers would be equal nowhere.
    assert sum(one == two for one, two in pairs) > 0.7 * len(pairs)


def test_bfloat16_tokens_are_the_same_numbers(vllm_step: DescribeStep):
    rounded, bits = (sample_with_tokens(2, seed=7, name="bits") for _ in range(2))
    for name in ("image", "semantic"):
        tensor = torch.from_numpy(getattr(rounded.tokens, name)).bfloat16()
        setattr(rounded.tokens, name, tensor.float().numpy())
        read_only = tensor.view(torch.int16).numpy()
        read_only.flags.writeable = False
        setattr(bits.tokens, name, read_only)
    bits.tokens.is_bfloat16 = True
    vllm_step.process([rounded, bits])
    first = [[text.text[:2] for text in region.texts.values()] for region in rounded.regions]
    assert first == [[text.text[:2] for text in region.texts.values()] for region in bits.regions]


def test_a_bad_sample_fails_alone(vllm_step: DescribeStep):
    good, bad, empty = sample_with_tokens(2, name="good"), sample_with_tokens(2, name="bad"), sample_with_tokens(0, name="empty")
    bad.tokens.image[1, 5, 5] = np.nan
    vllm_step.process([bad, good, empty])
    assert bad.failure is not None
    assert bad.failure.code == "model_output"
    assert "not finite" in bad.failure.message
    assert good.status == "ok"
    assert empty.status == "empty"


def test_unused_rows_of_the_vocabulary_cannot_be_said(vllm_step: DescribeStep, golden: Path):
    prompts, vocabulary = prompts_won_by_unused_rows(golden)
    for embeds in prompts:
        completion = asyncio.run(vllm_step.engine.generate(Request("unused", embeds, Sampling(8, ignore_eos=True))))
        assert max(completion.token_ids) < vocabulary


def prompts_won_by_unused_rows(golden: Path) -> tuple[list[torch.Tensor], int]:
    """Prompts after which the uncut checkpoint's next token is one without a text."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    checkpoint = Checkpoint(golden / "pam_tiny")
    rows, hidden = checkpoint.shapes["model.embed_tokens.weight"]
    model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in checkpoint.config.items() if k != "architectures"})).eval()
    wanted = model.state_dict().keys()
    weights = {f"model.{k}": v.float() for k, v in checkpoint.tensors("model.") if f"model.{k}" in wanted}
    model.load_state_dict(weights, strict=False)
    prompts = torch.randn(64, 8, hidden, generator=torch.Generator().manual_seed(0)) * weights["model.embed_tokens.weight"].std()
    from datagen.pam.llm import load_tokenizer

    vocabulary = len(load_tokenizer(checkpoint.folder))
    assert vocabulary < rows
    with torch.inference_mode():
        winners = model(inputs_embeds=prompts).logits[:, -1].argmax(-1)
    won = [prompt for prompt, winner in zip(prompts, winners, strict=True) if winner >= vocabulary]
    assert len(won) >= 3
    return won[:8], vocabulary


def test_a_dead_engine_ends_the_worker(golden: Path, model_cache: Path):
    reasons: list[EngineDiedError] = []
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    step = DescribeStep(golden_job(golden), on_engine_death=reasons.append)
    step.setup()
    started = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    core = next(process for process in started if "EngineCore" in " ".join(process.cmdline()))
    # Ctrl-C in a terminal reaches the engine too, and must not end it.
    core.send_signal(signal.SIGINT)
    assert step.process([sample_with_tokens(1)])[0].status == "ok"
    core.kill()
    with pytest.raises(EngineDiedError, match="vLLM engine died"):
        step.process([sample_with_tokens(2)])
    assert [reason.code for reason in reasons] == ["engine_died"]
    step.teardown()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


@pytest.mark.soak  # the suite has the watchdog alone, and an engine that dies on Ray
@pytest.mark.parametrize(("blow", "event"), [(signal.SIGSTOP, "engine_hung"), (signal.SIGKILL, "engine_died")])
def test_in_process_a_lost_engine_is_replaced(blow: signal.Signals, event: str, golden: Path, model_cache: Path, tmp_path: Path):
    """As the graph does it without Ray. A stopped engine core is a true hang: it lives, and says nothing."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    job = golden_job(golden, hang_timeout_s=8.0).model_copy(update={"run": RunOptions(executor="inprocess")})
    ledger = Ledger(open_store(str(tmp_path)), tries=3)
    note = partial(note_to, LocalLedger(ledger), "describe")
    guarded = Guarded("describe", partial(make_describe_step, job, note), LocalLedger(ledger), renews=True)
    try:
        assert guarded.process([sample_with_tokens(1, name="warm")])[0].status == "ok"
        cores = [p for p in psutil.Process().children(recursive=True) if p.pid not in before and "EngineCore" in " ".join(p.cmdline())]
        for core in cores:
            core.send_signal(blow)
        done = guarded.process([sample_with_tokens(2, name="a"), sample_with_tokens(1, name="b")])
    finally:
        guarded.teardown()
    assert [sample.status for sample in done] == ["ok", "ok"]
    assert all(region.texts for sample in done for region in sample.regions)
    events = [line["event"] for line in ledger.events()]
    assert events == ["worker_started", event, "worker_started", "worker_lost"]
    assert ledger.progress()["engine_restarts"] == 1
    _, alive = psutil.wait_procs(cores, timeout=10)
    assert not alive
