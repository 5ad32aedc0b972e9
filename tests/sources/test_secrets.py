"""Signed URLs and passwords: refused or hidden by name, and in no table, log or report."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import fake_job
from typer.testing import CliRunner

from datagen.cli import app
from datagen.errors import SourceError
from datagen.job import SourceOptions
from datagen.redaction import redact, signed_parameter
from datagen.run import run_job
from datagen.sources import open_source

PICTURE = Path(__file__).parents[2] / "samples" / "media" / "image-000000.jpg"
LEAK = "l3aked"
SIGNED = {
    "X-Amz-Signature": f"https://b.s3.amazonaws.com/k.jpg?X-Amz-Date=1&X-Amz-Signature={LEAK}",
    "X-Amz-Credential": f"s3://bucket/k.jpg?X-Amz-Credential={LEAK}%2F2026&x=1",
    "X-Goog-Signature": f"gs://bucket/k.jpg?X-Goog-Signature={LEAK}",
    "sig": f"https://a.blob.core.windows.net/c/k.jpg?sv=2024&sig={LEAK}%2B%3D",
    "token": f"https://host/k.jpg?token={LEAK}",
    "AWSAccessKeyId": f"https://b.s3.amazonaws.com/k.jpg?AWSAccessKeyId={LEAK}&Expires=1",
    "Signature": f"https://cdn/k.jpg?Expires=1&Signature={LEAK}~_&Key-Pair-Id={LEAK}",
    "key": f"https://host/k.jpg?key={LEAK}",
    "access_token": f"photos/k.jpg?w=1&access_token={LEAK}",
    "X-AMZ-SECURITY-TOKEN": f"S3://bucket/k.jpg?X-AMZ-SECURITY-TOKEN={LEAK}",
    "X-Amz-Security-Token": f"s3://bucket/k.jpg?X%2DAmz%2DSecurity%2DToken={LEAK}",
    "q-signature": f"https://cos/k.jpg?q-signature={LEAK}",
}


def listed(folder: Path, rows: list[dict], name: str = "m.jsonl") -> list:
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(open_source(SourceOptions(input=str(path), allow_local_uris=True)))


@pytest.mark.parametrize("name", SIGNED)
def test_a_row_whose_uri_is_signed_fails_by_the_parameters_name(name: str, tmp_path: Path) -> None:
    signed, whole = listed(tmp_path, [{"uri": SIGNED[name]}, {"uri": str(PICTURE)}])
    assert whole.failure is None
    assert signed.failure is not None
    assert signed.failure.code in ("refused_uri", "unsupported_uri")
    assert LEAK not in repr(signed)
    assert "=***" in signed.uri
    assert signed_parameter(SIGNED[name]) == name
    again = listed(tmp_path, [{"uri": SIGNED[name].replace(LEAK, "an0ther")}])
    assert [asset.asset_id for asset in again] == [signed.asset_id]


def test_ordinary_queries_and_names_are_left_alone(tmp_path: Path) -> None:
    for uri in (
        "https://host/k.jpg?w=300&tokens=5&keyword=dog",
        "s3://bucket/a=b/key=1.jpg",
        "photos/design=3.jpg",
        "shards/0.tar#key=1.jpg",
    ):
        assert signed_parameter(uri) is None
        assert redact(uri) == uri
    [asset] = listed(tmp_path, [{"uri": "a.jpg", "source": "https://host/?w=300", "caption": "the token: is here, password: no"}])
    assert asset.extra == {"source": "https://host/?w=300", "caption": "the token: is here, password: no"}
    assert asset.failure is None


@pytest.mark.parametrize("name", ["m.jsonl", "m.parquet"])
def test_what_passes_through_holds_no_secret(name: str, tmp_path: Path) -> None:
    row = {
        "uri": "a.jpg",
        "source": SIGNED["sig"],
        "nested": {"urls": [SIGNED["token"], "http://me:l3aked@host/x"]},
        "license": SIGNED["key"],
    }
    [asset] = listed(tmp_path, [row], name)
    assert LEAK not in repr(asset)
    assert asset.extra["source"] == "https://a.blob.core.windows.net/c/k.jpg?sv=2024&sig=***"
    assert asset.failure is None


def test_an_asset_id_with_a_secret_is_refused(tmp_path: Path) -> None:
    [asset] = listed(tmp_path, [{"uri": "a.jpg", "asset_id": SIGNED["token"]}])
    assert asset.failure is not None
    assert asset.failure.code == "manifest_bad_id"
    assert LEAK not in repr(asset)


def test_an_input_that_is_signed_is_refused_and_not_repeated() -> None:
    with pytest.raises(SourceError, match="X-Goog-Signature") as refused:
        open_source(SourceOptions(input=SIGNED["X-Goog-Signature"]))
    assert LEAK not in refused.value.message


def test_a_run_leaves_no_secret_anywhere(tmp_path: Path) -> None:
    rows = [{"uri": uri, "from": uri} for uri in SIGNED.values()] + [{"uri": str(PICTURE), "from": SIGNED["sig"]}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    job = fake_job(source={"input": str(tmp_path / "m.jsonl")}, output=str(output), run={"executor": "inprocess"})
    summary = run_job(job)
    assert summary.statuses == {"failed": len(SIGNED), "ok": 1}
    for path in output.rglob("*"):
        if path.suffix == ".parquet":
            assert LEAK not in str(pq.read_table(path).to_pylist()), path
        elif path.is_file():
            assert LEAK not in path.read_text(errors="replace"), path
    for command in (["check", str(output)], ["stats", str(output)], ["status", str(output)]):
        assert LEAK not in CliRunner().invoke(app, command).output
