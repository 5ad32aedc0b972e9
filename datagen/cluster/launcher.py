"""A file for Ray's cluster launcher (`ray up`) on EC2: an on-demand head and groups of workers that come and go."""

from __future__ import annotations

from typing import Any

from datagen.cluster.profile import AwsOptions, Head, Profile, Workers

_HEAD = "head"
_IDLE_MINUTES = 5
_START = "ulimit -n 65536; ray start"


def launcher_config(cluster: Profile) -> dict[str, Any]:
    """What `ray up` reads."""
    aws, head = cluster.aws, cluster.head
    assert aws  # the profile's own checks
    assert head
    return {
        "cluster_name": cluster.name,
        "max_workers": sum(group.max_nodes for group in cluster.workers),
        "idle_timeout_minutes": _IDLE_MINUTES,
        "provider": {"type": "aws", "region": aws.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": aws.ssh_user},
        "docker": {
            "image": cluster.image_of(head),
            "container_name": "datagen",
            "pull_before_run": True,
            "run_options": ["--ulimit nofile=65536:65536"],
        },
        "available_node_types": {_HEAD: _node_type(cluster, head, aws)} | {g.name: _node_type(cluster, g, aws) for g in cluster.workers},
        "head_node_type": _HEAD,
        "initialization_commands": list(cluster.setup),
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        # The dashboard and job server listen on the head itself only; `ray dashboard FILE` forwards them.
        "head_start_ray_commands": [
            "ray stop",
            f"{_START} --head --port=6379 --object-manager-port=8076 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{_START} --address=$RAY_HEAD_IP:6379 --object-manager-port=8076"],
    }


def _node_type(cluster: Profile, node: Head | Workers, aws: AwsOptions) -> dict[str, Any]:
    works = not isinstance(node, Head) or node.works
    found: dict[str, Any] = {
        "resources": {"CPU": node.cpus, "GPU": node.gpus} if works else {"CPU": 0, "GPU": 0},
        "node_config": _node_config(node, aws),
    }
    if isinstance(node, Workers):
        found |= {"min_workers": node.min_nodes, "max_workers": node.max_nodes, "docker": {"worker_image": cluster.image_of(node)}}
    return found


def _node_config(node: Head | Workers, aws: AwsOptions) -> dict[str, Any]:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": aws.disk_gib, "VolumeType": "gp3"}}
    found: dict[str, Any] = {"InstanceType": node.instance_type, "BlockDeviceMappings": [disk]}
    if aws.machine_image:
        found["ImageId"] = aws.machine_image
    if aws.instance_profile:
        found["IamInstanceProfile"] = {"Arn": aws.instance_profile}
    if isinstance(node, Workers) and node.spot:
        found["InstanceMarketOptions"] = {"MarketType": "spot"}
    return found
