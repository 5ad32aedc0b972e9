"""Every id once: what is listed again under an id says the same, or it fails and says so."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator

from datagen.ids import asset_id_of, id_key
from datagen.records import Asset, Failure

ID_TAKEN = "asset_id_taken"
"""Code of a file whose id another file has."""
LISTED_TWICE = "asset_listed_twice"
"""Code of a file that was listed before with other prompts or other columns."""

logger = logging.getLogger(__name__)

LOGGED = 100
_OF_URI = (1 << 32) - 1
_OF_REST = (1 << 58) - 1


class Distinct:
    """The assets of a listing, each id once.

    An asset that is listed again exactly as before is left out and counted in `repeated`. One that differs fails under an id of its own,
    which is the same in every run. An id costs 16 bytes here and what it stood for 12, with what Python adds to them.
    """

    def __init__(self, source: Iterable[Asset]) -> None:
        self._source = source
        self.repeated = 0

    def __iter__(self) -> Iterator[Asset]:
        seen: dict[bytes, int] = {}
        for listed in self._source:
            asset, said = listed, _said(listed)
            known = seen.get(id_key(asset.asset_id))
            if known is not None and known != said:
                asset = _again(asset, ID_TAKEN if (known ^ said) & _OF_URI else LISTED_TWICE)
                known = seen.get(id_key(asset.asset_id))
            if known is None:
                seen[id_key(asset.asset_id)] = said
                yield asset
            else:
                self.repeated += 1
                if self.repeated <= LOGGED:
                    logger.warning("listed again, counted once: %s (%s)", asset.asset_id, asset.uri)


def _said(asset: Asset) -> int:
    """90 bits of what an asset is: 32 of its URI, and of all else that its row says."""
    rest = hash((asset.prompts_hash, asset.license, repr(asset.extra) if asset.extra else ""))
    return (rest & _OF_REST) << 32 | (hash(asset.uri) & _OF_URI)


def _again(asset: Asset, code: str) -> Asset:
    says = json.dumps([asset.prompts_hash, asset.license, asset.extra], sort_keys=True, ensure_ascii=True, default=str)
    own_id = asset_id_of(f"{asset.uri}#asset_id={asset.asset_id}#{hashlib.sha256(says.encode()).hexdigest()}")
    if code == ID_TAKEN:
        why = f"the asset_id {asset.asset_id!r} is that of another file, which was listed before; give every file an id of its own"
    else:
        why = (
            f"it was listed before, as {asset.asset_id!r}, with other prompts or other columns; put all prompts of a file together, or "
            "give what is meant as another asset an asset_id of its own"
        )
    return Asset(
        own_id, asset.uri, asset.media_type, license=asset.license, extra=asset.extra, failure=Failure(code, f"{asset.uri}: {why}")
    )
