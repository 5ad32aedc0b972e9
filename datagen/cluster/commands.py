"""The commands about clusters: `datagen cluster`, `submit`, `job` and `schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datagen.arguments import Input, Model, Output, Set, read_job
from datagen.cluster.profile import load_profile

cluster_app = typer.Typer(no_args_is_help=True, help="Describe a cluster to the system that starts it.")

ProfileFile = Annotated[Path, typer.Argument(metavar="PROFILE.yaml", help="cluster profile, such as cluster/kuberay.yaml")]


def add_commands(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    app.add_typer(cluster_app, name="cluster")


@cluster_app.command("render")
def cluster_render(
    profile: ProfileFile,
    job_file: Annotated[Path | None, typer.Argument(metavar="[JOB.yaml]", help="the job to start with it")] = None,
    input: Input = None,
    output: Output = None,
    model: Model = None,
    set_: Set = None,
    cron: Annotated[str | None, typer.Option(help="KubeRay: start the job at these times, such as '0 2 * * *'")] = None,
    time_zone: Annotated[str | None, typer.Option(help="of --cron, such as Europe/Berlin; left out: the operator's")] = None,
) -> None:
    """Print what starts a cluster, or a job on a cluster of its own: KubeRay manifests, a Slurm script, a file for `ray up`.

    Example: `datagen cluster render cluster/kuberay.yaml pipelines/image-regions.yaml -i s3://... -o s3://... | kubectl apply -f -`
    """
    from datagen.cluster.render import render

    job = read_job(job_file, set_, input, output, model) if job_file else None
    typer.echo(render(load_profile(profile), job, cron=cron, time_zone=time_zone), nl=False)
