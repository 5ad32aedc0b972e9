"""Manifests against KubeRay's own schemas, unknown keys refused."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from datagen.cluster.place import place
from datagen.cluster.profile import load_profile
from datagen.cluster.render import render
from datagen.errors import JobError
from datagen.job import Job, load_job, parse_job

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = load_profile(ROOT / "cluster" / "kuberay.yaml")
IO = {"source.input": "s3://pictures/", "output": "s3://corpora/regions"}


def closed(schema):
    """The schema with every object that lists its properties refusing others, as the API server does with strict validation."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and not result.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


CRON = closed(json.loads((Path(__file__).parent / "raycronjobs.v1.schema.json").read_text()))
JOB_SPEC = CRON["properties"]["spec"]["properties"]["jobTemplate"]
SPECS = {"RayCronJob": CRON["properties"]["spec"], "RayJob": JOB_SPEC, "RayCluster": JOB_SPEC["properties"]["rayClusterSpec"]}


def valid(manifest):
    """Raises ValidationError."""
    properties = CRON["properties"] | {"spec": SPECS[manifest["kind"]]}
    schema = {**CRON, "properties": properties, "required": ["apiVersion", "kind", "metadata", "spec"]}
    jsonschema.Draft202012Validator(schema).validate(manifest)  # jsonschema.validate checks the long schema first, every time
    assert manifest["apiVersion"] == "ray.io/v1"
    return manifest


def shipped_job(**values) -> Job:
    return load_job(ROOT / "pipelines" / "image-regions.yaml", values=IO | values)


def rendered(*arguments, **options):
    return list(yaml.safe_load_all(render(*arguments, **options)))


def test_the_schema_refuses_what_it_does_not_know():
    (cluster,) = rendered(SHIPPED)
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        valid(cluster)


def test_a_cluster_has_the_profiles_nodes():
    (cluster,) = rendered(SHIPPED)
    head, (workers,) = valid(cluster)["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert (workers["minReplicas"], workers["maxReplicas"], cluster["spec"]["enableInTreeAutoscaling"]) == (0, 4, True)
    pod = workers["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "8", "memory": "49152Mi", "nvidia.com/gpu": "1"}
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L40S", "karpenter.sh/capacity-type": "spot"}
    assert {toleration["key"] for toleration in pod["tolerations"]} == {"nvidia.com/gpu", "karpenter.sh/capacity-type"}
    assert "nodeSelector" not in head["template"]["spec"]


def test_a_job_comes_with_its_file_and_a_cluster_of_its_own():
    config, ray_job = rendered(SHIPPED, shipped_job())
    spec = valid(ray_job)["spec"]
    pod = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] == 3
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    folder, file = spec["entrypoint"].split()[-1].rsplit("/", 1)
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == folder
    assert parse_job(yaml.safe_load(config["data"][file])) == place(shipped_job(), SHIPPED)


def test_a_nightly_job_has_its_times():
    _, cron_job = rendered(SHIPPED, shipped_job(), cron="0 2 * * *", time_zone="Europe/Berlin")
    spec = valid(cron_job)["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("0 2 * * *", "Europe/Berlin")
    assert spec["jobTemplate"] == rendered(SHIPPED, shipped_job())[1]["spec"]


def test_environment_and_secrets_reach_every_pod():
    named = SHIPPED.model_copy(
        update={"env": {"HF_HOME": "/cache"}, "kubernetes": SHIPPED.kubernetes.model_copy(update={"secrets": ("hf-token",)})}
    )
    (cluster,) = rendered(named)
    spec = valid(cluster)["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["env"] == [{"name": "HF_HOME", "value": "/cache"}]
        assert container["envFrom"] == [{"secretRef": {"name": "hf-token"}}]


def test_names_become_names_of_kubernetes():
    config, ray_job = rendered(SHIPPED, shipped_job(name="My_Very.Long" + 40 * "x" + "_"))
    for manifest in (config, ray_job):
        name = manifest["metadata"]["name"]
        assert name.startswith("datagen-my-very-long")
        assert len(name) <= 40


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source.input": "photos"}, ["source.input is photos, which only this machine can find", "s3://"]),
        ({"output": "corpus"}, ["output is corpus"]),
        ({"model.checkpoint": "datagen"}, ["model.checkpoint is datagen"]),  # a folder here
        ({"output": None}, ["no output"]),
        ({"run.executor": "inprocess"}, ["run.executor is inprocess"]),
        ({"describe.pool.num_gpus": 2}, ["describe asks 1 CPU and 2 GPU"]),
    ],
)
def test_a_job_that_cannot_run_there_is_refused(monkeypatch, values, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(JobError) as refused:
        render(SHIPPED, shipped_job(**values))
    assert all(word in refused.value.message for word in words), refused.value.message


def test_a_job_goes_to_the_cluster_with_workers_for_its_largest_size():
    placed = place(shipped_job(**{"describe.pool.num_cpus": 2, "source.input": "/shared/photos"}), SHIPPED)
    assert placed.run.ray_address == "auto"
    assert (placed.describe.pool.max_workers, placed.describe.pool.num_cpus, placed.perceive.pool.num_gpus) == (4, 2, 0.51)
    assert placed.hash() == shipped_job().hash(), "the rows are the same wherever they are made"


def test_the_command_prints_what_kubectl_takes(datagen):
    job_file, profile = ROOT / "pipelines" / "image-regions.yaml", ROOT / "cluster" / "kuberay.yaml"
    result = datagen("cluster", "render", profile, job_file, "-i", "s3://a/b", "-o", "s3://a/c", "--cron", "0 2 * * *")
    assert [manifest["kind"] for manifest in yaml.safe_load_all(result.stdout)] == ["ConfigMap", "RayCronJob"]
    assert datagen("cluster", "render", profile, "--cron", "0 2 * * *").returncode == 2
    assert "datagen submit" in datagen("cluster", "render", ROOT / "cluster" / "local.yaml").stderr
