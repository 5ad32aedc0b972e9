"""A profile, and perhaps a job, as the text that the place's own system takes."""

from __future__ import annotations

from datagen.cluster.kuberay import cluster_manifests, job_manifests
from datagen.cluster.launcher import launcher_config
from datagen.cluster.place import place, to_yaml
from datagen.cluster.profile import Profile
from datagen.cluster.slurm import batch_script
from datagen.errors import JobError
from datagen.job import Job


def render(cluster: Profile, job: Job | None = None, *, cron: str | None = None, time_zone: str | None = None) -> str:
    """KubeRay: a RayCluster; with a job a RayJob; with cron times, too, a RayCronJob. Slurm: a job's batch script. AWS: for `ray up`.

    Raises JobError for what this place has not, and for a job that does not fit there.
    """
    if (cron or time_zone) and (cluster.provider != "kuberay" or not job or not cron):
        raise JobError("--cron (with or without --time-zone) starts a job on KubeRay: give a KubeRay profile and a JOB.yaml")
    placed = place(job, cluster) if job else None
    match cluster.provider, placed:
        case "kuberay", None:
            return to_yaml(*cluster_manifests(cluster))
        case "kuberay", Job():
            return to_yaml(*job_manifests(cluster, placed, cron, time_zone))
        case "slurm", Job():
            return batch_script(cluster, placed)
        case "slurm", None:
            raise JobError("a Slurm script starts a job: give a JOB.yaml, too")
        case "aws", None:
            return to_yaml(launcher_config(cluster))
        case "aws", _:
            raise JobError(
                "on AWS the cluster comes first: `datagen cluster render PROFILE`, `ray up`; then `datagen submit` starts the job"
            )
    raise JobError(f"there is nothing to render for {cluster.name}, a Ray on one machine: `ray start --head`, then `datagen submit`")
