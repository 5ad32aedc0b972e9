"""Checkpoints from a hub, over HTTP, in the layout in which PAM is published: one folder below the card."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import FakeHub, serving

from datagen.errors import ModelLoadError
from datagen.job import ModelOptions
from datagen.pam.checkpoint import Checkpoint, checkpoint_folder, resolve_model
from datagen.pam.hub import card_of, checkpoint_in

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIG = str(GOLDEN / "sam2_tiny_config.json")
NAME = "Perceive-Anything/PAM-1.5B"
CARD = b"---\nlicense: apache-2.0\n---\n# PAM-1.5B\n"


def published(folder: str = "PAM-1.5B") -> dict[str, bytes]:
    """Path -> content of the repository: the card, the checkpoint in a folder, and what nobody reads."""
    files = {f"{folder}/{path.name}": path.read_bytes() for path in (GOLDEN / "pam_tiny").iterdir()}
    return {".gitattributes": b"*.safetensors filter=lfs\n", "README.md": CARD, f"{folder}/training_args.bin": b"\0" * 4096, **files}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    two = published("first") | published("second")
    hub = FakeHub({NAME: published(), "o/two": two, "o/none": {"README.md": CARD}, "o/top": _at_top(published())})
    with serving(hub) as address:
        for module in ("huggingface_hub.constants", "huggingface_hub.hf_api", "huggingface_hub.file_download"):
            monkeypatch.setattr(f"{module}.ENDPOINT", address, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
        yield hub


def _at_top(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removeprefix("PAM-1.5B/"): content for name, content in files.items()}


def folder_of(name: str, **options: Any) -> Path:
    return checkpoint_folder(ModelOptions(checkpoint=name, **options))


def test_the_one_folder_is_found_and_only_what_is_read_is_fetched(hub: FakeHub) -> None:
    files = resolve_model(ModelOptions(checkpoint=NAME, sam2_config=CONFIG))
    assert files.checkpoint.name == "PAM-1.5B"
    assert files.license() == "apache-2.0"
    assert Checkpoint(files.checkpoint).shapes == Checkpoint(GOLDEN / "pam_tiny").shapes
    there = {path.name for path in files.checkpoint.iterdir()}
    assert there == {path.name for path in (GOLDEN / "pam_tiny").iterdir()}
    assert not list(files.checkpoint.parent.rglob("*.bin"))


def test_what_was_fetched_needs_no_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folder_of(NAME)
    hub.asked = Counter()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert folder_of(NAME) == first
    assert not hub.asked


def test_a_folder_of_several_is_named(hub: FakeHub) -> None:
    with pytest.raises(ModelLoadError, match=r"o/two holds 2 checkpoints: first, second\. Name one: o/two/first"):
        folder_of("o/two")
    assert folder_of("o/two/second").name == "second"
    with pytest.raises(ModelLoadError, match=r"o/two/third holds no checkpoint; its repository has first, second"):
        folder_of("o/two/third")


def test_a_checkpoint_at_the_top_is_one_too(hub: FakeHub) -> None:
    folder = folder_of("o/top")
    assert card_of(folder) == folder / "README.md"
    assert Checkpoint(folder).config["model_type"] == Checkpoint(GOLDEN / "pam_tiny").config["model_type"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("o/none", {}, r"holds no checkpoint: no folder with a config\.json .*it has README\.md"),
        ("nobody/nothing", {}, r"the hub has no such repository, or it is private .*hf auth login"),
        (NAME, {"revision": "v9"}, r"has no revision 'v9': model\.revision is a branch, a tag or a commit"),
        ("no such folder", {}, r"no folder or file here, and no hub id \(OWNER/NAME, or OWNER/NAME/FOLDER\)"),
        ("o/../etc", {}, r"no hub id"),
    ],
)
def test_what_is_in_the_way_has_its_own_message(hub: FakeHub, name: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        folder_of(name, **options)


def test_a_gated_repository_says_where_to_ask(hub: FakeHub) -> None:
    hub.token = "hf_secret"
    with pytest.raises(ModelLoadError, match=rf"{NAME} is gated: ask for access on http.*{NAME}, then `hf auth login`"):
        folder_of(NAME)


def test_without_a_network_the_cache_must_do(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=r"not in the hub's cache .*HF_HUB_OFFLINE forbids"):
        folder_of(NAME)


def test_a_disk_without_room_is_said_before_anything_is_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ModelLoadError, match=r"needs .* GiB more in the hub's cache .*HF_HOME"):
        folder_of(NAME)
    assert hub.bytes_sent < 100_000


def test_a_local_copy_of_the_repository_is_as_good(tmp_path: Path) -> None:
    clone = tmp_path / "PAM"
    for name, content in published().items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(content)
    files = resolve_model(ModelOptions(checkpoint=str(clone), sam2_config=CONFIG))
    assert (files.checkpoint, files.license()) == (clone / "PAM-1.5B", "apache-2.0")
    assert checkpoint_in(clone / "PAM-1.5B", "x") == clone / "PAM-1.5B"
    assert card_of(GOLDEN / "pam_tiny") is None  # the README.md above is no model card


def test_the_command_line_takes_the_published_name(tmp_path: Path) -> None:
    with serving(FakeHub({NAME: published()})) as address:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": address}
        command = [sys.executable, "-m", "datagen", "model", "show", NAME, "--sam2", str(GOLDEN / "pam_tiny" / "none")]
        refused = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert refused.returncode == 2
    assert "no weights at" in refused.stderr + refused.stdout
    assert "Traceback" not in refused.stderr
