"""Stores that are particular: without checksum headers, for everybody, or with readers that pay. Each goes through all that we ask."""

from __future__ import annotations

import http.client
import io
import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from command_line import Datagen
from PIL import Image
from pydantic import ValidationError
from s3_server import FaultyProxy, options_of

from datagen import remote
from datagen.errors import OutputBusyError, StorageError
from datagen.job import S3Options
from datagen.s3 import client, list_objects
from datagen.write import open_store, s3

_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20261128/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
Refusal = Callable[[str, Mapping[str, str]], tuple[int, str, str] | None]


@contextmanager
def stand_in(target: str, refuse: Refusal, clock_s: float = 0.0, written_s: float = 0.0) -> Iterator[str]:
    """A store in front of the real one that refuses some requests: (method, headers in lower case) -> status, code, message.

    clock_s: its clock is so far ahead. written_s: so much later objects seem to have been written.
    """
    host, port = target.removeprefix("http://").split(":")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refused = refuse(self.command, {name.lower(): value for name, value in self.headers.items()})
            if refused is not None:
                status, code, message = refused
                data = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
                self.reply(status, [("Content-Type", "application/xml")], data, len(data))
                return
            upstream = http.client.HTTPConnection(host, int(port), timeout=60)
            # The real one lets nobody in who does not say who asks.
            upstream.request(self.command, self.path, body, {**_SIGNED, **dict(self.headers)})
            found = upstream.getresponse()
            data = found.read()
            kept = [pair for pair in found.getheaders() if pair[0].lower() not in ("connection", "transfer-encoding", "content-length")]
            moved = {"date": clock_s, "last-modified": written_s}
            kept = [(name, _later(value, moved[name.lower()]) if name.lower() in moved else value) for name, value in kept]
            size = found.getheader("Content-Length") if self.command == "HEAD" else len(data)
            self.reply(found.status, kept, data, size or 0)

        def reply(self, status: int, headers: list[tuple[str, str]], data: bytes, size: int | str) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _later(time: str, seconds: float) -> str:
    return format_datetime(parsedate_to_datetime(time) + timedelta(seconds=seconds), usegmt=True)


def without_checksums(method: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
    if any(name.startswith("x-amz-checksum") or name in ("x-amz-sdk-checksum-algorithm", "x-amz-trailer") for name in headers):
        return 501, "NotImplemented", "A header you provided implies functionality that is not implemented"
    return None


def for_everybody(method: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
    return (403, "AccessDenied", "Who are you?") if "authorization" in headers else None


def at_the_readers_cost(method: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
    return None if headers.get("x-amz-request-payer") == "requester" else (403, "AccessDenied", "Access Denied")


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_ONE_PUT_BYTES", 1 << 20)
    monkeypatch.setattr(s3, "_UPLOAD_PART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "_ONE_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(s3, "_COPY_PART_BYTES", 5 << 20)


def use(options: S3Options, bucket: str) -> None:
    """Everything that is ever asked of a store."""
    store, data = open_store(f"s3://{bucket}/corpus", options), random.Random(0).randbytes((6 << 20) + 7)
    with store.lease({"run_id": "r"}):
        store.write("_staging/r/small", b"small")
        store.write("_staging/r/large", data)
        store.write("_staging/r/left", b"left")
        store.move("_staging/r/small", "assets/small")
        store.move("_staging/r/large", "assets/large")
        assert store.read("assets/small") == b"small"
        assert store.read("assets/large") == data
        with store.open_input("assets/large") as file:
            file.seek(len(data) - 5)
            assert file.read() == data[-5:]
        assert store.exists("assets/small")
        assert [path for path, _ in store.list("assets")] == ["assets/large", "assets/small"]
        store.delete_tree("_staging/r")
        store.clean()
        store.delete("assets/small")
    uri = f"s3://{bucket}/corpus/assets/large"
    assert [file.uri for file in remote.list_files(f"s3://{bucket}/corpus/assets", options)] == [uri]
    assert remote.version_of(uri, options)
    assert next(iter(list_objects(options, bucket, "corpus/assets/")))["Size"] == len(data)
    target = io.BytesIO()
    remote.download(uri, target, options, 1 << 30)
    assert target.getvalue() == data
    with remote.open_file(uri, options) as opened:
        assert opened.read(3) == data[:3]
    assert [path for path, _ in store.list() if not path.startswith("_datagen/")] == ["assets/large"]


@pytest.mark.parametrize(
    ("refuse", "more", "code", "hint"),
    [
        (without_checksums, {"checksums": "when_required"}, "not_supported", "s3.checksums: when_required"),
        (for_everybody, {"anonymous": True}, "access_denied", "aws sts get-caller-identity"),
        (at_the_readers_cost, {"requester_pays": True}, "access_denied", "s3.requester_pays: true"),
    ],
    ids=["checksums", "anonymous", "requester_pays"],
)
def test_a_particular_store_is_used_whole_and_says_what_it_needs(
    s3_address: str, bucket: str, small_limits: None, refuse: Refusal, more: dict[str, object], code: str, hint: str
) -> None:
    with stand_in(s3_address, refuse) as address:
        use(options_of(address, **more), bucket)
        plain = open_store(f"s3://{bucket}/other", options_of(address))
        with pytest.raises(StorageError) as raised:
            plain.write("x", b"x")
    assert raised.value.code == code
    assert hint in raised.value.message


def test_nobody_is_asked_for_credentials_where_nothing_is_signed(
    s3_address: str, bucket: str, options: S3Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(options).put_object(Bucket=bucket, Key="x/1.png", Body=b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with stand_in(s3_address, for_everybody) as address:
        with pytest.raises(StorageError, match=r"s3\.anonymous: true") as raised:
            list(remote.list_files(f"s3://{bucket}/x", options_of(address, region="us-east-1")))
        assert raised.value.code == "no_credentials"
        assert len(list(remote.list_files(f"s3://{bucket}/x", options_of(address, anonymous=True)))) == 1


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD or a valid sha256 value, trailer found"),
        (400, "XAmzContentSHA256Mismatch", "The provided x-amz-content-sha256 header does not match what was computed."),
        (400, "InvalidRequest", "Unsupported header received: x-amz-sdk-checksum-algorithm"),
        (501, "NotImplemented", "Transfer-Encoding: aws-chunked is not implemented"),
    ],
)
def test_however_a_store_says_that_it_knows_no_checksums_the_option_is_named(
    s3_address: str, bucket: str, status: int, code: str, message: str
) -> None:
    def refuse(method: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        return (status, code, message) if without_checksums(method, headers) else None

    with stand_in(s3_address, refuse) as address:
        with pytest.raises(StorageError, match=r"try s3\.checksums: when_required"):
            open_store(f"s3://{bucket}/a", options_of(address)).write("x", b"x")
        open_store(f"s3://{bucket}/a", options_of(address, checksums="when_required")).write("x", b"x")


def test_nobody_can_be_billed_for_what_is_not_signed() -> None:
    with pytest.raises(ValidationError, match="anonymous and requester_pays exclude each other"):
        S3Options(anonymous=True, requester_pays=True)


def test_a_run_into_an_older_store(datagen: Datagen, tmp_path: Path, s3_address: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "p").mkdir()
    for index in range(3):
        Image.new("RGB", (32, 24), (index, 9, 9)).save(tmp_path / "p" / f"{index}.png")
    (tmp_path / "job.yaml").write_text(
        "version: 1\nperceive: {engine: fake}\ndescribe: {engine: fake}\nrun: {executor: inprocess}\ns3: {lease_heartbeat_s: 0.2}"
    )
    with stand_in(s3_address, without_checksums) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        command = ["run", tmp_path / "job.yaml", "-i", tmp_path / "p", "-o", f"s3://{bucket}/corpus"]
        refused = datagen(*command)
        assert refused.returncode == 2
        assert "s3.checksums: when_required" in " ".join(refused.stderr.split())
        done = datagen(*command, "--set", "s3.checksums=when_required")
        assert done.returncode == 0, done.stderr
        assert "3 ok" in done.stdout


# --- the lease -------------------------------------------------------------------------------------------------------------------

OTHERS = {"owner": {"run_id": "elsewhere"}, "nonce": "x", "beat": 1, "released": False, "process": None}


@pytest.mark.parametrize("shift_s", [-3600.0, 0.0, 3600.0])
def test_a_lease_is_as_old_as_the_stores_clock_says_and_not_ours(s3_address: str, bucket: str, shift_s: float) -> None:
    """Another machine has just written it, and goes on: whatever this machine's clock says, it lives."""
    over = threading.Event()

    def live() -> None:
        beat = 0
        while not over.wait(0.05):
            beat += 1
            content = json.dumps({**OTHERS, "beat": beat}).encode()
            client(options_of(s3_address)).put_object(Bucket=bucket, Key="corpus/_datagen/lease.json", Body=content)
            begun.set()

    begun = threading.Event()
    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert begun.wait(60)
        with stand_in(s3_address, lambda *_: None, clock_s=shift_s, written_s=shift_s) as address:
            store = open_store(f"s3://{bucket}/corpus", options_of(address))
            with pytest.raises(OutputBusyError, match="run_id elsewhere"):
                store.lease({"run_id": "second"}).__enter__()
    finally:
        over.set()
        thread.join()


def test_a_lease_that_is_old_by_the_stores_clock_is_taken_without_waiting_once_more(s3_address: str, bucket: str) -> None:
    client(options_of(s3_address)).put_object(Bucket=bucket, Key="corpus/_datagen/lease.json", Body=json.dumps(OTHERS).encode())
    with stand_in(s3_address, lambda *_: None, clock_s=3600.0) as address:
        # By this machine's clock it is new, and would be watched for an hour.
        patient = options_of(address, lease_ttl_s=3000.0)
        with open_store(f"s3://{bucket}/corpus", patient).lease({"run_id": "second"}):
            pass


def test_the_holder_knows_its_own_lease_when_the_answer_to_its_taking_was_lost(s3_address: str, bucket: str) -> None:
    lost: list[str] = []

    def choose(method: str, path: str) -> str | None:
        if method == "PUT" and path.split("?")[0].endswith("/lease.json") and not lost:
            lost.append(path)
            return "reset_after"
        return None

    with FaultyProxy(s3_address, choose) as proxy:
        store = open_store(f"s3://{bucket}/corpus", options_of(proxy.address))
        with store.lease({"run_id": "one"}):
            store.write("assets/a", b"1")
    assert lost
    with open_store(f"s3://{bucket}/corpus", options_of(s3_address)).lease({"run_id": "two"}):
        pass
