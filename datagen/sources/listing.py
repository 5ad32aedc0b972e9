"""What every listing of files leaves out, and how it is counted: outputs of datagen, masks beside their pictures, files of other kinds."""

from __future__ import annotations

import importlib.util
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeVar

from datagen.errors import SourceError
from datagen.job import S3Options
from datagen.remote import RemoteFile, is_remote, list_files, version_of
from datagen.sources.uris import HEIF_SUFFIXES, Media, media_type_of

_META, _STAGING, _MARKER = "_datagen", "_staging", "dataset.json"
_TABLES = frozenset({"assets", "regions", "tracks", "clips"})
_OUTPUT = "datagen dataset"

# What lies beside `a.jpg` under the name `a.mask.png` and is no picture of its own.
_BESIDE = "mask masks seg segm segmentation semantic semseg instance instances panoptic depth disparity alpha matte trimap gt groundtruth"
_COMPANION = re.compile(rf"(.+)\.({'|'.join(_BESIDE.split())})\.([A-Za-z0-9]+)", re.IGNORECASE | re.DOTALL)

_MOST_KINDS = 30
_LONGEST_SUFFIX = 12

_File = TypeVar("_File")


def without_outputs(files: Iterable[_File], skipped: Counter[str], s3: S3Options, name_of: Callable[[_File], str] = str) -> Iterator[_File]:
    """The files, in the order of their names, without those of datasets that datagen wrote, each of which is counted once.

    A dataset is known by its marker; only its own tables and notes are left out, not what else lies in the folder.
    """
    known: dict[str, bool] = {}
    for file in files:
        name = name_of(file)
        before, found, _ = name.partition(f"/{_META}/")
        if found and before not in known:
            known[before] = _has_marker(before, s3)
            if known[before]:
                skipped[_OUTPUT] += 1
        if not (known and _is_part(name, known)):
            yield file


def _is_part(name: str, known: dict[str, bool]) -> bool:
    for mark in (f"/{_META}/", f"/{_STAGING}/"):
        before, found, _ = name.partition(mark)
        if found and known.get(before):
            return True
    folder, _, base = name.rpartition("/")
    above, _, table = folder.rpartition("/")
    return table in _TABLES and known.get(above, False) and base.lower().endswith(".parquet")


def _has_marker(folder: str, s3: S3Options) -> bool:
    place = f"{folder}/{_META}/{_MARKER}"
    return version_of(place, s3) != "" if is_remote(folder) else os.path.isfile(place)


def without_companions(files: Iterable[_File], skipped: Counter[str], name_of: Callable[[_File], str] = str) -> Iterator[_File]:
    """The files, in the order of their names, without masks, depths and the like that lie beside what they belong to, which are counted."""
    group, stems, held = "", set[str](), list[_File]()
    for file in files:
        name = name_of(file)
        if not group or not name.startswith(group):
            yield from _released(held, stems, skipped, name_of)
            group, stems, held = f"{_first_part(name)}.", set(), []
        if _COMPANION.fullmatch(name) and media_type_of(name) != "other":
            held.append(file)
            continue
        if media_type_of(name) != "other":
            stems.add(posixpath.splitext(name)[0])
        yield file
    yield from _released(held, stems, skipped, name_of)


def _released(held: list[_File], stems: set[str], skipped: Counter[str], name_of: Callable[[_File], str]) -> Iterator[_File]:
    """Of some files that may belong to another one those that do not."""
    for file in held:
        match = _COMPANION.fullmatch(name_of(file))
        if match and match[1] in stems:
            skipped[companion_kind(match[2], match[3])] += 1
        else:
            yield file


def companion_of(name: str) -> tuple[str, str] | None:
    """The stem that a name such as `a.mask.png` belongs to, and how it is counted; None for another name."""
    match = _COMPANION.fullmatch(name)
    return (match[1], companion_kind(match[2], match[3])) if match else None


def companion_kind(word: str, suffix: str) -> str:
    """How such a file is counted."""
    return f"*.{word.lower()}.{suffix.lower()} beside its picture"


def count_other(skipped: Counter[str], name: str, media: Media) -> bool:
    """Whether a file is not listed by a job that asks for `media`; counts it by its kind, other files by their extension."""
    kind = media_type_of(name, media)
    if count_apple_double(skipped, name):
        return True
    if kind == "other" or (name.lower().endswith(HEIF_SUFFIXES) and not _reads_heif()):
        count_file(skipped, name)
        return True
    if media not in (kind, "any"):
        skipped[kind] += 1
        return True
    return False


def count_apple_double(skipped: Counter[str], name: str) -> bool:
    """Whether a file is what macOS keeps beside another one (`._a.jpg`) where a disk or archive has no place for it; counts it."""
    found = posixpath.basename(name).startswith("._")
    if found:
        skipped["._* file of macOS"] += 1
    return found


def count_file(skipped: Counter[str], name: str) -> None:
    """Count a file that is not used by its extension; of many different ones only the first are told apart."""
    suffix = posixpath.splitext(name)[1].lower()
    label = f"{suffix} file" if suffix else "file without an extension"
    is_new = label not in skipped and len(skipped) >= _MOST_KINDS
    skipped["other file" if is_new or len(suffix) > _LONGEST_SUFFIX or not suffix.isprintable() else label] += 1


def refuse_nothing(where: str, media: Media, skipped: Counter[str]) -> None:
    """Raises SourceError for an input in which nothing was found that the job can use, which says what was found. where: such as `in x`."""
    kinds = "images or videos" if media == "any" else f"{media}s"
    if not skipped:
        raise SourceError(f"there are no {kinds} {where}: it is empty")
    found = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
    hints = []
    if media != "any" and skipped["video" if media == "image" else "image"]:
        hints.append(f"source.media: {'video' if media == 'image' else 'image'} lists these")
    if any(skipped[f"{suffix} file"] for suffix in HEIF_SUFFIXES):
        hints.append("HEIC is read once pillow-heif is installed, on every machine: pip install pillow-heif")
    if skipped[_OUTPUT]:
        hints.append("datasets that datagen wrote are no input")
    raise SourceError(f"there are no {kinds} {where}; found: {found}" + "".join(f". {hint}" for hint in hints))


def remote_files(uri: str, s3: S3Options, skipped: Counter[str]) -> Iterator[RemoteFile]:
    """All files below a remote folder, in the order of their names, without datasets that datagen wrote. Raises as list_files does."""
    yield from without_outputs(list_files(uri, s3), skipped, s3, lambda file: file.uri)


@cache
def _reads_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def _first_part(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base[:1] + base[1:].partition(".")[0]
