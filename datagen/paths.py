"""A job's paths, made to mean the same in every process and on every node: absolute, once, when the job is started.

What is a path follows from the option; those of a model may also be names, of an embedded checkpoint, a hub repository or a config of
the sam2 package, and names stay as they are, as do the words of source.annotations.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from datagen.errors import JobError

PATHS = (("source", "input"), ("source", "media_root"), ("output",))
PATHS_OR_NAMES = (("source", "annotations"), ("model", "checkpoint"), ("model", "sam2"), ("model", "sam2_config"))
EMBEDDED = ("tiny", "tiny-shapes")
"""Checkpoints by name, without any download: random weights made from a seed, and one trained on `datagen.scenes`."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")
# What a run record says of each: where it was found.
_RECORDED_AS = {"checkpoint": "folder", "sam2": "sam2_weights", "sam2_config": "sam2_config"}
# Places that libraries take from the environment, for processes that may have another current folder than this one.
_VARIABLES = (
    *("DATAGEN_CACHE", "TMPDIR", "RAY_TMPDIR", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
    *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE", "SSL_CERT_FILE"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT"),
)


def absolute(path: str) -> str:
    """The path from the root, `~` resolved; URIs stay. Symbolic links are kept as written, and so is a final `/`. Raises JobError where the
    current folder is gone.
    """
    if "://" in path or not path:
        return path
    whole = os.path.expanduser(path)
    if not os.path.isabs(whole):
        whole = os.path.join(_here(), whole)
    plain = os.path.abspath(whole)
    if os.path.realpath(plain) != os.path.realpath(whole):  # `..` behind a link does not lead back to where the link is
        plain = whole
    return plain + "/" if path.endswith("/") and plain != "/" else plain


def _here() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise JobError("the current folder is not there any more: change to another one, or give absolute paths") from error


def located(job: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> value of those path options of a job, as a mapping, that are another text when they are absolute."""
    found: dict[str, Any] = {}
    for keys in (*PATHS, *PATHS_OR_NAMES):
        group: Mapping[str, Any] = job
        for key in keys[:-1]:
            group = group[key]
        value = group[keys[-1]]
        if value is None or (keys in PATHS_OR_NAMES and is_name(keys[-1], value)):
            continue
        if (place := absolute(value)) != value:
            found[".".join(keys)] = place
    return found


def is_name(option: str, value: str) -> bool:
    """Whether an option's value is a name, and no path of this machine. option: `annotations`, `checkpoint`, `sam2` or `sam2_config`."""
    if option == "annotations":
        return value in ("auto", "none")
    if option == "checkpoint" and value in EMBEDDED:
        return True
    if os.path.exists(os.path.expanduser(value)):
        return False
    if option == "sam2_config":
        return True
    # OWNER/NAME/FOLDER is a folder of a repository, unless there is a folder OWNER here.
    return _HUB_ID.fullmatch(value) is not None and not (value.count("/") > 1 and os.path.isdir(value.split("/")[0]))


def as_recorded(job: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """A job of a run record whose model paths, where older versions wrote relative ones, are those where the run found its weights.

    model: what the record says of the model.
    """
    options = dict(job.get("model") or {})
    for option, fact in _RECORDED_AS.items():
        value, found = options.get(option), model.get(fact)
        if isinstance(value, str) and isinstance(found, str) and os.path.isabs(found) and not os.path.isabs(value):
            names = [name for name in PurePath(os.path.expanduser(value)).parts if name not in ("..", ".")]
            parts = PurePath(found).parts
            if names and (list(parts[-len(names) :]) == names or list(parts[-len(names) - 1 : -1]) == names):
                options[option] = found if option != "sam2" or list(parts[-len(names) :]) == names else os.path.dirname(found)
    return {**job, "model": options}


def same_place(one: Any, other: Any) -> bool:
    """Whether two values of a path option are the same, or lead to the same place on this machine."""
    if one == other:
        return True
    if not (isinstance(one, str) and isinstance(other, str) and os.path.isabs(one) and os.path.isabs(other)):
        return False
    return os.path.realpath(one) == os.path.realpath(other)


def settle_environment() -> None:
    """Make the places in this process's environment absolute, which processes that it starts inherit."""
    for name in _VARIABLES:
        value = os.environ.get(name)
        if value and "://" not in value and not os.path.isabs(value):
            os.environ[name] = absolute(value)
