"""A count of a dataset that shares no code with datagen: its Parquet files against what every asset should have become."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from mixed_corpus import Fate
from pyarrow import fs

TABLES = ("assets", "regions", "clips", "tracks")
ALLOWED = re.compile(
    r"(assets|regions|clips|tracks)/part-[0-9a-f]+\.parquet|README\.md|_datagen/((dataset|heartbeat|lease)\.json|lock|(runs|logs)/[^/.][^/]*)"
)


@dataclass
class Count:
    """lost, doubled: rows of any table. wrong: other broken promises, in words. statuses: assets by status."""

    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    def compare(self, what: str, found: Counter[Any], expected: Mapping[Any, int]) -> None:
        """Count rows by key against how many there should be."""
        for key in found.keys() | expected.keys():
            more = found[key] - expected.get(key, 0)
            if more:
                self.lost += max(0, -more)
                self.doubled += max(0, more)
                self.wrong.append(f"{what} of {key}: {found[key]} instead of {expected.get(key, 0)}")


def count_dataset(filesystem: fs.FileSystem, root: str, fates: Mapping[str, Fate]) -> Count:
    """Compare a finished dataset with the fates of the assets listed. root: its folder in the filesystem."""
    count = Count()
    files = {info.path.removeprefix(f"{root}/"): info for info in filesystem.get_file_info(fs.FileSelector(root, recursive=True))}
    debris = [path for path, info in files.items() if info.type == fs.FileType.File and not ALLOWED.fullmatch(path)]
    count.wrong += [f"debris: {path}" for path in debris]
    rows = {table: _rows(filesystem, root, [path for path in files if path.startswith(f"{table}/part-")]) for table in TABLES}

    count.statuses.update(row["status"] for row in rows["assets"])
    count.compare("assets", Counter(row["asset_id"] for row in rows["assets"]), dict.fromkeys(fates, 1))
    for row in rows["assets"]:
        fate, found = fates[row["asset_id"]], (row["status"], row["error_code"])
        if row["status"] != fate.status or (row["error_code"] or "") not in (fate.codes or {""}):
            count.wrong.append(
                f"{row['asset_id']} ({row['uri']}) is {found}, not {fate.status} {'/'.join(fate.codes)}: {row['error_message']}"
            )
    for table, number in (("regions", "regions"), ("clips", "clips")):
        expected = {asset_id: getattr(fate, number) for asset_id, fate in fates.items() if getattr(fate, number)}
        count.compare(table, Counter(row["asset_id"] for row in rows[table]), expected)
    expected = {(asset_id, clip): fate.tracks for asset_id, fate in fates.items() for clip in range(fate.clips) if fate.tracks}
    count.compare("tracks", Counter((row["asset_id"], row["clip_index"]) for row in rows["tracks"]), expected)
    for table, key in (("regions", ("region_id",)), ("clips", ("asset_id", "clip_index")), ("tracks", ("track_id", "clip_index"))):
        keys = Counter(tuple(row[name] for name in key) for row in rows[table])
        twice = {key: times for key, times in keys.items() if times > 1}
        count.doubled += sum(twice.values()) - len(twice)
        count.wrong += [f"{table}: {key} is there {times} times" for key, times in twice.items()]
    return count


def _rows(filesystem: fs.FileSystem, root: str, paths: list[str]) -> list[dict[str, Any]]:
    wanted = ("asset_id", "uri", "status", "error_code", "error_message", "region_id", "clip_index", "track_id")
    tables = []
    for path in paths:
        with filesystem.open_input_file(f"{root}/{path}") as source:
            table = pq.ParquetFile(source).read()
        tables.append(table.select([name for name in wanted if name in table.schema.names]))
    return pa.concat_tables(tables).to_pylist() if tables else []
