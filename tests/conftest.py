"""What several test folders share: an S3 server, the golden data, and one vLLM engine over its checkpoint for the whole session."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Datagen, call_with
from describe_helpers import golden_job
from hypothesis import settings
from s3_server import CREDENTIALS, moto_server, new_bucket, options_of

from datagen.describe.step import DescribeStep
from datagen.job import S3Options

# How long an example takes says something about the machine and its neighbours; pytest-timeout ends what hangs.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

# A shell script starts what it puts in the background with Ctrl-C ignored; tests, and the commands that they start, listen to it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def datagen(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Datagen]:
    """The command line, in this process."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    yield call_with(capfd, monkeypatch)
    signal.signal(signal.SIGTERM, on_sigterm)


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """A real S3 server, with credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as patch, moto_server() as address:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield address


@pytest.fixture
def options(s3_address: str) -> S3Options:
    """For that server."""
    return options_of(s3_address)


@pytest.fixture
def bucket(options: S3Options) -> str:
    """A new bucket."""
    return new_bucket(options)


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new place for a dataset: a folder, and once more a prefix in a bucket."""
    monkeypatch.setenv("DATAGEN_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return str(tmp_path / "corpus")
    address = request.getfixturevalue("s3_address")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    return f"s3://{new_bucket(options_of(address))}/corpus"


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = Path(os.environ.get("DATAGEN_GOLDEN") or Path(__file__).parent / "golden").resolve()
    if not (folder / "cases.json").is_file():
        pytest.fail(f"{folder} holds no golden data (no cases.json); DATAGEN_GOLDEN names a folder like tests/golden")
    return folder


@pytest.fixture(scope="session")
def cases(golden: Path) -> dict[str, dict]:
    """Image cases by name."""
    return {case["name"]: case for case in json.loads((golden / "cases.json").read_text(encoding="utf-8"))["image"]}


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared language models go here, not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DATAGEN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def vllm_step(golden: Path, model_cache: Path) -> Iterator[DescribeStep]:
    """A describe step with vLLM over the golden checkpoint, in float32."""
    step = DescribeStep(golden_job(golden, max_model_len=6144))
    step.setup()
    yield step
    step.teardown()
