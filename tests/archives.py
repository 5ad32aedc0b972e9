"""Tar archives and tables of small pictures, good and bad, and what a run makes of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from datagen.check import check_dataset
from datagen.job import Job, S3Options, parse_job
from datagen.run import run_job
from datagen.run.summary import RunSummary
from datagen.write import open_store

FAKE = {"engine": "fake"}


def picture(shade: int = 90, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """A small picture; every shade is another one."""
    data = io.BytesIO()
    Image.new("RGB", size, (shade % 256, 90, 200)).save(data, kind)
    return data.getvalue()


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    """A header to be changed: type, size, linkname ..."""
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar_bytes(*entries: tuple[str | tarfile.TarInfo, Any], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of (name or header, content): bytes as they are, anything else as JSON, None for none."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as archive:
        for name, content in entries:
            body = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
            info = member(name, mtime=1.5, size=len(body)) if isinstance(name, str) else name
            archive.addfile(info, io.BytesIO(body) if info.isreg() else None)
    return data.getvalue()


def tar_file(path: Path, *entries: tuple[str | tarfile.TarInfo, Any], **more: Any) -> Path:
    """The same in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(*entries, **more))
    return path


def job_of(place: object, output: object, s3: S3Options | None = None, **source: Any) -> Job:
    run = {"executor": "inprocess", **source.pop("run", {})}
    options = {"s3": s3.model_dump()} if s3 else {}
    data = {"perceive": FAKE, "describe": FAKE, "run": run, "output": str(output), "source": {"input": str(place), **source}}
    return parse_job(data | options)


def run(place: object, output: object, s3: S3Options | None = None, **source: Any) -> tuple[RunSummary, dict[str, dict[str, Any]]]:
    """Run a job with fake engines in this process; the summary, and the rows of `assets` by URI behind the last `/` of the input's folder.

    Fails when the dataset is not sound, or when the same command has anything left to do.
    """
    summary = run_job(job_of(place, output, s3, **source))
    again = run_job(job_of(place, output, s3, **source))
    assert again.todo == 0, "a rerun does nothing"
    report = check_dataset(str(output))
    assert report.ok, report.violations
    store, rows = open_store(str(output)), {}
    for path, _ in store.list("assets"):
        with store.open_input(path) as source_file:
            for row in pq.ParquetFile(source_file).read().to_pylist():
                name = row["uri"].partition("/in/")[2] or row["uri"]
                assert name not in rows, f"{name} is there twice"
                rows[name] = row | {"extra": json.loads(row["extra"] or "{}")}
    return summary, rows


def codes(rows: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    """URI -> error code, None where it is good."""
    return {name: row["error_code"] for name, row in rows.items()}
