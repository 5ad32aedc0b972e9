"""A checkpoint is data: nothing that its files name is imported, called, fetched or read from elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from typer.testing import CliRunner

from datagen.cli import app
from datagen.errors import JobError, ModelLoadError
from datagen.job import ModelOptions
from datagen.options import parse_yaml
from datagen.pam.checkpoint import Checkpoint, resolve_model
from datagen.pam.inspection import inspect_checkpoint
from datagen.pam.llm import load_tokenizer, prepare_llm, stop_token_ids
from datagen.pam.segmenter import build_segmenter, model_config

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = Path(resolve_model(ModelOptions(checkpoint="tiny-shapes")).checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint that a test may poison."""
    return Path(shutil.copytree(SHAPES, tmp_path / "checkpoint"))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What is there once a trap has sprung."""
    return tmp_path / "ran"


@pytest.fixture
def trap(tmp_path: Path, mark: Path) -> str:
    """A pickle that makes `mark` when it is loaded."""

    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    path = tmp_path / "trap.npy"
    path.write_bytes(pickle.dumps(Payload()))
    return str(path)


def golden_node() -> dict:
    return json.loads((GOLDEN / "sam2_tiny_config.json").read_text())["resolved_model_config"]


def put(node: dict, path: str, value: object) -> dict:
    *parents, last = path.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    return node


def call(trap: str) -> str:
    return "oc.create:{_target_: numpy.load, file: " + trap + ", allow_pickle: true}"


FORMS = {
    "plain": lambda trap: {"image_encoder.scalp": "${" + call(trap) + "}"},
    "escaped": lambda trap: {"image_encoder.scalp": "\\${" + call(trap) + "}"},
    "escaped twice": lambda trap: {"image_encoder.scalp": "\\\\${" + call(trap) + "}"},
    "inside another": lambda trap: {"image_encoder.scalp": "${oc.env:NOBODY,${" + call(trap) + "}}"},
    "within a text": lambda trap: {"image_encoder.neck.fpn_interp_model": "nearest${" + call(trap) + "}"},
    "in a list": lambda trap: {"image_encoder.trunk.stages": [1, "${" + call(trap) + "}"]},
    "of the environment": lambda _: {"image_encoder.scalp": "${oc.env:HOME}"},
    "of another key": lambda _: {"image_encoder.scalp": "${num_maskmem}"},
    "a target": lambda trap: {"memory_encoder": {"_target_": "numpy.load", "file": trap, "allow_pickle": True}},
    "a target by interpolation": lambda trap: {"memory_encoder": {"_target_": "${x}", "x": "numpy.load", "file": trap}},
    "a target in the decoder's options": lambda trap: {"sam_mask_decoder_extra_args": {"_target_": "numpy.load", "file": trap}},
    "a target deep in its options": lambda trap: {
        "sam_mask_decoder_extra_args": {"iou_head_depth": {"_target_": "numpy.load", "file": trap}}
    },
    "a target in a list": lambda trap: {"image_encoder.trunk.stages": [{"_target_": "numpy.load", "file": trap, "allow_pickle": True}]},
    "a target that is a list": lambda _: {"memory_encoder": {"_target_": ["numpy", "load"]}},
    "positions": lambda trap: {"memory_encoder._args_": [trap]},
    "half a call": lambda _: {"memory_encoder._partial_": True},
    "recursion": lambda _: {"memory_encoder._recursive_": False},
    "conversion": lambda _: {"_convert_": "object"},
    "a file of weights": lambda trap: {"image_encoder.trunk.weights_path": trap},
    "a compiler": lambda _: {"compile_image_encoder": True},
    "a text for a number": lambda _: {"image_encoder.scalp": "1"},
    "an unknown argument": lambda _: {"memory_attention.hook": 1},
    "an unknown way to fuse": lambda _: {"image_encoder.neck.fuse_type": "__import__"},
    "no finite number": lambda _: {"sigmoid_scale_for_mem_enc": float("inf")},
    "layers without end": lambda _: {"memory_attention.num_layers": 10**9},
    "stages without end": lambda _: {"image_encoder.trunk.stages": [10**9, 1, 1, 1]},
}


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize("form", FORMS)
def test_a_config_beside_the_weights_makes_nothing_run(form, suffix, folder, trap, mark):
    config = json.loads((folder / "sam2" / "config.json").read_text())
    for path, value in FORMS[form](trap).items():
        put(config["model"], path, value)
    text = json.dumps(config) if suffix == "json" else yaml.safe_dump(config)
    file = folder / "sam2" / f"config.{suffix}"
    file.write_text(text)
    options = ModelOptions(checkpoint=str(folder), sam2_config=None if suffix == "json" else str(file))
    key = next(iter(FORMS[form](trap))).rpartition(".")[2]
    with pytest.raises(ModelLoadError, match=f"the SAM 2 config: .*{key}"):
        inspect_checkpoint(options)
    assert not mark.exists()


def test_an_interpolation_as_a_key_is_no_argument(trap, mark):
    node = golden_node() | {"${" + call(trap) + "}": 1}
    with pytest.raises(ModelLoadError, match="is no argument"):
        build_segmenter(node, None)
    assert not mark.exists()


def test_show_refuses_with_exit_2_and_the_keys_name(folder, trap, mark):
    config = json.loads((folder / "sam2" / "config.json").read_text())
    put(config["model"], "image_encoder.scalp", "${" + call(trap) + "}")
    (folder / "sam2" / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["model", "show", str(folder)])
    assert isinstance(result.exception, ModelLoadError)
    assert "image_encoder.scalp" in result.exception.message
    assert not mark.exists()


def test_the_models_node_is_a_model():
    with pytest.raises(ModelLoadError, match="must be a SAM2Base"):
        build_segmenter({"_target_": "sam2.modeling.memory_encoder.CXBlock", "dim": 8}, None)


def test_numbers_that_do_not_fit_together_are_said():
    node = golden_node()
    put(node, "image_encoder.neck.backbone_channel_list", [1, 2])
    with pytest.raises(ModelLoadError, match="SAM 2 cannot be built from its config"):
        build_segmenter(node, None)


def test_what_is_built_is_what_hydra_would_build():
    node = model_config(golden_node())
    torch.manual_seed(0)
    expected = instantiate(OmegaConf.create(dict(node)), _recursive_=True).state_dict()
    torch.manual_seed(0)
    found = build_segmenter(golden_node(), None).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def chain(first: str, last: str, link: str) -> str:
    """Anchors that each hold the one before several times."""
    return first + "\n" + "\n".join(link.format(before=chr(n), name=chr(n + 1)) for n in range(ord("a"), ord(last)))


YAML_BOMBS = {
    "aliases": chain("a: &a [1,1,1,1,1,1,1,1,1,1]", "g", "{name}: &{name} [" + ",".join(["*{before}"] * 10) + "]"),
    "merges": chain("a: &a {x: 1, y: 2}", "e", "{name}: &{name} {{<<: [" + ",".join(["*{before}"] * 20) + "]}}"),
    "itself": "a: &a [*a]",
    "deep": "[" * 5000 + "]" * 5000,
    "deep mappings": "".join(" " * n + "a:\n" for n in range(200)),
    "object": "a: !!python/object/apply:os.system [id]",
    "name": "a: !!python/name:os.system",
    "digits": "a: " + "9" * 5000,
}


@pytest.mark.parametrize("bomb", YAML_BOMBS)
def test_a_yaml_bomb_is_refused(bomb, tmp_path):
    with pytest.raises(JobError, match="is not YAML"):
        parse_yaml(YAML_BOMBS[bomb], "the file")
    (tmp_path / "config.yaml").write_text(YAML_BOMBS[bomb])
    with pytest.raises(ModelLoadError):
        build_segmenter(str(tmp_path / "config.yaml"), None)


def test_aliases_of_ordinary_size_and_exponents_are_read():
    assert parse_yaml("a: &a {x: 1e-6}\nb: {<<: *a, y: 2}", "x") == {"a": {"x": 1e-6}, "b": {"x": 1e-6, "y": 2}}


@pytest.mark.parametrize("name", ["../{0}", "{1}/{0}", "sub/../../{0}", "a\0b.safetensors", "model.bin"])
def test_an_index_names_files_of_its_own_folder(name, folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "other.safetensors")
    named = name.format("other.safetensors", tmp_path)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": named}}))
    with pytest.raises(ModelLoadError, match=r"expected a \.safetensors file of the checkpoint's own folder"):
        Checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "[]", '{"a": ' + "9" * 5000 + "}", "\xff"]
)
def test_damaged_json_is_one_error(text, folder):
    (folder / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelLoadError, match=r"model\.safetensors\.index\.json"):
        Checkpoint(folder)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 10**12), ("hidden_size", "8"), ("vocab_size", -1), ("hidden_size", 1.5)])
def test_sizes_without_sense_are_refused_by_name(key, value, folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelLoadError, match=f"{key} is "):
        Checkpoint(folder)


def test_configs_that_name_code_do_not_reach_who_would_run_it(folder, tmp_path, monkeypatch):
    """transformers fetches and runs what `attn_implementation` names on the hub, and vLLM what `auto_map` does."""
    path, settings = folder / "config.json", folder / "tokenizer_config.json"
    poison = {"auto_map": {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}}
    kernel = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel", "quantization_config": {"quant_method": "evil"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | poison | kernel))
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | poison | {"vocab_file": "/etc/passwd", "tokenizer_file": "/etc/hosts"})
    )

    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was asked for")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetched)
    assert inspect_checkpoint(ModelOptions(checkpoint=str(folder))).ok
    prepared = prepare_llm(Checkpoint(folder), tmp_path / "cache")
    for name in ("config.json", "tokenizer_config.json"):
        text = (prepared / name).read_text()
        assert not any(word in text for word in ("evil", "/etc/", "auto_map")), name
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(SHAPES).get_vocab() == load_tokenizer(prepared).get_vocab()


@pytest.mark.parametrize("ids", ["end", [], [1.5], [-1], {"a": 1}])
def test_an_end_that_is_no_token_is_refused(ids, folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    with pytest.raises(ModelLoadError, match="eos_token_id is"):
        stop_token_ids(Checkpoint(folder))


def test_pickled_weights_hold_weights_only(folder, trap, mark, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    for content in (Payload(), {"model": Payload()}, {"model": {"a": 1}}, {"model": {"a": torch.zeros(1)}, "x": Payload()}):
        path = tmp_path / "sam2.1_hiera_tiny.pt"
        torch.save(content, path)
        with pytest.raises(ModelLoadError, match=r"sam2\.1_hiera_tiny\.pt"):
            inspect_checkpoint(ModelOptions(checkpoint=str(folder), sam2=str(path)))
        assert not mark.exists()
