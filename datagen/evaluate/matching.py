"""Which picture, or video, of a dataset is which of gold: by id where the file names agree, else by the longest common end of the paths."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from datagen.errors import SourceError
from datagen.evaluate.items import Medium
from datagen.sources.coco_media import label_studio_path

_CELL = re.compile(r"/?([^/]+\.(?:parquet|arrow))#", re.IGNORECASE)
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def match(gold: Sequence[Medium], found: Sequence[Medium], what: str) -> dict[str, Medium]:
    """Gold's key -> what of the dataset it is. what: `image` or `video`, for messages.

    An id alone is not believed: other files may have been given the same. Raises SourceError when two of either side fit equally well.
    """
    pairs: dict[str, Medium] = {}
    by_id: dict[str, list[Medium]] = defaultdict(list)
    for medium in gold:
        for name in medium.ids:
            by_id[name].append(medium)
    rest = []
    for medium in found:
        known = [one for name in medium.ids for one in by_id.get(name, ()) if _agree(one, medium)]
        if known and all(one is known[0] for one in known) and known[0].key not in pairs:
            pairs[known[0].key] = medium
        else:
            rest.append(medium)
    return pairs | _by_path([medium for medium in gold if medium.key not in pairs], rest, what)


def _by_path(gold: Sequence[Medium], found: Sequence[Medium], what: str) -> dict[str, Medium]:
    by_name: dict[str, list[Medium]] = defaultdict(list)
    for medium in gold:
        for last in {path_parts(name)[-1] for name in medium.names if path_parts(name)}:
            by_name[last].append(medium)
    wanted: dict[str, list[tuple[int, Medium]]] = defaultdict(list)
    keyed = {medium.key: medium for medium in gold}
    for medium in found:
        candidates = by_name.get(path_parts(medium.names[0])[-1], []) if path_parts(medium.names[0]) else []
        if candidates:
            length, best = _best([(_common(one, medium), one) for one in candidates], medium, f"{what}s of gold", f"{what} of the dataset")
            wanted[best.key].append((length, medium))
    return {key: _best(options, keyed[key], f"{what}s of the dataset", f"{what} of gold")[1] for key, options in wanted.items()}


def path_parts(name: str) -> list[str]:
    """The parts of a path, URI or URL, also as Windows writes it. A member of an archive goes on from the archive's path; a cell of a
    table is one part together with its file, since all tables have a row 0."""
    name = label_studio_path(name) or name
    scheme = _SCHEME.match(name)
    if scheme and scheme[1].lower() in ("file", "http", "https"):
        name = unquote(name.partition("?")[0]) if scheme[1].lower() != "file" else unquote(name)
    name = name.replace("\\", "/")
    cell = _CELL.search(name)
    if cell:
        return [*(part for part in name[: cell.start()].split("/") if part), name[cell.start() :].lstrip("/")]
    parts: list[str] = []
    for part in name.replace(".tar#", ".tar/").split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return parts


def _agree(gold: Medium, found: Medium) -> bool:
    if gold.sha256 is not None and gold.sha256 == found.sha256:
        return True
    names = {path_parts(name)[-1] for name in gold.names if path_parts(name)}
    return any(parts[-1] in names for parts in map(path_parts, found.names) if parts)


def _common(one: Medium, other: Medium) -> int:
    """Parts that two paths have in common at their ends."""
    longest = 0
    for name in one.names:
        length = 0
        for first, second in zip(reversed(path_parts(name)), reversed(path_parts(other.names[0])), strict=False):
            if first != second:
                break
            length += 1
        longest = max(longest, length)
    return longest


def _best(options: Sequence[tuple[int, Medium]], of: Medium, these: str, that: str) -> tuple[int, Medium]:
    longest = max(length for length, _ in options)
    best = [medium for length, medium in options if length == longest]
    if len(best) > 1:
        raise SourceError(
            f"{best[0].names[0]} and {best[1].names[0]}, {these}, fit the {that} {of.names[0]} equally well; give paths in gold that tell "
            "them apart, such as the folder before the name"
        )
    return longest, best[0]


def sizes_differ(gold: Medium, found: Medium) -> str | None:
    """What is wrong when a picture or video has another size than gold says; None when nothing is."""
    if gold.size is None or found.size is None or gold.size == found.size:
        return None
    (width, height), (other_width, other_height) = gold.size, found.size
    return f"{found.names[0]} is {other_width} x {other_height}, gold says {width} x {height} (width x height)"


def unmatched(found: Mapping[str, Medium], pairs: Mapping[str, Medium]) -> int:
    """How many of a dataset's are none of gold's."""
    return len(found.keys() - {medium.key for medium in pairs.values()})
