"""The file for `ray up`, against the schema that Ray checks it with."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from datagen.cluster.profile import load_profile
from datagen.cluster.render import render
from datagen.errors import JobError
from datagen.job import parse_job

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = load_profile(ROOT / "cluster" / "aws.yaml")


@pytest.fixture(scope="module")
def schema() -> dict:
    ray = importlib.util.find_spec("ray")
    return json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def test_ray_accepts_it_and_workers_are_spot(schema) -> None:
    config = yaml.safe_load(render(SHIPPED))
    jsonschema.validate(config, schema)
    head, gpu = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert config["head_node_type"] == "head"
    assert (head["resources"], gpu["resources"]) == ({"CPU": 0, "GPU": 0}, {"CPU": 8, "GPU": 1})
    assert (gpu["min_workers"], gpu["max_workers"], config["max_workers"]) == (0, 4, 4)
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"], "the driver runs there"
    assert head["node_config"]["IamInstanceProfile"] == {"Arn": SHIPPED.aws.instance_profile}
    assert config["initialization_commands"] == list(SHIPPED.setup)


def test_a_group_may_have_an_image_of_its_own(schema) -> None:
    group = SHIPPED.workers[0].model_copy(update={"image": "other:1", "spot": False})
    aws = SHIPPED.aws.model_copy(update={"machine_image": "ami-1"})
    config = yaml.safe_load(render(SHIPPED.model_copy(update={"workers": (group,), "aws": aws})))
    jsonschema.validate(config, schema)
    gpu = config["available_node_types"]["gpu"]
    assert (gpu["docker"], gpu["node_config"]["ImageId"]) == ({"worker_image": "other:1"}, "ami-1")
    assert "InstanceMarketOptions" not in gpu["node_config"]


def test_a_job_is_submitted_not_rendered() -> None:
    with pytest.raises(JobError, match="datagen submit"):
        render(SHIPPED, parse_job({"source": {"input": "s3://a"}, "output": "s3://b"}))
