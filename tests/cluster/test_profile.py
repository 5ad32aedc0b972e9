"""A profile says what a place has; a job that does not fit there is refused before anything is paid for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from datagen.cluster.fit import fit
from datagen.cluster.profile import Profile, load_profile
from datagen.errors import JobError
from datagen.job import Job, parse_job

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
PROFILES = sorted(CLUSTER.glob("*.yaml"))
GPU_NODE = {"name": "gpu", "cpus": 8, "gpus": 1, "memory_gib": 32}
HEAD = {"cpus": 4, "memory_gib": 8}
PLACE = {"name": "place", "provider": "kuberay", "image": "datagen", "head": HEAD}


def profile(**more) -> Profile:
    return Profile.model_validate(PLACE | {"workers": [GPU_NODE]} | more)


def job(**options) -> Job:
    return parse_job(options)


def test_there_is_a_profile_for_every_provider():
    assert {load_profile(path).provider for path in PROFILES} == {"local", "kuberay", "aws", "slurm"}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_shipped_profile_takes_the_shipped_jobs(path):
    cluster = load_profile(path)
    for shipped in (CLUSTER.parent / "pipelines").glob("*.yaml"):
        pools = fit(parse_job(yaml.safe_load(shipped.read_text())), cluster)
        assert pools["describe"].min_workers == max(1, cluster.resources()["GPU"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": [GPU_NODE | {"gpu": 2}]}, ["unknown key `workers.0.gpu`", "did you mean `gpus`"]),
        ({"workers": [GPU_NODE | {"min_nodes": 3}]}, ["`workers.0`", "min_nodes is 3, more than max_nodes 1"]),
        ({"workers": []}, ["no node does any work"]),
        ({"head": None}, ["kuberay needs a `head`"]),
        ({"image": None}, ["kuberay needs an `image`"]),
        ({"provider": "aws"}, ["`instance_type` for every node"]),
        ({"provider": "slurm"}, ["one group of `workers`, no `head`"]),
        ({"provider": "slurm", "head": None}, ["write min_nodes and max_nodes alike"]),
        ({"provider": "local"}, ["a local Ray is one machine"]),
        ({"slurm": {}}, ["`slurm` is for provider slurm, this one is kuberay"]),
        ({"workers": [GPU_NODE, GPU_NODE]}, ["names of their own"]),
        ({"name": "Big Cluster"}, ["`name`", "found 'Big Cluster'"]),
    ],
)
def test_a_wrong_profile_is_explained(tmp_path, change, words):
    path = tmp_path / "place.yaml"
    path.write_text(yaml.safe_dump(PLACE | {"workers": [GPU_NODE]} | change))
    with pytest.raises(JobError) as refused:
        load_profile(path)
    assert all(word in refused.value.message for word in words), refused.value.message


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "db_password", "API_KEY"])
def test_a_secret_is_refused_and_not_repeated(tmp_path, name):
    path = tmp_path / "place.yaml"
    path.write_text(yaml.safe_dump(PLACE | {"workers": [GPU_NODE], "env": {name: "hunter2"}}))
    with pytest.raises(JobError) as refused:
        load_profile(path)
    assert name in refused.value.message
    assert "hunter2" not in refused.value.message
    assert profile(env={"HF_HOME": "/cache", "KEYBOARD": "us", "TOKENIZERS_PARALLELISM": "false"}).env


def test_workers_follow_from_the_cluster_at_its_largest():
    cluster = profile(workers=[GPU_NODE | {"cpus": 16, "gpus": 4, "max_nodes": 3, "cost_per_hour": 2.0, "min_nodes": 1}])
    assert cluster.resources() == {"CPU": 48.0, "GPU": 12.0}
    assert cluster.cost_per_hour() == (2.0, 6.0)
    pools = fit(job(), cluster)
    assert (pools["perceive"].min_workers, pools["describe"].min_workers, pools["describe"].num_gpus) == (12, 12, 0.49)


def test_a_head_that_does_no_work_does_not_count():
    assert profile().resources()["CPU"] == 8
    assert profile(head=HEAD | {"works": True}).resources()["CPU"] == 12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"describe": {"pool": {"num_gpus": 2}}}, ["describe asks 1 CPU and 2 GPU", "8 CPU and 1 GPU", "--set describe.pool.num_gpus=1"]),
        ({"perceive": {"pool": {"num_cpus": 16}}}, ["perceive asks 16 CPU and 0.51 GPU", "(gpu)", "--set perceive.pool.num_cpus=8"]),
        (
            {"describe": {"pool": {"num_gpus": 0.6}}, "perceive": {"pool": {"num_gpus": 0.6}}},
            ["1 x perceive with 1 CPU and 0.6 GPU", "side by"],
        ),
        ({"decode": {"pool": {"min_workers": 20}}}, ["20 x decode with 0.5 CPU", "max_nodes"]),
    ],
)
def test_a_job_that_does_not_fit_is_refused(options, words):
    with pytest.raises(JobError) as refused:
        fit(job(**options), profile())
    assert all(word in refused.value.message for word in words), refused.value.message


def test_a_fraction_is_of_one_gpu():
    two_gpus = profile(workers=[GPU_NODE | {"gpus": 2}])
    fits = {"describe": {"pool": {"num_gpus": 0.6, "max_workers": 2}}, "perceive": {"pool": {"num_gpus": 0.4, "max_workers": 2}}}
    assert fit(job(**fits), two_gpus)
    three_of_six_tenths = {"describe": fits["describe"], "perceive": {"pool": {"num_gpus": 0.6, "max_workers": 1}}}
    with pytest.raises(JobError, match="side by side"):
        fit(job(**three_of_six_tenths), two_gpus)


def test_a_job_for_a_gpu_is_refused_where_there_is_none():
    with pytest.raises(JobError, match=r"describe asks for a GPU .*no node of place has one"):
        fit(job(describe={"device": "cuda"}), profile(workers=[GPU_NODE | {"gpus": 0}]))


def test_workers_stay_off_gpu_nodes_where_they_can():
    groups = [GPU_NODE | {"cpus": 2}, GPU_NODE | {"name": "cpu", "gpus": 0, "cpus": 4}]
    assert fit(job(decode={"pool": {"num_cpus": 1, "min_workers": 3}}), profile(workers=groups))


def test_the_plan_tells_of_the_cluster_and_refuses(datagen, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "job.yaml").write_text("perceive: {engine: fake}\ndescribe: {engine: fake}\n")
    (tmp_path / "place.yaml").write_text(yaml.safe_dump(PLACE | {"workers": [GPU_NODE | {"max_nodes": 2, "cost_per_hour": 1.5}]}))
    arguments = (tmp_path / "job.yaml", "-i", tmp_path / "photos", "-o", tmp_path / "out", "--cluster", tmp_path / "place.yaml")

    planned = json.loads(datagen("plan", *arguments, "--json").stdout)
    assert planned["workers"]["perceive"]["max_workers"] == 2
    assert planned["cluster"]["cost_per_hour"] == [0.0, 3.0]
    assert "place (kuberay): 1 head, 0-2 gpu; 0 to 3 an hour" in datagen("plan", *arguments).stdout

    refused = datagen("plan", *arguments, "--set", "describe.pool.num_cpus=9")
    assert refused.returncode == 2
    assert "describe asks 9 CPU" in " ".join(refused.stderr.split())


SECRET_VALUES = {
    "a key of AWS": {"env": {"ACCOUNT": "wJalrXUtnFEMI0K7MDENG0bPxRfiCYEXAMPLEKEY"}},
    "its id": {"env": {"WHO": "AKIAIOSFODNN7EXAMPLE"}},
    "a token by its form": {"env": {"HUB": "hf_abcdefghijklmnopqrstuvwx"}},
    "a URL with a password": {"env": {"PROXY": "http://somebody:hunter22@proxy:3128"}},
    "a signed URL": {"env": {"MODEL": "https://bucket/model?X-Amz-Signature=hunter22"}},
    "a shell line": {"setup": ["docker login --username me --password hunter22 registry"]},
    "another": {"setup": ["export PASSWORD=hunter22"]},
    "an address": {"address": "http://me:hunter22@127.0.0.1:8265"},
}


@pytest.mark.parametrize("case", SECRET_VALUES)
def test_a_value_that_looks_like_a_secret_is_refused_by_its_place_and_not_repeated(case, tmp_path):
    path = tmp_path / "place.yaml"
    path.write_text(yaml.safe_dump(PLACE | {"workers": [GPU_NODE]} | SECRET_VALUES[case]))
    with pytest.raises(JobError) as refused:
        load_profile(path)
    (section, values) = next(iter(SECRET_VALUES[case].items()))
    assert section in refused.value.message
    assert "looks like a secret" in refused.value.message
    texts = [values] if isinstance(values, str) else values.values() if isinstance(values, dict) else values
    assert not any(text in refused.value.message for text in texts)


def test_values_that_stand_for_a_secret_are_none():
    lines = [
        "docker login --password $TOKEN registry",
        "export PASSWORD=$(cat /run/secret)",
        'login --token "${TOKEN}"',
        "pip install datagen",
    ]
    env = {"HF_HOME": "/mnt/cache/Models/2026-11/huggingface_hub", "IMAGE": "ghcr.io/owner/datagen@sha256:" + "0a" * 32, "SEED": "1" * 40}
    assert profile(setup=lines, env=env).setup == tuple(lines)
