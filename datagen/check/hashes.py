"""Content hashes: what commit marks and the lists of the runs say of every part."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from datagen.errors import WriteError
from datagen.write.parts import COMMITTED_BY
from datagen.write.parts_list import RUNS, Marks, listed_marks, read_lists
from datagen.write.store import Store


class Hashes:
    """What is known of the hashes of a dataset's parts. In memory: 54 bytes per mark, and what marks say of parts that are read later.

    unlisted: commit marks with a hash that no run has listed: of a run that was killed, or is still on.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._commits: dict[tuple[str, str], dict[str, str]] = {}
        self._lock = threading.Lock()
        self.unlisted = 0

    @classmethod
    def of(cls, store: Store) -> Hashes:
        """Those of a dataset. Raises WriteError for a list that cannot be read."""
        return cls(listed_marks(read_lists(store)))

    def problem(self, table: str, part: str, seal: str | None, commits: dict[str, str] | None) -> str | None:
        """Why a part is not the one that was committed. seal: the hash it carries. commits: what it says of others.

        A mark is asked about before the part that it commits.
        """
        if table not in COMMITTED_BY:
            return self._mark_problem(table, part, seal, commits)
        with self._lock:
            said = self._commits.pop((COMMITTED_BY[table], part), None)
        if said is None or said.get(table) == seal:
            return None
        return f"its commit mark has the hash {said.get(table)}, this is {seal}: it was changed after it was committed"

    def _mark_problem(self, table: str, part: str, seal: str | None, commits: dict[str, str] | None) -> str | None:
        with self._lock:
            if commits:
                self._commits[table, part] = commits
            agrees = self._marks.agrees(table, part, seal)
            self.unlisted += agrees is None and seal is not None
        return "it is not the one that its run has listed: it was changed after it was committed" if agrees is False else None

    def lost(self, parts: Mapping[str, Collection[str]]) -> Iterable[tuple[str, str]]:
        """(table, part) of the marks that the runs have listed and that are not there. parts: those that are, by table."""
        return ((table, part) for table, part in self._marks.unseen() if part not in parts[table])


def list_problem(store: Store, named: Any) -> str | None:
    """What is wrong with the lists of parts that a run's record names; None when they are as they were written."""
    if not isinstance(named, list):
        return "`parts` is no list"
    for item in named:
        try:
            path, expected = str(item["path"]), item["sha256"]
            if not path.startswith(f"{RUNS}/"):
                return f"its list of parts {path!r:.80} lies elsewhere"
            if hashlib.sha256(store.read(path)).hexdigest() != expected:
                return f"its list of parts {path} was changed"
        except FileNotFoundError:
            return f"its list of parts {path} is missing"
        except (TypeError, KeyError, WriteError, OSError) as error:
            return f"its list of parts {json.dumps(item)[:80]} cannot be read: {error!r}"
    return None
