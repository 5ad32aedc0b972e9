"""The contracts that others build on do not change by accident."""

import hashlib
import json
from pathlib import Path

import pytest

from datagen.job import job_schema
from datagen.write import arrow_schema
from datagen.write.schema import SCHEMA_VERSIONS

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"

# Released schemas never change: a change is a new version beside the old one. Add a line here when one is released.
RELEASED = {
    "assets.v1.json": "7b511e9b105144139e589771b4b44968df64cd909aa20b4d047e507b69ee71bb",
    "regions.v1.json": "37df157c38a0b5621d7fc21cb15f2d5ef631134020b2944fd944c7f376e13a47",
    "tracks.v1.json": "cbde125ddd66a6cac9a23910a4c38049cac301bebf9f8184a9e1279cee16cb15",
    "clips.v1.json": "03d6befb9c7951a2da415866380376255c40c5a81bb8d920f804e44853b1d948",
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_schemas_are_frozen(name):
    found = hashlib.sha256((SCHEMAS / name).read_bytes()).hexdigest()
    assert found == RELEASED[name], f"{name} is released: put the change into a new version"


def test_every_table_schema_is_listed_as_released():
    assert {path.name for path in SCHEMAS.glob("*.v*.json")} == set(RELEASED)
    assert {f"{name}.v{version}.json" for name, version in SCHEMA_VERSIONS.items()} <= set(RELEASED)


@pytest.mark.parametrize("name", SCHEMA_VERSIONS)
def test_every_column_is_explained_and_becomes_arrow(name):
    document = json.loads((SCHEMAS / f"{name}.v{SCHEMA_VERSIONS[name]}.json").read_text())
    assert (document["name"], document["version"]) == (name, SCHEMA_VERSIONS[name])
    schema = arrow_schema(name)
    assert [column["name"] for column in document["columns"]] == schema.names
    for column in _all_columns(document["columns"]):
        assert len(column["doc"]) > 5, column["name"]
        assert column.keys() - {"fields"} == {"name", "type", "nullable", "doc"}
    assert [column["nullable"] for column in document["columns"]] == [field.nullable for field in schema]


def test_the_job_schema_is_that_of_the_code():
    stored = json.loads((SCHEMAS / "job.schema.json").read_text())
    assert stored == job_schema(), "run: python -m datagen.job > schemas/job.schema.json"


def _all_columns(columns):
    for column in columns:
        yield column
        yield from _all_columns(column.get("fields", ()))
