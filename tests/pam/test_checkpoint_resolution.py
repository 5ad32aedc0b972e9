"""Which weights a job gets: by folder, file, hub id or inside the checkpoint; and what is said when there are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from datagen.errors import ModelLoadError
from datagen.job import ModelOptions
from datagen.pam.checkpoint import TOWER, Checkpoint, ModelFiles, resolve_model
from datagen.pam.front_end import load_front_end
from datagen.pam.inspection import compare, inspect_checkpoint
from datagen.pam.segmenter import build_segmenter

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = str(GOLDEN / "sam2_tiny_config.json")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "pam_tiny", tmp_path / "pam"))


def tower() -> dict[str, torch.Tensor]:
    return dict(Checkpoint(GOLDEN / "pam_tiny").tensors(TOWER))


def edit(folder: Path, change) -> None:
    """Change the tensors of the first shard in place."""
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


def test_the_copy_inside_the_checkpoint_is_used_when_nothing_else_is_named():
    files = resolve_model(ModelOptions(checkpoint=str(GOLDEN / "pam_tiny"), sam2_config=CONFIG))
    assert files == ModelFiles((GOLDEN / "pam_tiny").resolve(), None, CONFIG)
    official = np.load(GOLDEN / "sam2_tiny_state_dict.npz")
    assert {key: tuple(value.shape) for key, value in files.sam2_state_dict().items()} == {
        key: official[key].shape for key in official.files
    }
    report = inspect_checkpoint(ModelOptions(checkpoint=str(GOLDEN / "pam_tiny"), sam2_config=CONFIG))
    assert report.ok
    assert report.groups["perceiver"].dtypes == {"BF16": 86}
    assert json.loads(json.dumps(report.to_dict()))["groups"]["newlines"]["num_parameters"] == 3 * 128


def test_a_sam2_folder_in_the_checkpoint_comes_before_the_copy_inside(folder):
    (folder / "sam2").mkdir()
    save_file(tower(), folder / "sam2" / "model.safetensors")
    config = json.loads(Path(CONFIG).read_text())["resolved_model_config"]
    (folder / "sam2" / "config.json").write_text(json.dumps({**config, "image_size": 256}))
    files = resolve_model(ModelOptions(checkpoint=str(folder)))
    assert files.sam2_weights == folder.resolve() / "sam2" / "model.safetensors"
    assert load_front_end(files).image_size == 256


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_of_official_weights(tmp_path, name):
    path = tmp_path / name
    save_file(tower(), path) if path.suffix == ".safetensors" else torch.save({"model": tower()}, path)
    files = resolve_model(ModelOptions(checkpoint=str(GOLDEN / "pam_tiny"), sam2=str(path), sam2_config=CONFIG))
    assert files.sam2_weights == path
    assert files.sam2_state_dict().keys() == tower().keys()
    assert resolve_model(ModelOptions(checkpoint=str(GOLDEN / "pam_tiny"), sam2=str(tmp_path), sam2_config=CONFIG)) == files


def test_the_config_follows_from_the_official_file_name(tmp_path):
    path = tmp_path / "sam2.1_hiera_base_plus.pt"
    path.touch()
    files = resolve_model(ModelOptions(checkpoint=str(GOLDEN / "pam_tiny"), sam2=str(path)))
    assert files.sam2_config == "configs/sam2.1/sam2.1_hiera_b+.yaml"


def test_the_config_follows_from_the_shapes(tmp_path):
    shapes = build_segmenter("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="meta").state_dict()
    path = tmp_path / "renamed.pt"
    torch.save({"model": {key: torch.zeros(1).expand(value.shape) for key, value in shapes.items()}}, path)
    files = resolve_model(ModelOptions(checkpoint=str(GOLDEN / "pam_tiny"), sam2=str(path)))
    assert files.sam2_config == "configs/sam2.1/sam2.1_hiera_t.yaml"
    with pytest.raises(ModelLoadError, match=r"Name their config in model\.sam2_config"):
        resolve_model(ModelOptions(checkpoint=str(GOLDEN / "pam_tiny")))


@pytest.mark.parametrize(
    "options",
    [{"checkpoint": "nobody/nothing-here"}, {"checkpoint": "no such folder"}, {"checkpoint": str(GOLDEN / "pam_tiny"), "sam2": "a/b"}],
)
def test_missing_weights_name_what_was_tried_and_the_way_out(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match="--model tiny") as refusal:
        resolve_model(ModelOptions(**options))
    assert options.get("sam2", options["checkpoint"]) in str(refusal.value)


def test_a_released_checkpoint_without_the_tower_wants_the_official_weights(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {key: name for key, name in index["weight_map"].items() if not key.startswith(TOWER)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"facebook/sam2\.1-hiera-large"):
        resolve_model(ModelOptions(checkpoint=str(folder)))


def test_unreadable_files_are_named(folder, tmp_path):
    (tmp_path / "sam2.1_hiera_large.pt").write_bytes(b"not a checkpoint")
    files = ModelFiles(folder, tmp_path / "sam2.1_hiera_large.pt", CONFIG)
    with pytest.raises(ModelLoadError, match=r"cannot read .*sam2\.1_hiera_large\.pt"):
        files.sam2_state_dict()
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00002\.safetensors is no readable safetensors"):
        Checkpoint(folder)


@pytest.mark.parametrize("size", ["pam_3b", "pam_1.5b"])
def test_full_size_checkpoints_fit_with_and_without_optional_parts(size):
    data = json.loads((GOLDEN / f"{size}_keys.json").read_text())
    shapes = {key: tuple(shape) for key, shape in data["keys"].items()}
    for left_out in ((), ("lm_head.weight",), (TOWER,), (TOWER, "lm_head.weight")):
        report = compare(data["config"], {key: shape for key, shape in shapes.items() if not key.startswith(left_out)})
        assert (report.missing, report.unexpected, report.wrong_shape) == ([], [], [])
    counted = compare(data["config"], shapes).groups
    assert sum(group.num_tensors for group in counted.values()) == len(shapes)
    assert counted["perceiver"].num_parameters == data["groups"]["vision_resampler"]["numel"]


def test_the_report_names_every_wrong_key(folder):
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.image_newline"]
        tensors["model.stranger"] = torch.zeros(2)
        tensors["model.vision_resampler.proj.bias"] = torch.zeros(7)

    edit(folder, damage)
    report = inspect_checkpoint(ModelOptions(checkpoint=str(folder), sam2_config=CONFIG))
    assert report.missing == ["model.image_newline"]
    assert report.unexpected == ["model.stranger"]
    assert report.wrong_shape == ["model.vision_resampler.proj.bias is [7], not [1024]"]
    assert not report.ok


def test_loading_refuses_a_wrong_perceiver_by_name(folder):
    edit(folder, lambda tensors: tensors.pop("model.vision_resampler.sem_tokens.weight"))
    with pytest.raises(ModelLoadError, match=r"missing: sem_tokens\.weight"):
        load_front_end(resolve_model(ModelOptions(checkpoint=str(folder), sam2_config=CONFIG)))


def test_the_embedded_checkpoint_brings_its_own_sam2_whatever_a_job_names():
    files = resolve_model(ModelOptions(checkpoint="tiny", sam2="facebook/sam2.1-hiera-large"))
    assert files.sam2_weights is not None
    assert files.sam2_weights.is_relative_to(files.checkpoint)
