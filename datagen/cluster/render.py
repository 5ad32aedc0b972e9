"""A profile, and perhaps a job, as the text that the place's own system takes."""

from __future__ import annotations

from datagen.cluster import kuberay
from datagen.cluster.place import place, to_yaml
from datagen.cluster.profile import Profile
from datagen.errors import JobError
from datagen.job import Job


def render(cluster: Profile, job: Job | None = None, *, cron: str | None = None, time_zone: str | None = None) -> str:
    """KubeRay: a RayCluster; with a job a RayJob; with cron times, too, a RayCronJob.

    Raises JobError for what this place has not, and for a job that does not fit there.
    """
    if (cron or time_zone) and (cluster.provider != "kuberay" or not job or not cron):
        raise JobError("--cron (with or without --time-zone) starts a job on KubeRay: give a KubeRay profile and a JOB.yaml")
    placed = place(job, cluster) if job else None
    if cluster.provider == "kuberay":
        manifests = kuberay.job_manifests(cluster, placed, cron, time_zone) if placed else kuberay.cluster_manifests(cluster)
        return to_yaml(*manifests)
    raise JobError(f"there is nothing to render for {cluster.name}: {cluster.provider} takes `datagen submit`")
