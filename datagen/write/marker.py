"""The marker of a dataset, `_datagen/dataset.json`: which format and schemas it has, from its first run on."""

from __future__ import annotations

import json
from typing import Any

from datagen import __version__
from datagen.errors import WriteError
from datagen.write.schema import READABLE_VERSIONS, SCHEMA_VERSION, TABLES
from datagen.write.store import META, Store

MARKER = f"{META}/dataset.json"
FORMAT_VERSION = 1
TOKEN_LOGPROBS = "token_logprobs"


def check_marker(store: Store) -> dict[str, Any]:
    """The content of `_datagen/dataset.json`. Raises WriteError when it is not of this format and these schema versions."""
    try:
        marker = json.loads(store.read(MARKER))
        found = marker["format"], marker["schemas"]
    except (ValueError, KeyError, TypeError) as error:
        raise WriteError(f"{store.uri}/{MARKER} is damaged ({error!r}); restore it, or delete it and run the job again") from error
    if found not in [(FORMAT_VERSION, dict.fromkeys(TABLES, version)) for version in READABLE_VERSIONS]:
        raise WriteError(
            f"{store.uri} has format {found[0]} with schemas {found[1]}; this datagen {__version__} reads and writes format "
            f"{FORMAT_VERSION} with schemas {' or '.join(f'v{version}' for version in READABLE_VERSIONS)} of all tables. Use the version "
            f"that made it ({marker.get('created_by')}), or a new folder."
        )
    return dict(marker)


def schema_version(store: Store) -> int:
    """The version of a dataset's tables: what its marker says; the newest where nothing is yet. Raises WriteError as check_marker does."""
    try:
        return int(check_marker(store)["schemas"]["assets"])
    except FileNotFoundError:
        return SCHEMA_VERSION
