"""Rows of one file, wherever they stand in a manifest, become one asset with the prompts of all.

A manifest is read twice: first its URIs alone, eight bytes each in memory, to know which files have several rows; then these rows are
kept until the last of a file has come. What is kept beyond a few megabytes lies in a temporary file.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from datagen.records import Asset, Failure
from datagen.sources.prompts import MAX_PROMPTS, Given, given_prompts
from datagen.sources.rows import RowReader, explicit_id, extra_of, license_of
from datagen.sources.values import plain
from datagen.tables import BadRow, Row

Numbered = tuple[int, Row]

_SPOOL_BYTES = 64 << 20
_ROWS_NAMED = 5


def key_of(row: Row) -> int | None:
    """64 bits of what rows of one asset share: the URI as it is written, and the asset id where one is given. None: it is alone."""
    same = _same(row)
    return None if same is None else int.from_bytes(blake2b("\0".join(same).encode("utf-8", "surrogatepass"), digest_size=8).digest())


def repeated(keys: Iterable[int | None]) -> dict[int, int]:
    """The keys that come more than once, and how often."""
    import numpy as np

    found, counts = np.unique(np.frombuffer(array("Q", (key for key in keys if key is not None)), np.uint64), return_counts=True)
    several = counts > 1
    return dict(zip(found[several].tolist(), counts[several].tolist(), strict=True))


def grouped(rows: Iterable[Numbered], counts: Mapping[int, int]) -> Iterator[list[Numbered]]:
    """The rows, those of one asset together, where the last of them stands. counts: what `repeated` says of the keys of all rows."""
    if not counts:
        yield from ([row] for row in rows)
        return
    waiting: dict[int, array[int]] = {}
    with SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        for number, row in rows:
            key = key_of(row)
            if key is None or key not in counts:
                yield [(number, row)]
                continue
            places = waiting.setdefault(key, array("q"))
            spool.seek(0, 2)
            places.append(spool.tell())
            pickle.dump((number, row), spool)
            if len(places) == counts[key]:
                yield from _split(spool, waiting.pop(key))
                if not waiting:
                    spool.seek(0)
                    spool.truncate()
        for places in waiting.values():  # the file is another one than at first
            yield from _split(spool, places)


def _split(spool: IO[bytes], places: array[int]) -> Iterator[list[Numbered]]:
    """The rows at some places of the spool, apart where only their keys agree. Of more than can be one asset's prompts the rest is left."""
    found: dict[Any, list[Numbered]] = {}
    for place in places:
        spool.seek(place)
        number, row = pickle.load(spool)  # noqa: S301 - written by this process, into a file without a name
        rows = found.setdefault(_same(row), [])
        if len(rows) <= MAX_PROMPTS:
            rows.append((number, row))
    yield from found.values()


def assets_of(reader: RowReader, rows: list[Numbered]) -> list[Asset]:
    """The asset of rows of one file, once more for every row that says the same as another, and a failed one for each that contradicts."""
    distinct = _distinct(rows) if len(rows) > 1 else rows
    number, first = distinct[0]
    if len(distinct) == 1 or isinstance(first, BadRow):
        return [reader.asset(first, number)] * len(rows)
    numbers = ", ".join(str(number) for number, _ in distinct[:_ROWS_NAMED])
    where = f"rows {numbers}{', ...' if len(distinct) > _ROWS_NAMED else ''} of {reader.manifest}"
    asset = reader.asset({name: first[name] for name in ("uri", "asset_id") if name in first}, number)
    parsed = [(number, row, _given(row, asset.media_type, reader)) for number, row in distinct if not isinstance(row, BadRow)]
    asking = [item for item in parsed if item[2].num]
    failed = [_contradiction(reader, number, asking[0][0]) for number, _, given in parsed if asking and not given.num]
    kept = asking or parsed
    _put_together(asset, kept, reader)
    if asset.failure is None:
        try:
            together = Given()
            for _, _, given in kept:
                together.add(given)
            together.put_into(asset)
        except ValueError as error:
            asset.failure = Failure(getattr(error, "code", "manifest_bad_prompts"), f"{where}: {plain(str(error))}")
    return [asset] * (1 + len(rows) - len(distinct)) + failed


def _put_together(asset: Asset, parsed: list[tuple[int, dict[str, Any], Given]], reader: RowReader) -> None:
    """Licence and extras: what all rows say alike as in a row alone, and where they differ what each says, in `manifest_rows`."""
    extras = [extra_of(row, reader.columns, given) for _, row, given in parsed]
    licenses = [license_of(row) for _, row, _ in parsed]
    asset.license = "; ".join(dict.fromkeys(one for one in licenses if one is not None)) or None
    if len(set(licenses)) > 1:
        extras = [extra | {"license": one} for extra, one in zip(extras, licenses, strict=True)]
    names = dict.fromkeys(name for extra in extras for name in extra)
    alike = {name for name in names if all(name in extra and extra[name] == extras[0].get(name) for extra in extras)}
    asset.extra = {name: extras[0][name] for name in names if name in alike}
    if len(alike) < len(names):
        asset.extra["manifest_rows"] = [
            {"row": number, "num_prompts": given.num, **{name: value for name, value in extra.items() if name not in alike}}
            for (number, _, given), extra in zip(parsed, extras, strict=True)
        ]


def _given(row: dict[str, Any], media_type: str, reader: RowReader) -> Given:
    """What a row asks for; prompts that cannot be read at all count as one."""
    try:
        return given_prompts(row, media_type, reader.columns)
    except ValueError as error:
        bad = Given(problem=str(error), used=frozenset(reader.columns))
        bad.dropped["prompt_malformed"] = 1
        return bad


def _contradiction(reader: RowReader, number: int, other: int) -> Asset:
    message = f"row {number} of {reader.manifest} has no prompt, which asks for everything, and row {other} of the same file has one"
    return reader.unnamed(number, Failure("manifest_rows_conflict", f"{message}; drop one, or give them asset_ids of their own"))


def _distinct(rows: list[Numbered]) -> list[Numbered]:
    """The rows without those that say exactly what one before them says."""
    found: dict[bytes, Numbered] = {}
    for number, row in rows:
        values = row if isinstance(row, BadRow) else sorted((name, value) for name, value in row.items() if value is not None)
        said = repr(values).encode("utf-8", "surrogatepass")
        found.setdefault(blake2b(said, digest_size=16).digest(), (number, row))
    return list(found.values())


def _same(row: Row) -> tuple[str, str] | None:
    uri = None if isinstance(row, BadRow) else row.get("uri")
    if isinstance(row, BadRow) or not isinstance(uri, str) or not uri.strip():
        return None
    return uri, explicit_id(row) or ""
