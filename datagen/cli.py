"""The command line. Every command is a thin door to a function that can be called from Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from datagen import __version__
from datagen.arguments import AsJson, Input, JobFile, Model, Output, Set, read_job, show
from datagen.cluster.commands import add_commands
from datagen.errors import DatagenError, JobError
from datagen.interrupts import INTERRUPTED, STOPPED, sigterm_is_ctrl_c
from datagen.job import ModelOptions
from datagen.machine import settle, settle_streams, unwritten
from datagen.printable import printable
from datagen.redaction import redact
from datagen.terminal import Screen

app = typer.Typer(
    name="datagen",
    help="Images in, a region-caption corpus out: masks, labels, definitions, captions and descriptions as Parquet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
model_app = typer.Typer(no_args_is_help=True, help="Look at model weights, or fetch and convert them once.")
app.add_typer(model_app, name="model")
add_commands(app)

GpuHourPrice = Annotated[float | None, typer.Option(help="price of one GPU for one hour")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="dataset folder")]


@app.command()
def run(
    job_file: JobFile,
    input: Input = None,
    output: Output = None,
    model: Model = None,
    set_: Set = None,
    limit: Annotated[int | None, typer.Option(min=1, help="do at most this many assets now; the rest is left for later runs")] = None,
    deadline: Annotated[str | None, typer.Option(help="begin nothing after: a time, or a duration such as 2h or 1h30m")] = None,
    max_gpu_hours: Annotated[float | None, typer.Option(help="begin nothing after so many GPU-hours of the machine or cluster")] = None,
    max_cost: Annotated[float | None, typer.Option(help="the same by their price")] = None,
    gpu_hour_price: GpuHourPrice = None,
    grace: Annotated[float | None, typer.Option(metavar="SECONDS", help="for finishing what is begun, after SIGTERM or a budget")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job, or go on with it: what the output already holds is left alone.

    Example: `datagen run pipelines/image-regions.yaml --input photos/ --output corpus/`

    Exit codes: 0 done, or nothing to do; 1 more assets failed than the job allows; 2 wrong usage, job, weights, output or credentials;
    3 the machine or a bucket broke (rerun to resume); 4 another run is writing there, nothing was done; 5 the budget is used up
    (rerun to go on); 130 interrupted (rerun to resume).
    """
    from datagen.run import run_job
    from datagen.run.console import print_run, run_screen

    budget = {"deadline": deadline, "max_gpu_hours": max_gpu_hours, "max_cost": max_cost, "gpu_hour_price": gpu_hour_price}
    further = {"run.grace_s": grace} | {f"run.budget.{key}": value for key, value in budget.items()}
    job = read_job(job_file, set_, input, output, model, further)
    try:
        summary = run_job(job, limit=limit, screen=run_screen)
    except KeyboardInterrupt:  # before the first asset, or a second time
        _say_interrupted()
    show(summary.to_dict(), as_json, lambda console: print_run(console, summary))
    if summary.interrupted:
        _say_interrupted()
    if summary.stopped:
        _say_ended("stopped", f"{summary.stopped}; ", STOPPED)
    finished = sum(summary.statuses.values())
    failed, allowed = summary.statuses["failed"], job.run.max_failed_fraction
    if finished and failed / finished > allowed:
        why = f"{failed} of the {finished} assets of this run failed, a larger share than run.max_failed_fraction ({allowed:g}) allows"
        Screen(stderr=True, highlight=False).print(f"[red]failed:[/red] {why}; the column error_code says why", soft_wrap=True)
        raise typer.Exit(1)


@app.command()
def plan(
    job_file: JobFile,
    input: Input = None,
    output: Output = None,
    model: Model = None,
    set_: Set = None,
    cluster: Annotated[Path | None, typer.Option(help="where it would run: a profile, such as cluster/kuberay.yaml")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="run this many assets here, and estimate the whole from them")] = None,
    gpu_hour_price: GpuHourPrice = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do: listed, done, left, and the workers it would start. Nothing is run or written, except for `--sample`.

    With `--cluster`, a job whose steps fit on no node is refused with exit code 2.

    With `--sample` assets chosen at random are done into a place that is removed again, and regions, time, GPU-hours and cost of the
    whole are estimated from them. The estimate is kept in the output, so that the run's report can say how far off it was.

    Example: `datagen plan pipelines/image-regions.yaml --input photos/ --output corpus/ --sample 200 --gpu-hour-price 2.50`
    """
    from datagen.cluster.profile import load_profile
    from datagen.run import plan_job
    from datagen.run.console import print_estimate, print_plan, run_screen
    from datagen.run.sampling import estimate_job

    job = read_job(job_file, set_, input, output, model, {"run.budget.gpu_hour_price": gpu_hour_price})
    if sample and cluster:
        raise JobError("--sample does its assets on this machine, which says nothing about another: give --sample or --cluster, not both")
    try:
        planned = estimate_job(job, sample, run_screen) if sample else plan_job(job, cluster=load_profile(cluster) if cluster else None)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    show(planned, as_json, lambda console: print_plan(console, planned))
    if planned.get("estimate") and not as_json:
        print_estimate(Screen(highlight=False), planned["estimate"])


@app.command()
def status(dataset: Dataset, as_json: AsJson = False) -> None:
    """Say how far the run is that writes to a dataset, or how the last one ended. Reads one small file, and may be called at any time.

    Exit codes: 0 it is alive, or has ended; 3 it died, or has not been heard of for several heartbeats (run it again to resume).

    Example: `datagen status corpus/`
    """
    from datagen.run.console import print_status
    from datagen.run.heartbeat import run_status

    found = run_status(dataset)
    show(found.to_dict(), as_json, lambda console: print_status(console, found))
    if not found.ok:
        raise typer.Exit(3)


@app.command()
def check(dataset: Dataset, as_json: AsJson = False) -> None:
    """Prove a dataset's invariants; exit 1 and name every violation otherwise.

    A video that a run was stopped in is counted as unfinished and is no violation: the next run goes on with it.

    Example: `datagen check corpus/`
    """
    from datagen.check import check_dataset
    from datagen.run.console import print_check

    report = check_dataset(dataset)
    show(report.to_dict(), as_json, lambda console: print_check(console, report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def stats(dataset: Dataset, as_json: AsJson = False) -> None:
    """Count a dataset: assets by status, regions, labels, text lengths, failures by code, tokens; clips, tracks and events of videos.

    Example: `datagen stats corpus/`
    """
    from datagen.stats import dataset_stats, render_stats

    numbers = dataset_stats(dataset)
    show(numbers, as_json, lambda console: console.print(render_stats(numbers)))


@app.command("eval")
def evaluate(
    dataset: Dataset,
    gold: Annotated[str, typer.Option(help="what is true: a dataset folder, or a COCO or LVIS .json")],
    similarity: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="also compare sentence embeddings, such as sentence-transformers/all-MiniLM-L6-v2"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a dataset against gold: mask IoU and recall, labels and texts, clips, per category.

    Example: `datagen eval corpus/ --gold annotations/lvis_v1_val.json`
    """
    from datagen.evaluate import evaluate as measure
    from datagen.evaluate.render import render_report

    report = measure(dataset, gold, similarity)
    show(report, as_json, lambda console: console.print(render_report(report)))


@app.command()
def scenes(
    output: Annotated[str, typer.Argument(metavar="FOLDER", help="dataset: a folder, or s3://...; an existing one gets what it lacks")],
    images: Annotated[int, typer.Option(min=0, help="pictures")] = 100,
    clips: Annotated[int, typer.Option(min=0, help="short videos")] = 0,
    seed: Annotated[int, typer.Option(help="other seeds are other scenes")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw scenes of shapes with exact truth, as a dataset with its media and manifests that ask for them.

    Example: `datagen scenes corpus/scenes --images 1000 --clips 100 --seed 7`
    """
    from dataclasses import asdict

    from datagen.scenes import write_scenes

    written = write_scenes(output, num_images=images, num_clips=clips, seed=seed)
    found = f"{written.num_images} pictures with {written.num_regions} regions, {written.num_clips} clips with {written.num_tracks} tracks"
    show(asdict(written), as_json, lambda console: console.print(f"{written.output}: {found}"))


@app.command()
def distill(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="the student and its training, such as examples/tiny-shapes/distill.yaml")
    ],
    data: Annotated[str, typer.Option(metavar="DATASET", help="dataset to learn from; relative URIs start from its folder")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="checkpoint folder; its work lies in FOLDER.work")],
) -> None:
    """Train a student from a dataset, or go on with a training that was interrupted; one line of metrics per epoch.

    Example: `datagen distill examples/tiny-shapes/distill.yaml --data corpus/scenes --output student`
    """
    from datagen.distill.config import load_config
    from datagen.distill.train import distill as train

    folder = train(load_config(config), data, output, lambda metrics: typer.echo(json.dumps(metrics)))
    typer.echo(f"student: {printable(str(folder))}. Use it with: datagen run JOB.yaml --model {folder}", err=True)


@model_app.command("show")
def model_show(
    checkpoint: Annotated[str, typer.Argument(metavar="MODEL", help="`tiny-shapes`, `tiny`, a checkpoint folder, or a hub id")],
    sam2: Annotated[str | None, typer.Option(help="SAM 2.1 weights: a file, a folder or a hub id")] = None,
    sam2_config: Annotated[str | None, typer.Option(help="config of those weights, where it does not follow from them")] = None,
    as_json: AsJson = False,
) -> None:
    """List what a checkpoint holds, and what is missing or unexpected.

    Example: `datagen model show tiny`
    """
    from datagen.pam.inspection import inspect_checkpoint
    from datagen.run.console import print_checkpoint

    report = inspect_checkpoint(ModelOptions(checkpoint=checkpoint, sam2=sam2, sam2_config=sam2_config))
    show(report.to_dict(), as_json, lambda console: print_checkpoint(console, report))
    if not report.ok:
        raise typer.Exit(1)


@model_app.command("prepare")
def model_prepare(
    checkpoint: Annotated[str, typer.Argument(metavar="MODEL", help="`tiny-shapes`, `tiny`, a checkpoint folder, or a hub id")],
    sam2: Annotated[str | None, typer.Option(help="SAM 2.1 weights: a file, a folder or a hub id")] = None,
) -> None:
    """Fetch a checkpoint where needed and convert its language model once, so that runs start at once and work offline.

    Example: `datagen model prepare Perceive-Anything/PAM-1.5B`
    """
    from datagen.pam.checkpoint import Checkpoint, resolve_model
    from datagen.pam.llm import prepare_llm

    files = resolve_model(ModelOptions(checkpoint=checkpoint, sam2=sam2))
    Screen().print(f"checkpoint: {files.checkpoint}\nlanguage model: {prepare_llm(Checkpoint(files.checkpoint))}", highlight=False)


def _say_interrupted() -> NoReturn:
    _say_ended("interrupted", "", INTERRUPTED)


def _say_ended(how: str, why: str, exit_code: int) -> NoReturn:
    Screen(stderr=True).print(f"[yellow]{how}:[/yellow] {why}what is committed stays; run the same command to go on", soft_wrap=True)
    raise typer.Exit(exit_code)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"datagen {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False) -> None:
    pass


def main() -> None:
    """Entry point of the `datagen` command; turns errors into one message and an exit code."""
    settle_streams()
    sigterm_is_ctrl_c()
    try:
        settle()
        app()
    except DatagenError as error:
        Screen(stderr=True, highlight=False).print(f"[red]error:[/red] {escape(printable(redact(error.message), lines=True))}")
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code or not (problem := unwritten()):
            raise
        message = f"not all of what was to be printed could be written: {problem}. The work itself is done."
        Screen(stderr=True, highlight=False).print(f"[red]error:[/red] {escape(message)}")
        sys.exit(JobError.exit_code)


if __name__ == "__main__":
    main()
