"""Jobs at set times on AWS: an EventBridge Scheduler schedule that submits an AWS Batch job on one machine.

The schedule holds the whole job; nothing of this machine is needed when it fires. Credentials are found as boto3 does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datagen.cluster.place import place
from datagen.cluster.profile import AwsOptions, Profile, Workers
from datagen.errors import ClusterError, JobError
from datagen.job import Job

_OURS = "datagen: "  # how the descriptions of our schedules begin
# JSON is YAML, too. `exec`, so that Batch's SIGTERM reaches datagen.
_RUN = 'job=$(mktemp) && printf %s "$DATAGEN_JOB" >"$job" && exec {python} -m datagen run "$job"'
_MOST_OVERRIDES = 8192  # characters of command and environment that ECS, under Batch, takes
_FOR_THE_JOB = 0.92  # of a machine's memory; AWS keeps the rest for its agent and the system
_MOST_ATTEMPTS = 10  # what Batch allows


class Schedules:
    """The schedules of one region and group. Every method raises JobError for what AWS refuses, ClusterError when it gives no answer."""

    def __init__(self, cluster: Profile) -> None:
        if not cluster.aws:
            raise JobError(
                f"{cluster.name} is a place of provider {cluster.provider}; schedules on AWS need a profile like cluster/aws.yaml"
            )
        self._cluster, self._aws = cluster, cluster.aws
        with _explained("EventBridge Scheduler"):
            import boto3

            self._client = boto3.client("scheduler", region_name=self._aws.region)

    def create(self, name: str, job: Job, at: str, time_zone: str | None = None) -> str:
        """A new schedule; its ARN. `at` is cron(...), rate(...) or at(...), as AWS writes them."""
        with _explained(name):
            return str(self._client.create_schedule(**self._schedule(name, job, at, time_zone))["ScheduleArn"])

    def update(self, name: str, job: Job, at: str, time_zone: str | None = None) -> str:
        """Replace a schedule of ours as a whole; its ARN."""
        self._get(name)
        with _explained(name):
            return str(self._client.update_schedule(**self._schedule(name, job, at, time_zone))["ScheduleArn"])

    def list(self) -> list[dict[str, str]]:
        """name, at, time_zone, state, queue, input and output of our schedules, by name."""
        with _explained(f"schedules of group {self._aws.schedule_group}"):
            pages = self._client.get_paginator("list_schedules").paginate(GroupName=self._aws.schedule_group)
            batch = [entry["Name"] for page in pages for entry in page["Schedules"] if entry["Target"]["Arn"].endswith(":batch:submitJob")]
            found = [self._client.get_schedule(GroupName=self._aws.schedule_group, Name=name) for name in sorted(batch)]
        return [_facts(schedule) for schedule in found if schedule.get("Description", "").startswith(_OURS)]

    def delete(self, name: str) -> None:
        """Delete a schedule of ours. Jobs that it has started go on."""
        self._get(name)
        with _explained(name):
            self._client.delete_schedule(GroupName=self._aws.schedule_group, Name=name)

    def _get(self, name: str) -> None:
        with _explained(name):
            schedule = self._client.get_schedule(GroupName=self._aws.schedule_group, Name=name)
        if not schedule.get("Description", "").startswith(_OURS):
            raise JobError(f"the schedule {name} was not made by datagen; it is left alone")

    def _schedule(self, name: str, job: Job, at: str, time_zone: str | None) -> dict[str, Any]:
        queue, definition, role = _required(self._aws)
        partition = role.split(":")[1]  # aws, aws-cn, aws-us-gov
        target = {
            "Arn": f"arn:{partition}:scheduler:::aws-sdk:batch:submitJob",
            "RoleArn": role,
            "Input": json.dumps({"JobName": name, "JobQueue": queue, "JobDefinition": definition} | _batch_job(self._cluster, job)),
        }
        return {
            "Name": name,
            "GroupName": self._aws.schedule_group,
            "Description": f"{_OURS}{job.name}, {job.source.input} to {job.output}"[:512],
            "ScheduleExpression": at,
            "FlexibleTimeWindow": {"Mode": "OFF"},
            "State": "ENABLED",
            "Target": target,
        } | ({"ScheduleExpressionTimezone": time_zone} if time_zone else {})


def _required(aws: AwsOptions) -> tuple[str, str, str]:
    needed = {"batch_queue": aws.batch_queue, "batch_job_definition": aws.batch_job_definition, "scheduler_role": aws.scheduler_role}
    missing = [f"aws.{key}" for key, value in needed.items() if not value]
    if missing:
        raise JobError(f"a schedule needs {', '.join(missing)} in the cluster profile; docs/clusters.md says how they are made")
    queue, definition, role = (value or "" for value in needed.values())
    return queue, definition, role


def _batch_job(cluster: Profile, job: Job) -> dict[str, Any]:
    """What differs from the job definition: one machine of the group with the most GPUs, and the job."""
    if not cluster.workers:
        raise JobError(f"{cluster.name} has no `workers`, of which a schedule takes one machine")
    group = max(cluster.workers, key=lambda group: (group.gpus, group.cpus))
    machine = cluster.model_copy(update={"head": None, "workers": (group.model_copy(update={"min_nodes": 0, "max_nodes": 1}),)})
    placed = place(job, machine, address=None)
    text = json.dumps(placed.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False, separators=(",", ":"))
    if len(text) > _MOST_OVERRIDES - 1024:
        raise JobError(f"the job has {len(text)} characters, more than AWS Batch takes; leave out of it what is default")
    retry = [{"OnStatusReason": "Host EC2*", "Action": "RETRY"}, {"OnExitCode": str(ClusterError.exit_code), "Action": "RETRY"}]
    return {
        "ContainerOverrides": {
            "Command": ["sh", "-c", _RUN.format(python=cluster.python)],
            "Environment": [{"Name": name, "Value": value} for name, value in {**cluster.env, "DATAGEN_JOB": text}.items()],
            "ResourceRequirements": [{"Type": kind, "Value": value} for kind, value in _resources(group).items()],
        },
        # A machine that was taken away, or code 3: starting again resumes.
        "RetryStrategy": {
            "Attempts": min(cluster.retries + 1, _MOST_ATTEMPTS),
            "EvaluateOnExit": [*retry, {"OnReason": "*", "Action": "EXIT"}],
        },
    }


def _resources(group: Workers) -> dict[str, str]:
    memory = {"VCPU": str(group.cpus), "MEMORY": str(int(group.memory_gib * 1024 * _FOR_THE_JOB))}
    return memory | ({"GPU": str(group.gpus)} if group.gpus else {})


def _facts(schedule: dict[str, Any]) -> dict[str, str]:
    submitted = json.loads(schedule["Target"]["Input"])
    environment = {entry["Name"]: entry["Value"] for entry in submitted["ContainerOverrides"]["Environment"]}
    job = json.loads(environment["DATAGEN_JOB"])
    return {
        "name": schedule["Name"],
        "at": schedule["ScheduleExpression"],
        "time_zone": schedule.get("ScheduleExpressionTimezone", "UTC"),
        "state": schedule["State"],
        "queue": submitted["JobQueue"],
        "input": job["source"]["input"],
        "output": job["output"],
    }


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """AWS's refusals as JobError, its silence as ClusterError."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        about = error.response["Error"]
        ways = {
            "ConflictException": "There is one of this name already: `datagen schedule aws update` replaces it.",
            "ResourceNotFoundException": "`datagen schedule aws list` shows those that are there.",
            "AccessDeniedException": "This identity needs scheduler:CreateSchedule, UpdateSchedule, GetSchedule, ListSchedules and "
            "DeleteSchedule, and iam:PassRole for aws.scheduler_role; see which it is: `aws sts get-caller-identity`.",
        }
        raise JobError(f"{what}: {about['Message']} ({about['Code']}). {ways.get(about['Code'], '')}".rstrip()) from error
    except (boto.ConnectionError, boto.HTTPClientError) as error:
        raise ClusterError(f"{what}: no answer from AWS: {error}. Check the network and aws.region, then try again.") from error
    except (boto.BotoCoreError, ValueError) as error:
        raise JobError(f"{what}: {error}. Set AWS_PROFILE, log in, or give this machine a role.") from error
