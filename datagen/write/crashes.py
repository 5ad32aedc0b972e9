"""The crash file: how often each asset or clip has killed a worker of a step, over all runs of a job until one finishes."""

from __future__ import annotations

import json
from collections.abc import Mapping

from datagen.errors import WriteError
from datagen.write.store import META, Store

CRASHES = f"{META}/crashes.json"


def read_crashes(store: Store) -> dict[str, int]:
    """`step/work id` -> crashes, see records.work_id_of; empty where there is no file. Raises WriteError when it is damaged."""
    try:
        found = json.loads(store.read(CRASHES))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise _damaged(store, str(error)) from error
    if not isinstance(found, dict) or not all(type(count) is int and count > 0 and "/" in key for key, count in found.items()):
        raise _damaged(store, "it is no object of counts by step and asset")
    return found


def write_crashes(store: Store, crashes: Mapping[str, int]) -> None:
    """Replace the file. Raises WriteError."""
    store.write(CRASHES, json.dumps(crashes, indent=0, sort_keys=True).encode())


def _damaged(store: Store, why: str) -> WriteError:
    return WriteError(f"{store.uri}/{CRASHES} is damaged ({why}). Delete it: then crashes are counted from none again.")
