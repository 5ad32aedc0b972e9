"""A real S3 server in a process of its own (moto), and a proxy in front of it that misbehaves."""

from __future__ import annotations

import http.client
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from datagen.job import S3Options
from datagen.s3 import patiently

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests", "AWS_DEFAULT_REGION": "us-east-1"}

_BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
_BROKEN = b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>'
FAULTS = ("slow_down", "internal_error", "reset_before", "reset_after", "cut", "stall")


@contextmanager
def moto_server() -> Iterator[str]:
    """Run the server; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | CREDENTIALS)
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the S3 server ended at once"
                assert time.monotonic() < deadline, "the S3 server does not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def options_of(endpoint: str, **more: Any) -> S3Options:
    """Options for the test server: less patient than the defaults, but not for a slow machine."""
    return S3Options(endpoint_url=endpoint, **{"timeout_s": 5.0, "patience_s": 60.0, "lease_heartbeat_s": 0.2, "lease_ttl_s": 30.0, **more})


def new_bucket(options: S3Options) -> str:
    """Make a bucket; its name."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    patiently(options, name, lambda s3: s3.create_bucket(Bucket=name))
    return name


class FaultyProxy:
    """Stands between boto3 and the server, and does `choose(method, path)` to each request: one of FAULTS, or None.

    slow_down, internal_error: the server is not asked. reset_before, reset_after: the connection is reset before or after the server
    did what was asked. cut: half of the answer. stall: the answer comes after the client has given up.

    The server sees one request at a time: moto tests a condition and then writes, where S3 does both in one step.
    """

    def __init__(self, target: str, choose: Callable[[str, str], str | None], stall_s: float = 3.0) -> None:
        self.done: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.choose = choose
        self._target = target.removeprefix("http://")
        self._stall_s = stall_s
        self._one_at_a_time = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._serve(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests[handler.command] += 1
        fault = self.choose(handler.command, handler.path)
        if fault:
            self.done[fault] += 1
        if fault in ("slow_down", "internal_error"):
            return self._answer(handler, *((503, _BUSY) if fault == "slow_down" else (500, _BROKEN)))
        if fault == "reset_before":
            return self._reset(handler)
        upstream = http.client.HTTPConnection(self._target, timeout=30)
        try:
            with self._one_at_a_time:
                upstream.request(handler.command, handler.path, body, dict(handler.headers))
                answer = upstream.getresponse()
                data = answer.read()
            if fault == "reset_after":
                return self._reset(handler)
            if fault == "stall":
                time.sleep(self._stall_s)
                return self._reset(handler)
            self._answer(handler, answer.status, data, dict(answer.getheaders()), cut=fault == "cut")
        finally:
            upstream.close()
        return None

    def _answer(self, handler: Any, status: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        headers = headers or {"Content-Type": "application/xml"}
        handler.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                handler.send_header(name, value)
        handler.send_header(
            "Content-Length", headers.get("Content-Length", str(len(data))) if handler.command == "HEAD" else str(len(data))
        )
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._reset(handler)

    @staticmethod
    def _reset(handler: Any) -> None:
        handler.wfile.flush()
        handler.close_connection = True
        # Closing with an empty linger sends RST instead of FIN.
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()


def often(rng: random.Random, share: float, faults: tuple[str, ...] = FAULTS) -> Callable[[str, str], str | None]:
    """A fault for this share of the requests. Stalls are rare: each costs a whole time-out."""
    weights = [0.1 if fault == "stall" else 1.0 for fault in faults]
    return lambda method, path: rng.choices(faults, weights)[0] if rng.random() < share else None


def once(*faults: str, methods: str = "PUT") -> Callable[[str, str], str | None]:
    """These faults for the first requests of a method, one each, then none."""
    left = list(faults)
    return lambda method, path: left.pop(0) if left and method in methods else None
