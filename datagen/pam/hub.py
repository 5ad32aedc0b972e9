"""Weights from the Hugging Face hub: the files are listed first, and only those of one checkpoint are fetched.

A repository holds a checkpoint at its top, or in a folder of its own, as `Perceive-Anything/PAM-1.5B` does; `OWNER/NAME/FOLDER` names one
of several. What was fetched stays in the hub's cache, where it is found without a network; a fetch that was broken off goes on.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NoReturn

from datagen.errors import ModelLoadError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")
WITHOUT_DOWNLOAD = "To try datagen without a download: --model tiny-shapes"
# What a checkpoint folder has that is read: config and tokenizer, weights, and the SAM 2.1 that comes with it. The rest stays there.
_READ = re.compile(r"(sam2/)?[^/]+\.(json|safetensors|txt|jinja)|sam2/[^/]+\.(pt|yaml)")
_CARDS = re.compile(r"(README|LICEN[CS]E)[^/]*", re.IGNORECASE)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def checkpoint_from_hub(name: str, revision: str | None) -> Path:
    """The folder of a checkpoint in the hub's cache, fetched where it is not there yet. name: OWNER/NAME or OWNER/NAME/FOLDER.

    Raises ModelLoadError saying what is in the way: no network, a private or gated repository, a wrong revision, a full disk, no
    checkpoint or several in it.
    """
    repository, place = _split(name)
    files = _listed(repository, revision)
    if files is None:
        return checkpoint_in(_cached(repository, revision) / place, name)
    folder = _one_checkpoint(list(files), place, name)
    inside = f"{folder}/" if folder else ""
    wanted = [file for file in files if file.startswith(inside) and _READ.fullmatch(file.removeprefix(inside))]
    wanted += [file for file in files if _is_card(file, folder)]
    return _fetched(repository, revision, {file: files[file] for file in wanted}) / folder


def files_from_hub(name: str, patterns: Iterable[str]) -> Path:
    """The folder in the hub's cache with those files of a repository that match one of the patterns. Raises ModelLoadError."""
    repository, place = _split(name)
    files = _listed(repository, None)
    if files is None:
        return _cached(repository, None) / place
    inside = f"{place}/" if place else ""
    found = {file: size for file, size in files.items() if any(PurePosixPath(file).match(inside + pattern) for pattern in patterns)}
    if not found:
        raise ModelLoadError(f"{name} on the hub has no file {' or '.join(patterns)}; it has {_some(files)}. {WITHOUT_DOWNLOAD}")
    return _fetched(repository, None, found) / place


def checkpoint_in(folder: Path, name: str) -> Path:
    """The one checkpoint in a folder: the folder itself, or the only one below it. name: as the job says it. Raises ModelLoadError."""
    if (folder / "config.json").is_file():
        return folder
    files = [path.relative_to(folder).as_posix() for path in folder.glob("*") if path.is_file()]
    files += [path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_file()]
    return folder / _one_checkpoint(files, "", name)


def card_of(checkpoint: Path) -> Path | None:
    """The model card of a checkpoint: in its folder, or in the one above, whose only checkpoint it is."""
    for folder in (checkpoint, checkpoint.parent):
        card = folder / "README.md"
        if card.is_file() and (folder == checkpoint or _is_published(folder, checkpoint)):
            return card
    return None


def _is_published(above: Path, checkpoint: Path) -> bool:
    """Whether the folder above is the repository that the checkpoint was published in, and not just any folder with a README.md."""
    front = (above / "README.md").read_text(encoding="utf-8", errors="replace").startswith("---\n")
    return front and not (above / "config.json").exists() and len(list(above.glob("*/config.json"))) >= 1


def _split(name: str) -> tuple[str, str]:
    if not HUB_ID.fullmatch(name) or any(part in (".", "..") for part in name.split("/")):
        raise ModelLoadError(
            f"no weights at {name}: it is no folder or file here, and no hub id (OWNER/NAME, or OWNER/NAME/FOLDER). {WITHOUT_DOWNLOAD}"
        )
    owner, repository, *place = name.split("/")
    return f"{owner}/{repository}", "/".join(place)


def _one_checkpoint(files: list[str], place: str, name: str) -> str:
    """The folder of the only checkpoint at or below `place`; an empty text for the top."""
    there = set(files)
    folders = sorted({file.rpartition("/")[0] for file in files if file.rpartition("/")[2] == "config.json"})
    found = [folder for folder in folders if any((f"{folder}/{weights}" if folder else weights) in there for weights in _WEIGHTS)]
    below = [folder for folder in found if folder == place or not place or folder.startswith(f"{place}/")]
    if place in below:
        return place
    if len(below) == 1:
        return below[0]
    where = f"{name} holds"
    if below:
        raise ModelLoadError(f"{where} {len(below)} checkpoints: {', '.join(below)}. Name one: {name}/{below[0]}")
    if place and found:
        raise ModelLoadError(f"{where} no checkpoint; its repository has {', '.join(folder or 'one at its top' for folder in found)}")
    raise ModelLoadError(
        f"{where} no checkpoint: no folder with a config.json and {' or '.join(_WEIGHTS)}; it has {_some(files)}. {WITHOUT_DOWNLOAD}"
    )


def _is_card(file: str, folder: str) -> bool:
    """Whether a file is a card or licence of the checkpoint in `folder`: there, or in a folder above it."""
    above, _, name = file.rpartition("/")
    return bool(_CARDS.fullmatch(name)) and (above in ("", folder) or folder.startswith(f"{above}/"))


def _listed(repository: str, revision: str | None) -> dict[str, int] | None:
    """Path -> size in bytes of what a repository holds; None where the hub cannot be asked and its cache must do."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        entries = HfApi().list_repo_tree(repository, recursive=True, revision=revision)
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    except Exception as error:  # noqa: BLE001 (the hub's, and those of whatever HTTP library it uses)
        if not _is_refusal(error) and _is_there(repository, revision):
            return None  # without a network: what was fetched before
        _explain(error, repository, revision)


def _is_refusal(error: Exception) -> bool:
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    return isinstance(error, (DisabledRepoError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError))


def _is_there(repository: str, revision: str | None) -> bool:
    try:
        _cached(repository, revision)
    except ModelLoadError:
        return False
    return True


def _cached(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:  # no file in particular: which of them were wanted, only the hub's list could tell
        return Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[]))
    except Exception as error:  # noqa: BLE001 (the hub's library has many)
        _explain(error, repository, revision)


def _fetched(repository: str, revision: str | None, files: dict[str, int]) -> Path:
    from huggingface_hub import constants, snapshot_download

    cache = Path(constants.HF_HUB_CACHE)
    blobs = cache / f"models--{repository.replace('/', '--')}" / "blobs"
    there = sum(path.stat().st_size for path in blobs.glob("*")) if blobs.is_dir() else 0
    missing = max(0, sum(files.values()) - there)
    base = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(base).free
    if missing > free:
        raise ModelLoadError(
            f"{repository} needs {missing / 2**30:.1f} GiB more in the hub's cache {cache}, whose disk has {free / 2**30:.1f} GiB free; "
            "free some, or set HF_HOME to a folder on another disk"
        )
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=sorted(files)))
    except Exception as error:  # noqa: BLE001 (the hub's, and those of whatever HTTP library it uses)
        _explain(error, repository, revision)


def _explain(error: Exception, repository: str, revision: str | None) -> NoReturn:
    """Raise what the hub said as a ModelLoadError that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, GatedRepoError):
        message = (
            f"{repository} is gated: ask for access on {constants.ENDPOINT}/{repository}, then `hf auth login`, or set HF_TOKEN to a "
            "token of an account that has it"
        )
    elif isinstance(error, DisabledRepoError):
        message = f"{repository} was disabled on the hub"
    elif isinstance(error, RevisionNotFoundError):
        message = (
            f"{repository} has no revision {revision!r}: model.revision is a branch, a tag or a commit of it; left out: its main branch"
        )
    elif isinstance(error, RepositoryNotFoundError):
        message = (
            f"there is no folder {repository} here, and the hub has no such repository, or it is private and this machine may not see it: "
            f"check the name, or `hf auth login` (or HF_TOKEN). {WITHOUT_DOWNLOAD}"
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"no space left for {repository} in the hub's cache {constants.HF_HUB_CACHE}; free some, or set HF_HOME to another disk"
    elif constants.HF_HUB_OFFLINE:
        message = (
            f"cannot get {repository}: no such folder here, not in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids "
            f"to ask the hub. "
            f"Fetch it where there is a network with `datagen model prepare`, or give a local path. {WITHOUT_DOWNLOAD}"
        )
    else:
        message = (
            f"cannot get {repository}: no such folder here, not in the hub's cache {constants.HF_HUB_CACHE}, and the hub at "
            f"{constants.ENDPOINT} did not give it ({reason}). Check the network and try again: a fetch goes on where it broke off. Or "
            f"give a local path. {WITHOUT_DOWNLOAD}"
        )
    raise ModelLoadError(message) from error


def _some(files: Iterable[str]) -> str:
    names = sorted(files)
    return (", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")) or "no file"
