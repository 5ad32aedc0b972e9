"""What is listed and not yet done, and what is no longer as it was when it was done: prompts, the way of counting changes, the place."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from datagen.ids import asset_id_of
from datagen.records import Asset
from datagen.run.distinct import Distinct
from datagen.run.summary import RunSummary
from datagen.write import DoneSet, Store
from datagen.write.done import NOT_SAID, prompts_code, read_parts
from datagen.write.parts import part_ids

LOOKED_UP_AT_ONCE = 256
_URIS_KEPT = 4096


def todo_of(
    source: Iterable[Asset], done: DoneSet, summary: RunSummary, limit: int | None, *, reprocess: bool
) -> Iterator[tuple[int, Asset]]:
    """(index, asset) of what is listed and not yet done. An asset listed twice counts once.

    A done asset whose prompts differ from those of its row is counted; with `reprocess` (source.reprocess_changed) it is done anew, as a
    changed file is, under an id that tells its prompts: its own, `@`, and their hash.
    """
    assets = Distinct(source)
    for asset, is_done in _looked_up(assets, done, summary, reprocess):
        summary.repeated = assets.repeated
        summary.listed += 1
        if is_done:
            summary.done_before += 1
            continue
        if limit is not None and summary.todo >= limit:
            break
        summary.todo += 1
        if len(summary.new_uris) < _URIS_KEPT:
            summary.new_uris.append(asset.uri)
        yield summary.todo - 1, asset
    summary.repeated = assets.repeated
    summary.all_listed = True


def _looked_up(source: Iterable[Asset], done: DoneSet, summary: RunSummary, reprocess: bool) -> Iterator[tuple[Asset, bool]]:
    """Each asset, and whether it is done. Some at a time: to look up one alone costs fifteen times as much, half a minute for a million."""
    assets = iter(source)
    while some := list(islice(assets, LOOKED_UP_AT_ONCE)):
        ids = [asset.asset_id for asset in some]
        is_done, asked = done.contains(ids), done.asked(ids)
        if reprocess:
            was_done = done.contains([asset_id_of(asset.uri) for asset in some])
            summary.redone += int((was_done & ~is_done).sum())
        for asset, known, code in zip(some, is_done.tolist(), asked.tolist(), strict=True):
            if not known or code in (NOT_SAID, prompts_code(asset.prompts_hash)):
                yield asset, known
                continue
            anew = f"{asset.asset_id}@{asset.prompts_hash or 'everything'}"
            if anew in done:
                yield asset, True
                continue
            summary.changed_prompts += 1
            if reprocess:
                asset.asset_id = anew
            yield asset, not reprocess


def what_changed(store: Store, summary: RunSummary, reprocess: bool) -> list[str]:
    """What a person should know of it, with the way to do it again."""
    said = []
    if summary.changed_prompts and not reprocess:
        said.append(
            f"the prompts of {summary.changed_prompts} assets differ from those that they were done with; their rows stay as they are. "
            "source.reprocess_changed: true does them anew, beside the old rows; or choose a new --output"
        )
    if summary.redone:
        said.append(
            f"{summary.redone} assets were done while source.reprocess_changed was off, when ids told no version of a file, so all of them "
            "are done again, beside the old rows. Leave the option as it was to do only what is new"
        )
    if summary.new_uris and not (summary.done_before or summary.changed_prompts or summary.redone):
        summary.other_ids, summary.same_names = _num_known(store, summary)
        if reprocess:  # then another id is what a changed file has
            summary.other_ids = 0
    count = len(summary.new_uris)
    if summary.other_ids:
        said.append(
            f"nothing of this input is done, but {summary.other_ids} of its first {count} files are in the table under other ids, so they "
            "are done again, beside the old rows: source.reprocess_changed was on for those, or a manifest gave another asset_id, or none. "
            "Leave that as it was to do only what is new"
        )
    if summary.same_names:
        said.append(
            f"nothing of this input is done, but {summary.same_names} of its first {count} files have the name of one that is in the table "
            "from another place. Ids are made from places, so moved files are done again, beside the old rows; a manifest that gives "
            "the old asset_id keeps them"
        )
    return said


def _num_known(store: Store, summary: RunSummary) -> tuple[int, int]:
    """How many of the new files are in the table from another run, and of the others how many have the name of one that is."""
    uris = set(summary.new_uris)
    names = Counter(map(posixpath.basename, summary.new_uris))
    found: set[str] = set()
    elsewhere: set[str] = set()
    for table in read_parts(store, "assets", part_ids(store, "assets"), ["uri", "run_id"]):
        rows = zip(table["uri"].to_pylist(), table["run_id"].to_pylist(), strict=True)
        earlier = {uri for uri, run_id in rows if run_id != summary.run_id}
        found |= earlier & uris
        elsewhere |= names.keys() & {posixpath.basename(uri) for uri in earlier - uris}
    known = Counter(map(posixpath.basename, found))
    return known.total(), sum(names[name] - known[name] for name in elsewhere)
