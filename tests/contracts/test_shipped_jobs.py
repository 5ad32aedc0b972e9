from pathlib import Path

import jsonschema
import pytest
import yaml

from datagen.job import job_schema, load_job
from datagen.paths import EMBEDDED

JOBS = sorted((Path(__file__).resolve().parents[2] / "pipelines").glob("*.yaml"))


def test_the_jobs_that_the_documents_name_are_shipped():
    assert {"demo.yaml", "demo-video.yaml", "image-regions.yaml", "video-tracks.yaml", "video-stream.yaml"} <= {path.name for path in JOBS}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_shipped_job_is_valid_and_says_what_comes_out(path):
    job = load_job(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), job_schema())
    assert job.name == path.stem
    assert path.read_text().startswith("# "), "a job begins with a comment saying which dataset comes out"
    assert "datagen run pipelines/" in path.read_text()


def test_only_the_demos_use_an_embedded_checkpoint():
    assert {path.stem for path in JOBS if load_job(path).model.checkpoint in EMBEDDED} == {"demo", "demo-video"}
