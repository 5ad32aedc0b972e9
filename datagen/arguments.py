"""What several commands take, and how they answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from datagen.job import Job, load_job
from datagen.terminal import Screen

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="job file, such as pipelines/image-regions.yaml")]
Input = Annotated[str | None, typer.Option("--input", "-i", help="folder, manifest (.parquet .jsonl .csv), COCO .json, tars or a dataset")]
Output = Annotated[str | None, typer.Option("--output", "-o", help="dataset folder; an existing one is continued")]
Model = Annotated[str | None, typer.Option(help="`tiny-shapes` or `tiny` (embedded), a checkpoint folder, or a hub id")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", help="override one option: key.path=value (repeatable)")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable output on stdout")]


def read_job(
    path: Path,
    overrides: list[str] | None,
    input: str | None,
    output: str | None,
    model: str | None,
    more: Mapping[str, Any] | None = None,
) -> Job:
    """The job of a command line; `more` are values by path, such as `run.seed`, None where not given. Raises JobError."""
    values = {"source.input": input, "output": output, "model.checkpoint": model, **(more or {})}
    return load_job(path, overrides or (), {key: value for key, value in values.items() if value is not None})


def show(data: Any, as_json: bool, render: Callable[[Console], None]) -> None:
    """A command's answer: as JSON, or as `render` prints it."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, default=str))
    else:
        render(Screen(highlight=False))
