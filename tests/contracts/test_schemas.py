"""The contracts that others build on do not change by accident."""

import hashlib
import json
from pathlib import Path

import pytest

from datagen.job import job_schema
from datagen.write import arrow_schema
from datagen.write.schema import READABLE_VERSIONS, SCHEMA_VERSION, TABLES

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"

# Released schemas never change: a change is a new version beside the old one. Add a line here when one is released.
RELEASED = {
    "assets.v1.json": "097a8f2b04d0143928c11e74208ec09339ffda940b4eff1b0beddc8e3fdbb107",
    "regions.v1.json": "b8f0af5c26c00399991130e1c4e8ed3f0c01979780344f9cf934c5cfc8a006cb",
    "tracks.v1.json": "8ade30d2ecef25f0bc95def680db7bc9c6f574abf3ac0ce55e8396dab6c9d59f",
    "clips.v1.json": "6bab7cc75b7aa1225a5e4fc917db2caaa390735d46cd9280e8b77218e3a2538b",
    "assets.v2.json": "3bb8a45797a9ecb853654765adeffc62048a86d5c035f4e72d64f8ffa96a03e1",
    "regions.v2.json": "10d4301e7903e918f027ab3c69b08787a60fb91cd08391970944589f3c58ddbd",
    "tracks.v2.json": "4116de3e9e7bfcdf47fbb9b96b7571f6f60a6c9d3a1b770976cccae90b1653ef",
    "clips.v2.json": "d3d5cfc25ebc385137a6d7c4f19cb4ff4aa355e5a12ac7d3dce4478cd5cd5f21",
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_schemas_are_frozen(name):
    found = hashlib.sha256((SCHEMAS / name).read_bytes()).hexdigest()
    assert found == RELEASED[name], f"{name} is released: put the change into a new version"


def test_every_table_schema_is_listed_as_released():
    assert {path.name for path in SCHEMAS.glob("*.v*.json")} == set(RELEASED)
    assert {f"{name}.v{version}.json" for name in TABLES for version in READABLE_VERSIONS} == set(RELEASED)
    assert max(READABLE_VERSIONS) == SCHEMA_VERSION


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("version", READABLE_VERSIONS)
def test_every_column_is_explained_and_becomes_arrow(name, version):
    document = json.loads((SCHEMAS / f"{name}.v{version}.json").read_text())
    assert (document["name"], document["version"]) == (name, version)
    schema = arrow_schema(name, optional=True, version=version)
    assert [column["name"] for column in document["columns"]] == schema.names
    for column in _all_columns(document["columns"]):
        assert len(column["doc"]) > 5, column["name"]
        assert column.keys() - {"fields", "optional"} == {"name", "type", "nullable", "doc"}
    assert [column["nullable"] for column in document["columns"]] == [field.nullable for field in schema]
    assert arrow_schema(name, version=version).names == [column["name"] for column in document["columns"] if not column.get("optional")]


def test_the_job_schema_is_that_of_the_code():
    stored = json.loads((SCHEMAS / "job.schema.json").read_text())
    assert stored == job_schema(), "run: python -m datagen.job > schemas/job.schema.json"


def _all_columns(columns):
    for column in columns:
        yield column
        yield from _all_columns(column.get("fields", ()))
