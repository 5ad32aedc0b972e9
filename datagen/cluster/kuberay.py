"""Manifests for the KubeRay operator (ray.io/v1): a cluster, a job with a cluster of its own, or such a job at set times."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from datagen.cluster.place import job_text
from datagen.cluster.profile import Head, KubernetesOptions, Node, Profile, Workers
from datagen.job import Job

_JOB_FOLDER = "/etc/datagen"
_KEPT_S = 600  # a finished job's pods and logs can be looked at for this long


def cluster_manifests(cluster: Profile) -> list[dict[str, Any]]:
    """A RayCluster that stays, for `datagen submit`."""
    return [_object("RayCluster", cluster.name, cluster, _cluster_spec(cluster))]


def job_manifests(cluster: Profile, job: Job, cron: str | None = None, time_zone: str | None = None) -> list[dict[str, Any]]:
    """The job file as a ConfigMap, and a RayJob; or, with cron times (five fields), a RayCronJob. `job` comes from `place`."""
    name = f"{cluster.name}-{_dns(job.name)}"[:40].rstrip("-")
    config = _object("ConfigMap", name, cluster, None) | {"data": {"job.yaml": job_text(job)}}
    spec = {
        "entrypoint": f"{cluster.python} -m datagen run {_JOB_FOLDER}/job.yaml",
        "backoffLimit": cluster.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEPT_S,
        "rayClusterSpec": _cluster_spec(cluster, config_map=name),
    }
    if cron is None:
        return [config, _object("RayJob", name, cluster, spec)]
    times = {"schedule": cron} | ({"timeZone": time_zone} if time_zone else {})
    return [config, _object("RayCronJob", name, cluster, {**times, "jobTemplate": spec})]


def _dns(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-").strip("-")


def _object(kind: str, name: str, cluster: Profile, spec: dict[str, Any] | None) -> dict[str, Any]:
    metadata = {"name": name, "namespace": _options(cluster).namespace, "labels": {"app.kubernetes.io/managed-by": "datagen"}}
    head = {"apiVersion": "v1" if kind == "ConfigMap" else "ray.io/v1", "kind": kind, "metadata": metadata}
    return head | ({"spec": spec} if spec else {})


def _options(cluster: Profile) -> KubernetesOptions:
    return cluster.kubernetes or KubernetesOptions()


def _cluster_spec(cluster: Profile, config_map: str | None = None) -> dict[str, Any]:
    assert cluster.head  # the profile's own check
    grows = any(group.min_nodes < group.max_nodes for group in cluster.workers)
    return {
        "rayVersion": version("ray"),
        "enableInTreeAutoscaling": grows,
        "headGroupSpec": {
            "rayStartParams": {} if cluster.head.works else {"num-cpus": "0", "num-gpus": "0"},
            "template": _pod(cluster, cluster.head, config_map),
        },
        "workerGroupSpecs": [_workers(cluster, group) for group in cluster.workers],
    }


def _workers(cluster: Profile, group: Workers) -> dict[str, Any]:
    return {
        "groupName": group.name,
        "replicas": group.min_nodes,
        "minReplicas": group.min_nodes,
        "maxReplicas": group.max_nodes,
        "rayStartParams": {},
        "template": _pod(cluster, group),
    }


def _pod(cluster: Profile, node: Head | Workers, config_map: str | None = None) -> dict[str, Any]:
    options = _options(cluster)
    container: dict[str, Any] = {
        "name": "ray-head" if isinstance(node, Head) else "ray-worker",
        "image": cluster.image_of(node),
        "resources": {kind: _resources(node) for kind in ("requests", "limits")},
    }
    if cluster.env:
        container["env"] = [{"name": name, "value": value} for name, value in cluster.env.items()]
    if options.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in options.secrets]
    spec: dict[str, Any] = {"containers": [container]} | _where(node, options)
    if options.service_account:
        spec["serviceAccountName"] = options.service_account
    if config_map:
        container["volumeMounts"] = [{"name": "job", "mountPath": _JOB_FOLDER, "readOnly": True}]
        spec["volumes"] = [{"name": "job", "configMap": {"name": config_map}}]
    return {"spec": spec}


def _resources(node: Node) -> dict[str, str]:
    wanted = {"cpu": str(node.cpus), "memory": f"{round(node.memory_gib * 1024)}Mi"}
    return wanted | ({"nvidia.com/gpu": str(node.gpus)} if node.gpus else {})


def _where(node: Head | Workers, options: KubernetesOptions) -> dict[str, Any]:
    """On which nodes of Kubernetes a pod may be."""
    spot = options.spot_labels if isinstance(node, Workers) and node.spot else {}
    selector = ({options.accelerator_label: node.accelerator} if node.accelerator else {}) | spot
    tolerated = [*(["nvidia.com/gpu"] if node.gpus else []), *spot]
    found: dict[str, Any] = {"nodeSelector": selector} if selector else {}
    return found | ({"tolerations": [{"key": key, "operator": "Exists"} for key in tolerated]} if tolerated else {})
