"""Preparing the language model: what is cut, kept, refused, and found again."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from datagen.errors import ModelLoadError
from datagen.pam.checkpoint import Checkpoint
from datagen.pam.llm import load_tokenizer, prepare_llm, stop_token_ids
from datagen.pam.projector import load_projector


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """A writable copy of the golden checkpoint, in one file and without the vision tower."""
    folder = tmp_path / "copy"
    shutil.copytree(golden / "pam_tiny", folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    checkpoint = Checkpoint(golden / "pam_tiny")
    save_file({k: v for k, v in checkpoint.tensors("") if "vision_tower" not in k}, folder / "model.safetensors")
    return folder


def edit(folder: Path, **config: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def vocabulary(folder: Path) -> int:
    return len(load_tokenizer(folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(Checkpoint(folder).tensors(""))


def test_only_the_language_model_is_kept_and_its_vocabulary_cut(golden, tmp_path):
    source = Checkpoint(golden / "pam_tiny")
    prepared = weights(prepare_llm(source, tmp_path))
    assert prepared.pop("model.embed_tokens.weight").shape[0] == vocabulary(source.folder) < source.shapes["model.embed_tokens.weight"][0]
    assert set(prepared) == {k for k in source.shapes if k.startswith(("model.layers.", "model.norm."))}
    assert all(torch.equal(prepared[f"model.layers.{name}"], tensor) for name, tensor in source.tensors("model.layers."))


def test_an_untied_head_is_kept_and_cut(copy, tmp_path):
    tensors = load_file(copy / "model.safetensors")
    head = torch.randn(640, 128).bfloat16()
    save_file(tensors | {"lm_head.weight": head}, copy / "model.safetensors")
    assert "lm_head.weight" not in weights(prepare_llm(Checkpoint(copy), tmp_path / "tied"))
    edit(copy, tie_word_embeddings=False)
    assert torch.equal(weights(prepare_llm(Checkpoint(copy), tmp_path / "untied"))["lm_head.weight"], head[: vocabulary(copy)])


def test_it_is_written_once_and_found_by_content(copy, tmp_path):
    first = prepare_llm(Checkpoint(copy), tmp_path)
    written = (first / "config.json").stat().st_mtime_ns
    assert prepare_llm(Checkpoint(copy), tmp_path) == first
    assert (first / "config.json").stat().st_mtime_ns == written
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, copy / "model.safetensors")
    assert prepare_llm(Checkpoint(copy), tmp_path) != first


def test_several_workers_at_once_leave_one_whole_folder(copy, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: prepare_llm(Checkpoint(copy), tmp_path), range(4)))
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "llm").iterdir() if path.is_dir()] == [folders.pop().name]


@pytest.mark.parametrize("key", ["model.layers.1.input_layernorm.weight", "model.embed_tokens.weight", "model.norm.weight"])
def test_missing_weights_are_named(copy, tmp_path, key):
    tensors = load_file(copy / "model.safetensors")
    del tensors[key]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.layers\.1" if "layers" in key else key):
        prepare_llm(Checkpoint(copy), tmp_path)
    assert not list(tmp_path.glob("llm/*"))


def test_an_untied_model_without_a_head_is_refused(copy, tmp_path):
    edit(copy, tie_word_embeddings=False)
    with pytest.raises(ModelLoadError, match="lm_head"):
        prepare_llm(Checkpoint(copy), tmp_path)


def test_a_tokenizer_of_another_model_is_refused(copy, tmp_path):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:400].clone()
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelLoadError, match=f"{vocabulary(copy)} entries"):
        prepare_llm(Checkpoint(copy), tmp_path)


def test_a_missing_tokenizer_is_refused(copy, tmp_path):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copy / name).unlink()
    with pytest.raises(ModelLoadError, match="tokenizer"):
        prepare_llm(Checkpoint(copy), tmp_path)


def test_stop_ids(copy):
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert stop_token_ids(Checkpoint(copy)) == (7, 8)
    (copy / "generation_config.json").unlink()
    edit(copy, eos_token_id=9)
    assert stop_token_ids(Checkpoint(copy)) == (9,)
    edit(copy, eos_token_id=None)
    with pytest.raises(ModelLoadError, match="eos_token_id"):
        stop_token_ids(Checkpoint(copy))


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_a_broken_projector_is_named(copy, change):
    tensors = load_file(copy / "model.safetensors")
    tensor = tensors.pop("model.mm_projector_img.2.bias")
    if change == "shape":
        tensors["model.mm_projector_img.2.bias"] = tensor[:5].clone()
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"model\.mm_projector_img\.2\.bias"):
        load_projector(Checkpoint(copy), vocabulary(copy))


@pytest.mark.parametrize("name", ["pam_1.5b_keys.json", "pam_3b_keys.json"])
def test_the_full_size_models_have_every_key_that_is_read(golden, name):
    """Names and shapes of the real models, on the meta device: the projector fits, and the LLM is the whole of what is left."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from datagen.pam.projector import Projector

    listed = json.loads((golden / name).read_text())
    keys = {key: tuple(shape) for key, shape in listed["keys"].items()}
    hidden = listed["config"]["hidden_size"]
    with torch.device("meta"):
        projector = Projector((1024, hidden, hidden), (256, hidden, hidden), listed["config"]["vocab_size"])
        llm = Qwen2ForCausalLM(Qwen2Config(**listed["config"], tie_word_embeddings=True))
    ours = {f"model.{key}": tuple(tensor.shape) for key, tensor in projector.state_dict().items()}
    ours |= {key: tuple(tensor.shape) for key, tensor in llm.state_dict().items()}
    assert ours == {key: shape for key, shape in keys.items() if not key.startswith(("model.vision_tower", "model.vision_resampler"))}
