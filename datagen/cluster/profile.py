"""The cluster profile: one YAML file says which nodes a place has, what they cost, and how they are started.

Shipped ones are in cluster/. A profile holds no credentials; it may name a Kubernetes secret, a role or a service account.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from datagen.errors import JobError
from datagen.job import refusal
from datagen.options import Options, Positive, read_yaml
from datagen.redaction import HIDDEN, redact

LOCAL_JOB_SERVER = "http://127.0.0.1:8265"
Provider = Literal["local", "kuberay", "aws", "slurm"]
# What Kubernetes, AWS and Slurm all take as a name.
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")]

_SECRET = re.compile(r"(^|_)(SECRET|TOKEN|PASSWORD|PASSWD|KEY)(_|$)", re.IGNORECASE)
_AWS_KEY_CHARS = 40
_REFERENCE = re.compile(r"\$\([^)]*\)|\$\{[^}]*\}|\$\w+")
_OPTION = re.compile(r"(?i)--(?:password|passwd|token|secret|api-?key)(?:\s+|=)(?!\*\*\*|['\"]\*\*\*|-)\S")
_WORD = re.compile(r"(?<![\w/+=.:@-])[A-Za-z0-9/+_-]{32,}={0,2}(?![\w/+=.:@-])")  # no path with an extension, no image, no ARN
_SECTIONS = {"kuberay": "kubernetes", "aws": "aws", "slurm": "slurm"}
_Section = TypeVar("_Section", bound=Options)


class Node(Options):
    """One machine."""

    cpus: Positive = Field(description="CPU cores")
    gpus: int = Field(0, ge=0, description="GPUs")
    memory_gib: float = Field(gt=0, description="memory, GiB")
    accelerator: str | None = Field(None, description="which GPU, as the place names it, such as NVIDIA-H100-80GB-HBM3 or h100")
    image: str | None = Field(None, description="container image; left out: the profile's")
    instance_type: str | None = Field(None, description="AWS: such as g6e.4xlarge")
    cost_per_hour: float = Field(0.0, ge=0, description="price of one such node for an hour, in a currency of your choice")


class Head(Node):
    """The node with Ray's own services and the job's driver."""

    works: bool = Field(False, description="its CPUs and GPUs also take the job's steps")


class Workers(Node):
    """A group of equal nodes that do the job's steps."""

    name: Name
    min_nodes: int = Field(0, ge=0, description="kept while nothing is done")
    max_nodes: Positive = Field(1, description="at most, and as many as a job has use for")
    spot: bool = Field(False, description="cheaper nodes that may be taken away at any time")

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min_nodes > self.max_nodes:
            raise ValueError(f"min_nodes is {self.min_nodes}, more than max_nodes {self.max_nodes}")
        return self


class KubernetesOptions(Options):
    """KubeRay."""

    namespace: str = Field("default", description="where the objects are made")
    service_account: str | None = Field(None, description="of all pods; gives them their role in the cloud, and thereby the bucket")
    secrets: tuple[str, ...] = Field((), description="names of Kubernetes secrets whose keys become environment variables")
    accelerator_label: str = Field("nvidia.com/gpu.product", description="node label that holds `accelerator`")
    spot_labels: dict[str, str] = Field(
        {"karpenter.sh/capacity-type": "spot"}, description="labels of spot nodes; tolerated as taints, too"
    )


class AwsOptions(Options):
    """Ray's cluster launcher on EC2, and AWS Batch for schedules."""

    region: str = Field(description="such as eu-central-1")
    ssh_user: str = Field("ubuntu", description="of the machine image")
    machine_image: str | None = Field(None, description="AMI with Docker and the NVIDIA driver; left out: Ray's choice for the region")
    instance_profile: str | None = Field(None, description="ARN of the instance profile that lets nodes read and write the buckets")
    disk_gib: Positive = Field(200, description="disk of each node, GiB")
    batch_queue: str | None = Field(None, description="AWS Batch job queue: a name or ARN")
    batch_job_definition: str | None = Field(
        None, description="AWS Batch job definition whose image has datagen: a name, name:revision or ARN"
    )
    scheduler_role: str | None = Field(None, description="ARN of the role with which EventBridge Scheduler submits the job")
    schedule_group: str = Field("default", description="group of the schedules")


class SlurmOptions(Options):
    """Slurm."""

    partition: str | None = Field(None, description="left out: the cluster's default")
    account: str | None = Field(None, description="left out: the user's default")
    time_limit: str = Field("24:00:00", pattern=r"^(\d+-)?\d{1,2}(:\d{2}){0,2}$", description="[days-]hours:minutes:seconds")
    port: int = Field(6379, ge=1024, le=65535, description="of Ray's head")


class Profile(Options):
    """One place where jobs run."""

    version: Literal[1] = 1
    name: Name
    provider: Provider
    image: str | None = Field(None, description="container image that has datagen and its dependencies (cluster/Dockerfile)")
    address: str = Field(LOCAL_JOB_SERVER, description="of Ray's job server, as seen from where jobs are submitted")
    python: str = Field("python", pattern=r"^[\w./+-]+$", description="interpreter on the nodes")
    setup: tuple[str, ...] = Field((), description="AWS, Slurm: shell lines run on each node first, such as a registry login")
    env: dict[str, str] = Field({}, description="environment of the job on every node; no secrets")
    retries: int = Field(3, ge=0, description="a scheduler starts a job that broke again this often; it resumes")
    head: Head | None = None
    workers: tuple[Workers, ...] = ()
    kubernetes: KubernetesOptions | None = None
    aws: AwsOptions | None = None
    slurm: SlurmOptions | None = None

    @field_validator("env")
    @classmethod
    def _without_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if _SECRET.search(name):
                raise PydanticCustomError(
                    "secret",
                    "{name} looks like a secret, which does not belong in a file: give the nodes a role, or name a Kubernetes secret",
                    {"name": name},
                )
        return env

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Profile:
        for path, text in _texts(self.model_dump(), ""):
            if _looks_secret(text):
                raise PydanticCustomError(
                    "secret",
                    "the value of {path} looks like a secret, which does not belong in a file: give the nodes a role, "
                    "or name a Kubernetes secret",
                    {"path": path},
                )
        return self

    @model_validator(mode="after")
    def _belongs_together(self) -> Profile:
        for provider, section in _SECTIONS.items():
            if getattr(self, section) is not None and provider != self.provider:
                raise ValueError(f"`{section}` is for provider {provider}, this one is {self.provider}")
        names = [group.name for group in self.workers]
        if len(set(names)) != len(names):
            raise ValueError(f"groups of workers need names of their own, found {', '.join(names)}")
        if not any(True for _ in self.nodes()):
            raise ValueError("no node does any work: give `workers`, or `head` with works: true")
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """What this provider needs and does not find."""
        every: list[Node] = [*([self.head] if self.head else []), *self.workers]
        if self.provider == "local" and self.workers:
            yield "a local Ray is one machine: give `head` with works: true, no `workers`"
        if self.provider == "slurm" and (self.head or len(self.workers) != 1):
            yield "a Slurm job is one group of equal nodes, the first of which also is Ray's head: give one group of `workers`, no `head`"
        if self.provider == "slurm" and any(group.min_nodes != group.max_nodes for group in self.workers):
            yield "a Slurm allocation has a fixed number of nodes: write min_nodes and max_nodes alike"
        if self.provider == "slurm" and (self.image or any(node.image for node in every)):
            yield "Slurm nodes have no container image: leave `image` out, and make the environment with `setup`"
        if self.provider in ("kuberay", "aws"):
            if not self.head:
                yield f"{self.provider} needs a `head`"
            if not all(node.image or self.image for node in every):
                yield f"{self.provider} needs an `image`"
        if self.provider == "aws" and not (self.aws and all(node.instance_type for node in every)):
            yield "aws needs `aws: {region: ...}`, and an `instance_type` for every node"

    def nodes(self) -> Iterator[tuple[str, Node, int]]:
        """(group, node, how many at most) of the nodes that do work."""
        if self.head and self.head.works:
            yield "head", self.head, 1
        for group in self.workers:
            yield group.name, group, group.max_nodes

    def resources(self) -> dict[str, float]:
        """CPUs and GPUs of the cluster at its largest, counted as Ray reports them."""
        nodes = [(node, count) for _, node, count in self.nodes()]
        return {
            "CPU": float(sum(node.cpus * count for node, count in nodes)),
            "GPU": float(sum(node.gpus * count for node, count in nodes)),
        }

    def cost_per_hour(self) -> tuple[float, float]:
        """Least and most, in the profile's currency."""
        head = self.head.cost_per_hour if self.head else 0.0
        least = sum(group.min_nodes * group.cost_per_hour for group in self.workers)
        return head + least, head + sum(group.max_nodes * group.cost_per_hour for group in self.workers)

    def image_of(self, node: Node) -> str:
        """The container image of a node; empty where none is given."""
        return node.image or self.image or ""

    def summary(self) -> dict[str, Any]:
        """What `datagen plan` says about the cluster."""
        least, most = self.cost_per_hour()
        sizes = {group.name: [group.min_nodes, group.max_nodes] for group in self.workers}
        return {
            "name": self.name,
            "provider": self.provider,
            "nodes": ({"head": [1, 1]} if self.head else {}) | sizes,
            "resources": self.resources(),
            "cost_per_hour": [least, most],
        }


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(where, text) of every text in plain data."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _texts(item, f"{path}[{number}]")


def _looks_secret(text: str) -> bool:
    """Whether a text holds a key, a token, a password or a signed URL. `$NAME` and `$(command)` stand for one, and hold none."""
    text = _REFERENCE.sub(HIDDEN, text)
    words = (word for word in _WORD.findall(text) if not word.isdigit())
    return redact(text) != text or _OPTION.search(text) is not None or any(_is_random(word) for word in words)


def _is_random(word: str) -> bool:
    if "/" in word and (len(word) != _AWS_KEY_CHARS or word.startswith("/")):
        return False  # a path
    return all(any(test(character) for character in word) for test in (str.isupper, str.islower, str.isdigit))


def load_profile(path: str | Path) -> Profile:
    """Read a cluster profile. Raises JobError naming the file, the key, what was found and what is allowed."""
    data = read_yaml(path, "cluster profile", "Shipped profiles are in cluster/.")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise JobError(f"{path}: {refusal(error, Profile)}") from error
