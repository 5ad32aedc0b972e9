"""`datagen schedule aws`, against moto's EventBridge Scheduler."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.session
import pytest
import yaml
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from botocore.validate import ParamValidator
from command_line import Datagen
from moto import mock_aws

from datagen.job import parse_job

ROOT = Path(__file__).resolve().parents[2]
PROFILE = ROOT / "cluster" / "aws.yaml"
ARGUMENTS = (ROOT / "pipelines" / "image-regions.yaml", "--cluster", PROFILE, "-i", "s3://pictures/", "-o", "s3://corpora/regions")


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """An AWS account of the tests; a client for what it holds."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with mock_aws():
        yield boto3.client("scheduler", region_name="eu-central-1")


def create(datagen: Datagen, name: str = "nightly", *more: str) -> str:
    created = datagen("schedule", "aws", "create", name, *ARGUMENTS, "--at", "cron(0 2 * * ? *)", *more)
    assert created.returncode == 0, created.stderr
    return created.stdout.strip()


def submitted(scheduler, name: str = "nightly") -> dict:
    return json.loads(scheduler.get_schedule(Name=name)["Target"]["Input"])


def as_boto3(value):
    """The same request with the keys that boto3 takes; a schedule has them with capitals."""
    if isinstance(value, dict):
        return {key[0].lower() + key[1:]: as_boto3(entry) for key, entry in value.items()}
    return [as_boto3(entry) for entry in value] if isinstance(value, list) else value


def test_a_schedule_submits_the_whole_job(datagen: Datagen, scheduler) -> None:
    arn = create(datagen, "nightly", "--set", "run.retry_failed=2", "--time-zone", "Europe/Berlin")
    schedule = scheduler.get_schedule(Name="nightly")
    assert schedule["Arn"] == arn
    assert (schedule["ScheduleExpression"], schedule["ScheduleExpressionTimezone"]) == ("cron(0 2 * * ? *)", "Europe/Berlin")
    assert schedule["Target"]["Arn"] == "arn:aws:scheduler:::aws-sdk:batch:submitJob"
    assert schedule["Target"]["RoleArn"].endswith("role/datagen-scheduler")

    request = as_boto3(submitted(scheduler))
    shape = botocore.session.get_session().get_service_model("batch").operation_model("SubmitJob").input_shape
    assert not ParamValidator().validate(request, shape).has_errors()
    assert set(request) <= set(shape.members)
    assert (request["jobQueue"], request["jobDefinition"]) == ("datagen-gpu", "datagen")
    needs = {entry["type"]: entry["value"] for entry in request["containerOverrides"]["resourceRequirements"]}
    assert (needs["VCPU"], needs["GPU"]) == ("8", "1")
    assert 0.8 * 64 * 1024 < int(needs["MEMORY"]) < 64 * 1024, "the machine needs some for itself"


def test_the_container_gets_the_job_file(datagen: Datagen, scheduler, tmp_path: Path) -> None:
    create(datagen, "nightly", "--set", "describe.languages=[zh]")
    overrides = submitted(scheduler)["ContainerOverrides"]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$1 $2 $3"\ncat "$4"\n')
    (tmp_path / "python").chmod(0o755)
    environment = {entry["Name"]: entry["Value"] for entry in overrides["Environment"]}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    ran = subprocess.run(overrides["Command"], env=environment, capture_output=True, text=True, check=True, timeout=60)
    command, text = ran.stdout.split("\n", 1)
    assert command == "-m datagen run"
    job = parse_job(yaml.safe_load(text))
    assert (job.source.input, job.output, job.describe.languages) == ("s3://pictures/", "s3://corpora/regions", ("zh",))
    assert (job.run.ray_address, job.describe.pool.max_workers, job.describe.pool.num_gpus) == (None, 1, 0.49), "one machine"


def test_a_lost_machine_is_tried_again_and_a_wrong_job_is_not(datagen: Datagen, scheduler) -> None:
    create(datagen)
    retry = submitted(scheduler)["RetryStrategy"]
    assert retry["Attempts"] == 4
    assert retry["EvaluateOnExit"] == [
        {"OnStatusReason": "Host EC2*", "Action": "RETRY"},
        {"OnExitCode": "3", "Action": "RETRY"},
        {"OnReason": "*", "Action": "EXIT"},
    ]


def test_schedules_are_listed_replaced_and_deleted(datagen: Datagen, scheduler) -> None:
    for name in ("nightly", "hourly"):
        create(datagen, name)
    target = {"Arn": "arn:aws:scheduler:::aws-sdk:batch:submitJob", "RoleArn": "arn:aws:iam::123456789012:role/r", "Input": "{}"}
    other = {"ScheduleExpression": "rate(1 day)", "FlexibleTimeWindow": {"Mode": "OFF"}, "Target": target}
    scheduler.create_schedule(Name="somebody-elses", **other)

    def listed():
        return json.loads(datagen("schedule", "aws", "list", "--cluster", PROFILE, "--json").stdout)

    assert [schedule["name"] for schedule in listed()] == ["hourly", "nightly"]
    assert listed()[0] | {"state": ""} == {
        **{"name": "hourly", "at": "cron(0 2 * * ? *)", "time_zone": "UTC", "state": "", "queue": "datagen-gpu"},
        **{"input": "s3://pictures/", "output": "s3://corpora/regions"},
    }
    assert "nightly" in datagen("schedule", "aws", "list", "--cluster", PROFILE).stdout

    updated = datagen("schedule", "aws", "update", "hourly", *ARGUMENTS, "--at", "rate(1 hour)", "--set", "describe.languages=[zh]")
    assert updated.returncode == 0
    assert listed()[0]["at"] == "rate(1 hour)"
    assert '"zh"' in json.dumps(submitted(scheduler, "hourly")).replace("\\", "")

    assert datagen("schedule", "aws", "delete", "hourly", "--cluster", PROFILE).returncode == 0
    assert [schedule["name"] for schedule in listed()] == ["nightly"]
    for command in (("delete", "somebody-elses", "--cluster", PROFILE), ("update", "somebody-elses", *ARGUMENTS, "--at", "rate(1 day)")):
        refused = datagen("schedule", "aws", *command)
        assert (refused.returncode, "not made by datagen" in refused.stderr) == (2, True)
    assert scheduler.get_schedule(Name="somebody-elses")


def test_what_aws_refuses_is_explained(datagen: Datagen, scheduler) -> None:
    create(datagen)
    twice = datagen("schedule", "aws", "create", "nightly", *ARGUMENTS, "--at", "rate(1 day)")
    assert (twice.returncode, "datagen schedule aws update" in " ".join(twice.stderr.split())) == (2, True)
    gone = datagen("schedule", "aws", "delete", "nothing", "--cluster", PROFILE)
    assert (gone.returncode, "datagen schedule aws list" in " ".join(gone.stderr.split())) == (2, True)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "ListSchedules"), 2, "iam:PassRole"),
        (NoCredentialsError(), 2, "AWS_PROFILE"),
        (EndpointConnectionError(endpoint_url="https://scheduler"), 3, "no answer from AWS"),
    ],
)
def test_access_credentials_and_network(datagen: Datagen, monkeypatch: pytest.MonkeyPatch, error, code, words) -> None:
    class Client:
        def get_schedule(self, **_):
            raise error

    monkeypatch.setattr(boto3, "client", lambda *_, **__: Client())
    result = datagen("schedule", "aws", "delete", "nightly", "--cluster", PROFILE)
    assert (result.returncode, words in " ".join(result.stderr.split())) == (code, True), result.stderr


def test_a_job_or_profile_that_cannot_be_scheduled_is_refused(datagen: Datagen, scheduler, tmp_path: Path) -> None:
    profile = yaml.safe_load(PROFILE.read_text())
    del profile["aws"]["batch_queue"]
    (tmp_path / "aws.yaml").write_text(yaml.safe_dump(profile))

    def refusal(*arguments) -> str:
        result = datagen("schedule", "aws", "create", "nightly", *arguments, "--at", "rate(1 day)")
        assert result.returncode == 2
        return " ".join(result.stderr.split())

    assert "aws.batch_queue" in refusal(ARGUMENTS[0], "--cluster", tmp_path / "aws.yaml", *ARGUMENTS[3:])
    alone = profile | {"workers": [], "head": profile["head"] | {"works": True}}
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone | {"aws": profile["aws"] | {"batch_queue": "q"}}))
    assert "has no `workers`" in refusal(ARGUMENTS[0], "--cluster", tmp_path / "alone.yaml", *ARGUMENTS[3:])
    assert "like cluster/aws.yaml" in refusal(ARGUMENTS[0], "--cluster", ROOT / "cluster" / "kuberay.yaml", *ARGUMENTS[3:])
    assert "source.input is photos" in refusal(*ARGUMENTS[:3], "-i", "photos", *ARGUMENTS[5:])
    two = ("--set", "describe.pool.min_workers=2", "--set", "describe.pool.num_gpus=1")
    assert "side by side" in refusal(*ARGUMENTS, *two), "one machine has one GPU, the cluster four"
    assert not scheduler.list_schedules()["Schedules"]
