"""Content hashes: each part carries the SHA-256 of its own file, and a commit mark that of the part it commits.

The hash stands in the file's key-value metadata, 64 hex digits; the file is hashed with hyphens in their place. So a part proves itself,
also when the run that wrote it was killed before it could say so anywhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.job import WriteOptions

SEAL = b"datagen.sha256"
COMMITS = b"datagen.commits"
_BLANK = b"-" * 64
_CHUNK_BYTES = 4 << 20
_END_BYTES = 8  # of the footer's length, and the magic number


def parquet_bytes(table: pa.Table, options: WriteOptions, commits: Mapping[str, str] | None = None) -> pa.Buffer:
    """The table as one whole Parquet file: Zstandard, column statistics, a checksum per page, its own hash. The same table gives the same
    bytes.

    commits: table -> hash of the part of the same name that this one, a commit mark, commits.
    """
    sink = pa.BufferOutputStream()
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key not in (SEAL, COMMITS)}
    table = table.replace_schema_metadata(kept)
    how = {"compression": "zstd", "compression_level": options.compression_level, "write_statistics": True, "write_page_checksum": True}
    with pq.ParquetWriter(sink, table.schema, **how) as writer:
        writer.write_table(table, row_group_size=options.row_group_rows)
        if commits is not None:
            writer.add_key_value_metadata({COMMITS.decode(): json.dumps(dict(commits), sort_keys=True)})
        writer.add_key_value_metadata({SEAL.decode(): _BLANK.decode()})
    data = bytearray(sink.getvalue())
    place = _place(bytes(data[-_footer_bytes(data) :]), _BLANK) + len(data) - _footer_bytes(data)
    data[place : place + len(_BLANK)] = hashlib.sha256(data).hexdigest().encode()
    return pa.py_buffer(bytes(data))


def seal_of(data: Any) -> str:
    """The hash that a file of parquet_bytes carries. data: the file's bytes, or a path or open file for pyarrow."""
    return str(seal_in(pq.read_metadata(pa.BufferReader(data) if isinstance(data, (bytes, pa.Buffer)) else data).metadata))


def seal_in(metadata: Mapping[bytes, bytes] | None) -> str | None:
    """The hash in a file's key-value metadata; None in one that was written without."""
    found = (metadata or {}).get(SEAL)
    return None if found is None else found.decode("ascii", "replace")


def commits_in(metadata: Mapping[bytes, bytes] | None) -> dict[str, str] | None:
    """What a commit mark says of the parts that it commits: table -> hash. None where it says nothing that can be read."""
    try:
        found = json.loads((metadata or {})[COMMITS])
    except (KeyError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def computed_seal(source: pa.NativeFile, seal: str) -> str | None:
    """The hash that a file should carry, read in pieces; None when `seal` does not stand in its footer."""
    size = source.size()
    source.seek(max(0, size - _END_BYTES))
    footer_bytes = min(_footer_bytes(source.read()), size)
    source.seek(size - footer_bytes)
    place = _place(source.read(footer_bytes), seal.encode())
    if place < 0 or len(seal) != len(_BLANK):
        return None
    place += size - footer_bytes
    digest = hashlib.sha256()
    source.seek(0)
    for start in range(0, size, _CHUNK_BYTES):
        chunk = bytearray(source.read(min(_CHUNK_BYTES, size - start)))
        first, last = max(place - start, 0), min(place + len(_BLANK) - start, len(chunk))
        if first < last:
            chunk[first:last] = b"-" * (last - first)
        digest.update(chunk)
    return digest.hexdigest()


def _place(footer: bytes, text: bytes) -> int:
    """Where the hash stands in a footer: it is the last entry of the metadata, behind all texts that come from rows."""
    return footer.rfind(text)


def _footer_bytes(data: Any) -> int:
    return int.from_bytes(data[-_END_BYTES : -_END_BYTES + 4], "little") + _END_BYTES
