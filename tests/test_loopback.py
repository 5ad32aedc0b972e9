"""An embedded Ray listens on the loopback alone, and its token is its owner's."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from datagen.loopback import keep_token_private

LISTENING = """
import json, psutil
from corpora import fake_job
from datagen.graph import start_ray

start_ray(fake_job(run={"num_cpus": 2}))
import ray

@ray.remote
def work():
    return 1

assert ray.get(work.remote()) == 1
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
print(json.dumps([(p.name(), c.laddr.ip) for p in processes for c in p.net_connections("inet") if c.status == "LISTEN"]))
ray.shutdown()
"""


@pytest.mark.ray
def test_an_embedded_ray_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, env=environment, timeout=300, check=True)
    sockets = json.loads(done.stdout.strip().splitlines()[-1])
    assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
    assert {address for _, address in sockets} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o600


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_is_made_once_and_closed_to_others(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    keep_token_private()
    first = token.read_text()
    assert len(first) == 64
    token.chmod(0o644)
    keep_token_private()
    assert token.read_text() == first
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_home_that_takes_no_file_has_a_token_in_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    (home / ".ray").write_text("in the way")
    keep_token_private()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "mine"), ("RAY_AUTH_TOKEN_PATH", "/x")])
def test_what_the_user_has_set_stays(name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    keep_token_private()
    assert not (home / ".ray").exists()
    assert os.environ[name] == value
