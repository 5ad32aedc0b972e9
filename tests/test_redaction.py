"""No secret in a log, a run record, a heartbeat or a message; and nothing else is lost from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.records import Asset, Sample
from datagen.redaction import redact, redact_file, redact_values
from datagen.write import RunRecord, open_store
from datagen.write.layout import RUNS

KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SECRETS = [
    "https://user:p@ss:word@host/path?x=1",
    "s3://AKIAIOSFODNN7EXAMPLE:" + "abc@bucket/key",
    "the key AKIAIOSFODNN7EXAMPLE is not known",
    "ASIAIOSFODNN7EXAMPLE",
    f"aws_secret_access_key = {KEY}",
    f"AWS_SECRET_ACCESS_KEY={KEY} in the environment",
    f'{{"SecretAccessKey": "{KEY}", "SessionToken": "FwoGZXIvYXdzEXAMPLE"}}',
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=ABC%2F2026&X-Amz-Signature=0f3c9d&X-Amz-Security-Token=IQoJb3JpZ2lu",
    "https://account.blob.core.windows.net/c/k?sv=2026&sig=Zm9vYmFy%3D",
    "Authorization: AWS4-HMAC-SHA256 Credential=AB/2026, Signature=abcdef0123",
    "{'authorization': 'Bearer abcdefghijkl'}",
    "sent Bearer abc.def.ghi0 to it",
    "hf_abcdefghijklmnopqrstuvwxyz",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
    "password: hunter2!",
    "token=0123456789abcdef0123",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----",
]
WORDS = ["p@ss", "word@", "AKIAIOSF", "ASIAIOSF", "K7MDENG", "FwoGZX", "0f3c9d", "IQoJ", "ABC%2F", "Zm9v", "abcdef", "abc.def", "eyJhbG"]
HIDDEN_WORDS = [*WORDS, "hunter2", "0123456789", "MIIEow", "EXAMPLEKEY", "dozjg"]
PLAIN = [
    "s3://bucket/key with spaces/a@b.png",
    "hf://datasets/user/repo@main/file.parquet",
    "/data/photos/token/secret/password.png",
    "prompt_tokens: 1200, output_tokens=5, next token: stop",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "asset 09ca48e75435e0ebb3f5 by 20261125T231359-1f0c52ab at http://127.0.0.1:9000",
    "write to alice@example.org",
]


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_hidden(text: str) -> None:
    clean = redact(text)
    assert "***" in clean
    assert not [word for word in HIDDEN_WORDS if word in clean], clean
    assert redact(clean) == clean, "once is enough"


@pytest.mark.parametrize("text", PLAIN)
def test_everything_else_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_the_environment_are_hidden_whatever_they_look_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("MY_TOKEN", KEY[:10])  # begins like the other
    monkeypatch.setenv("HF_TOKEN", "short")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    assert redact(f"it said {KEY}, in short, of /home/me/key.json, disabled") == "it said ***, in short, of /home/me/key.json, disabled"


@settings(max_examples=30)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_values_keep_their_shape(value: object) -> None:
    assert json.dumps(redact_values({"k": value, "secret": "://u:p@h"})).count("p@h") == 0
    assert redact_values([value, 1.5, True])[1:] == [1.5, True]


def test_a_file_is_only_rewritten_for_a_secret(tmp_path: Path) -> None:
    log, temp = tmp_path / "a.log", tmp_path / "temp"
    log.write_bytes(b"one\r\n\xff two\n")
    before = log.stat()
    redact_file(log, temp)
    assert (log.stat().st_ino, log.read_bytes(), temp.exists()) == (before.st_ino, b"one\r\n\xff two\n", False)
    log.write_bytes(b"one\r\n\xff password=two\nthree")
    redact_file(log, temp)
    assert (log.read_bytes(), temp.exists()) == (b"one\r\n\xff password=***\nthree", False)


def test_run_records_and_failed_rows_hold_none(tmp_path: Path) -> None:
    from corpora import fake_job

    store = open_store(str(tmp_path))
    record = RunRecord.new(fake_job(source={"input": "https://me:hunter2@host/list.jsonl"}))
    record.write(store, status="failed", summary={"warnings": ["aws_secret_access_key=hunter2"], "usage": {"output_tokens": 7}})
    text = store.read(f"{RUNS}/{record.run_id}.json").decode()
    assert "hunter2" not in text
    assert json.loads(text)["summary"] == {"warnings": ["aws_secret_access_key=***"], "usage": {"output_tokens": 7}}

    sample = Sample(0, Asset("a", "a.png"))
    sample.fail("http", "GET https://host/a.png?X-Amz-Signature=hunter2 gave 403")
    assert sample.failure is not None
    assert sample.failure.message == "GET https://host/a.png?X-Amz-Signature=*** gave 403"
