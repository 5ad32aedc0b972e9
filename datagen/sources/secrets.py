"""Secrets in what is listed: signed URLs and passwords never reach a table, a log or a report."""

from __future__ import annotations

from dataclasses import replace

from datagen.errors import SourceError
from datagen.ids import asset_id_of
from datagen.records import Asset, Failure
from datagen.redaction import redact, redact_urls, signed_parameter

_INSTEAD = "name the file without it, as s3://bucket/key or a path, and give credentials in the environment or a profile"


def without_secrets(asset: Asset) -> Asset:
    """The asset, with `***` in place of signatures, keys, tokens and passwords of all URLs that its row holds.

    A row whose own uri holds one fails with `refused_uri`, as what it names cannot be kept; with one in its asset_id, `manifest_bad_id`.
    """
    clean = redact_urls(asset.uri)
    if clean != asset.uri:
        if asset.asset_id == asset_id_of(asset.uri):  # a new signature is no new asset
            asset.asset_id = asset_id_of(clean)
        name = signed_parameter(asset.uri)
        found = f"a secret, `{name}`" if name else "a password"
        asset.failure = asset.failure or Failure("refused_uri", f"{clean} holds {found}; {_INSTEAD}")
        asset.uri = clean
    if redact_urls(asset.asset_id) != asset.asset_id:
        asset.asset_id = asset_id_of(asset.asset_id)
        asset.failure = asset.failure or Failure("manifest_bad_id", f"the asset_id of {clean} holds a secret; give it one without")
    if asset.failure is not None:
        asset.failure = replace(asset.failure, message=redact(asset.failure.message))
    if asset.license is not None:
        asset.license = redact_urls(asset.license)
    if asset.extra:
        asset.extra = {redact_urls(key): redact_urls(value) for key, value in asset.extra.items()}
    return asset


def refuse_secrets(place: str, what: str) -> None:
    """Raise SourceError for a place of the job whose URI holds a signature or a token, without repeating it."""
    name = signed_parameter(place)
    if name:
        raise SourceError(f"{what} holds a secret, `{name}`; {_INSTEAD}", code="unsupported_uri")
