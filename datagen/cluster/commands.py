"""The commands about clusters: `datagen cluster`, `submit`, `job` and `schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from datagen.arguments import AsJson, Input, JobFile, Model, Output, Set, read_job, show
from datagen.cluster.profile import LOCAL_JOB_SERVER, load_profile
from datagen.errors import JobError
from datagen.printable import printable, without_colour

if TYPE_CHECKING:
    from datagen.cluster.jobs import Jobs
    from datagen.cluster.schedule import Schedules

cluster_app = typer.Typer(no_args_is_help=True, help="Describe a cluster to the system that starts it.")
job_app = typer.Typer(no_args_is_help=True, help="Look after jobs that were submitted to a Ray cluster.")
schedule_app = typer.Typer(no_args_is_help=True, help="Start jobs at set times.")
aws_app = typer.Typer(no_args_is_help=True, help="EventBridge Scheduler schedules that start AWS Batch jobs.")
schedule_app.add_typer(aws_app, name="aws")

Cluster = Annotated[Path, typer.Option("--cluster", metavar="PROFILE.yaml", help="cluster profile, such as cluster/kuberay.yaml")]
Address = Annotated[
    str | None,
    typer.Option(
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"], help=f"Ray's job server; left out: the profile's, or {LOCAL_JOB_SERVER}"
    ),
]
AtCluster = Annotated[Path | None, typer.Option("--cluster", metavar="PROFILE.yaml", help="profile whose job server is asked")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="as `datagen submit` printed it")]
ScheduleName = Annotated[str, typer.Argument(metavar="NAME", help="name of the schedule")]
At = Annotated[str, typer.Option(help="when: 'cron(0 2 * * ? *)', 'rate(1 day)' or 'at(2027-01-31T02:00:00)'")]
TimeZone = Annotated[str | None, typer.Option(help="of the times, such as Europe/Berlin; left out: UTC, or the operator's")]
ProfileFile = Annotated[Path, typer.Argument(metavar="PROFILE.yaml", help="cluster profile, such as cluster/kuberay.yaml")]


def add_commands(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    app.add_typer(cluster_app, name="cluster")
    app.command()(submit)
    app.add_typer(job_app, name="job")
    app.add_typer(schedule_app, name="schedule")


@cluster_app.command("render")
def cluster_render(
    profile: ProfileFile,
    job_file: Annotated[Path | None, typer.Argument(metavar="[JOB.yaml]", help="the job to start with it")] = None,
    input: Input = None,
    output: Output = None,
    model: Model = None,
    set_: Set = None,
    cron: Annotated[str | None, typer.Option(help="KubeRay: start the job at these times, such as '0 2 * * *'")] = None,
    time_zone: TimeZone = None,
) -> None:
    """Print what starts a cluster, or a job on a cluster of its own: KubeRay manifests, a Slurm script, a file for `ray up`.

    Example: `datagen cluster render cluster/kuberay.yaml pipelines/image-regions.yaml -i s3://... -o s3://... | kubectl apply -f -`
    """
    from datagen.cluster.render import render

    job = read_job(job_file, set_, input, output, model) if job_file else None
    typer.echo(render(load_profile(profile), job, cron=cron, time_zone=time_zone), nl=False)


def submit(
    job_file: JobFile,
    cluster: Cluster,
    input: Input = None,
    output: Output = None,
    model: Model = None,
    set_: Set = None,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait", help="show its output until it ends, and exit as it does")] = False,
) -> None:
    """Start a job on a running Ray cluster, with this datagen; prints its id.

    A job whose steps fit on no node, or whose paths only this machine has, is refused with exit code 2.

    Example: `datagen submit pipelines/image-regions.yaml --cluster cluster/aws.yaml -i s3://pictures/ -o s3://corpora/regions`
    """
    from datagen.cluster.place import place

    profile = load_profile(cluster)
    if profile.provider == "slurm":
        raise JobError(f"Slurm takes a script: datagen cluster render {cluster} {job_file} --input ... --output ... | sbatch")
    job = place(read_job(job_file, set_, input, output, model), profile)
    jobs = _jobs(address, cluster)
    submission_id = jobs.submit(job, profile)
    typer.echo(submission_id)
    if wait:
        jobs.follow(submission_id, _echo)
        raise typer.Exit(jobs.wait(submission_id))
    where = f" --address {jobs.address}"
    typer.echo(
        f"its output: datagen job logs {submission_id} --follow{where}\nto stop it: datagen job stop {submission_id}{where}", err=True
    )


@job_app.command("list")
def job_list(address: Address = None, cluster: AtCluster = None, as_json: AsJson = False) -> None:
    """The jobs that the cluster knows, the newest first.

    Example: `datagen job list --address http://127.0.0.1:8265`
    """
    jobs = _jobs(address, cluster).list()
    table = Table("id", "status", "output", box=None)
    for job in jobs:
        table.add_row(escape(job["id"]), job["status"], escape(job["metadata"].get("output", "")))
    show(jobs, as_json, lambda console: console.print(table))


@job_app.command("status")
def job_status(submission_id: JobId, address: Address = None, cluster: AtCluster = None, as_json: AsJson = False) -> None:
    """How far a job is: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, and why.

    Example: `datagen job status image-regions-1a2b3c4d`
    """
    job = _jobs(address, cluster).status(submission_id)
    show(job, as_json, lambda console: console.print(f"{job['status']}: {escape(job['message'] or '')}", soft_wrap=True))


@job_app.command("logs")
def job_logs(
    submission_id: JobId,
    address: Address = None,
    cluster: AtCluster = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job ends")] = False,
) -> None:
    """What a job has printed.

    Example: `datagen job logs image-regions-1a2b3c4d --follow`
    """
    jobs = _jobs(address, cluster)
    if follow:
        jobs.follow(submission_id, _echo)
    else:
        _echo(jobs.logs(submission_id))


@job_app.command("stop")
def job_stop(submission_id: JobId, address: Address = None, cluster: AtCluster = None) -> None:
    """Ask a job to end; what is committed stays, and the same job, submitted again, goes on from there.

    Example: `datagen job stop image-regions-1a2b3c4d`
    """
    stopped = _jobs(address, cluster).stop(submission_id)
    typer.echo("asked to stop" if stopped else "it has ended already")


def _jobs(address: str | None, cluster: Path | None) -> Jobs:
    from datagen.cluster.jobs import Jobs

    return Jobs(address or (load_profile(cluster).address if cluster else LOCAL_JOB_SERVER))


@aws_app.command("create")
def schedule_create(
    name: ScheduleName,
    job_file: JobFile,
    cluster: Cluster,
    at: At,
    input: Input = None,
    output: Output = None,
    model: Model = None,
    set_: Set = None,
    time_zone: TimeZone = None,
) -> None:
    """A new schedule that starts the job on one machine of AWS Batch.

    Example: `datagen schedule aws create nightly pipelines/image-regions.yaml --cluster cluster/aws.yaml --at 'cron(0 2 * * ? *)'
    -i s3://pictures/ -o s3://corpora/regions`
    """
    job = read_job(job_file, set_, input, output, model)
    typer.echo(_schedules(cluster).create(name, job, at, time_zone))


@aws_app.command("update")
def schedule_update(
    name: ScheduleName,
    job_file: JobFile,
    cluster: Cluster,
    at: At,
    input: Input = None,
    output: Output = None,
    model: Model = None,
    set_: Set = None,
    time_zone: TimeZone = None,
) -> None:
    """Replace a schedule as a whole: its times and its job.

    Example: `datagen schedule aws update nightly pipelines/image-regions.yaml --cluster cluster/aws.yaml --at 'rate(6 hours)'
    -i s3://pictures/ -o s3://corpora/regions`
    """
    job = read_job(job_file, set_, input, output, model)
    typer.echo(_schedules(cluster).update(name, job, at, time_zone))


@aws_app.command("list")
def schedule_list(cluster: Cluster, as_json: AsJson = False) -> None:
    """The schedules that datagen made.

    Example: `datagen schedule aws list --cluster cluster/aws.yaml`
    """
    schedules = _schedules(cluster).list()
    table = Table("name", "at", "time_zone", "state", "queue", "input", "output", box=None)
    for schedule in schedules:
        table.add_row(*(escape(value) for value in schedule.values()))
    show(schedules, as_json, lambda console: console.print(table))


@aws_app.command("delete")
def schedule_delete(name: ScheduleName, cluster: Cluster) -> None:
    """Delete a schedule; jobs that it has started go on.

    Example: `datagen schedule aws delete nightly --cluster cluster/aws.yaml`
    """
    _schedules(cluster).delete(name)
    typer.echo(f"deleted {name}")


def _schedules(cluster: Path) -> Schedules:
    from datagen.cluster.schedule import Schedules

    return Schedules(load_profile(cluster))


def _echo(lines: str) -> None:
    """Lines of a job's log, which hold what its libraries and its data said."""
    typer.echo(printable(without_colour(lines), lines=True), nl=False)
