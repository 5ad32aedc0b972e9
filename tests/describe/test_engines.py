"""The transformers engine's sampling, and what ends an engine's processes."""

from __future__ import annotations

import asyncio
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from describe_helpers import golden_job

from datagen.describe import Completion, Request, Sampling, exit_process
from datagen.describe.load import device_and_dtype, make_engine
from datagen.describe.transformers import TransformersEngine, _choose
from datagen.errors import JobError, ModelOutputError
from datagen.pam.checkpoint import Checkpoint
from datagen.pam.llm import load_tokenizer, prepare_llm, tokenizer_fingerprint
from datagen.pam.tiny import write_tokenizer


@pytest.fixture(scope="module")
def engine(golden: Path, model_cache: Path) -> TransformersEngine:
    return make_engine(prepare_llm(Checkpoint(golden / "pam_tiny")), golden_job(golden, engine="transformers").describe, exit_process)


def say(engine: TransformersEngine, sampling: Sampling, prompt: torch.Tensor | None = None) -> Completion:
    embeds = torch.randn(12, 128, generator=torch.Generator().manual_seed(3)) if prompt is None else prompt
    return asyncio.run(engine.generate(Request("name", embeds, sampling)))


def test_a_seed_fixes_what_is_sampled(engine):
    hot = {"max_tokens": 24, "temperature": 2.0, "ignore_eos": True}
    first, again, other = (say(engine, Sampling(**hot, seed=seed)) for seed in (1, 1, 2))
    assert first.token_ids == again.token_ids != other.token_ids
    assert (
        say(engine, Sampling(24, temperature=2.0, top_p=1e-6, ignore_eos=True)).token_ids
        == say(engine, Sampling(24, ignore_eos=True)).token_ids
    )


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = {_choose(logits, [], Sampling(1, temperature=1.0, top_p=0.6), generator) for _ in range(200)}
    assert drawn == {0, 1}


def test_log_probabilities_are_those_of_the_logits(engine):
    prompt = torch.randn(12, 128, generator=torch.Generator().manual_seed(3))
    found = say(engine, Sampling(6, ignore_eos=True, logprobs=4, temperature=3.0), prompt)
    told = found.token_logprobs
    with torch.inference_mode():
        words = engine.model.get_input_embeddings()(torch.tensor(found.token_ids[:-1]))
        logits = engine.model(inputs_embeds=torch.cat([prompt, words])[None], logits_to_keep=6).logits[0]
    expected = logits.log_softmax(-1)
    assert tuple(told.token_ids) == found.token_ids
    assert np.allclose(told.logprobs, expected[range(6), found.token_ids], atol=1e-4)
    assert np.allclose(told.top_logprobs, expected.topk(4).values, atol=1e-4)
    assert np.allclose(expected.gather(1, torch.from_numpy(told.top_ids).long()), told.top_logprobs, atol=1e-4)
    assert told.logprobs.mean() == pytest.approx(found.logprob, abs=1e-5)
    assert told.tokenizer == tokenizer_fingerprint(engine._tokenizer)
    assert say(engine, Sampling(2), prompt).token_logprobs is None


def test_a_fingerprint_tells_what_ids_stand_for(tmp_path):
    folders = [tmp_path / name for name in ("one", "again", "other")]
    for folder, texts in zip(folders, ((), (), ["kaleidoscope"] * 9), strict=True):
        folder.mkdir()
        write_tokenizer(folder, texts, vocabulary=400)
    one, again, other = (tokenizer_fingerprint(load_tokenizer(folder)) for folder in folders)
    assert one == again != other


def test_an_answer_ends_at_the_end_of_turn(engine):
    """Raise the end-of-turn row until it wins at once."""
    table = engine.model.get_input_embeddings().weight
    hidden = engine.model.model(inputs_embeds=torch.ones(1, 3, 128)).last_hidden_state[0, -1].detach()
    end = min(engine.stop_ids)
    kept = table[end].clone()
    with torch.no_grad():
        table[end] = hidden * 10
    try:
        stopped, running = (say(engine, Sampling(6, ignore_eos=on), torch.ones(3, 128)) for on in (False, True))
    finally:
        with torch.no_grad():
            table[end] = kept
    assert (stopped.token_ids, stopped.finish_reason, stopped.text) == ((end,), "stop", "")
    assert (len(running.token_ids), running.finish_reason) == (6, "length")


def test_what_is_not_finite_is_an_error(engine):
    with pytest.raises(ModelOutputError, match="not finite"):
        say(engine, Sampling(4), torch.full((5, 128), math.nan))


def test_a_device_that_is_not_there_is_a_job_error(golden):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(JobError, match="torch sees no GPU"):
        device_and_dtype(golden_job(golden, device="cuda").describe)


PARENT = """
import subprocess, sys, time
from datagen.describe.reaper import Reaper
reaper = Reaper()
with reaper.marking():
    # Like an engine core, it starts a worker of its own, and both outlive a parent that is killed.
    child = subprocess.Popen([sys.executable, "-c", "import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"])
bystander = subprocess.Popen(["sleep", "600"])
time.sleep(1)
print(child.pid, bystander.pid, flush=True)
sys.stdin.readline()
reaper.close()
child.wait()
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["kill", "close"])
def test_engine_processes_end_with_their_worker_and_nothing_else_does(how):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        child, bystander = (psutil.Process(int(pid)) for pid in parent.stdout.readline().split())
        marked = [child, *child.children(recursive=True)]
        assert len(marked) == 2
        if how == "kill":
            parent.send_signal(signal.SIGKILL)
        else:
            parent.stdin.write("\n")
            parent.stdin.flush()
        _, alive = psutil.wait_procs(marked, timeout=10)
        survived = bystander.is_running()
        bystander.kill()
        parent.kill()
    assert survived
    # Orphans may stay as zombies where nobody reaps them.
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
