"""The few endpoints of the Hugging Face hub that reading a dataset's files needs, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_ERROR_CODES = {"Entry not found": "EntryNotFound", "Repository not found": "RepoNotFound", "Revision not found": "RevisionNotFound"}


class FakeHub:
    """Serves the files of repositories: `OWNER/NAME` -> path -> content. token: if set, whoever does not send it is refused."""

    def __init__(self, repositories: Mapping[str, dict[str, bytes]], token: str | None = None) -> None:
        self.repositories, self.token = repositories, token
        self.asked: Counter[str] = Counter()
        self.bytes_sent = 0

    def answer(self, method: str, path: str, query: Mapping[str, list[str]]) -> tuple[int, Any]:
        """Status and body, bytes or JSON, of one request; path without the leading slash."""
        parts = path.removeprefix("api/").removeprefix("datasets/").removeprefix("models/").split("/")
        repository, (action, revision, *rest) = "/".join(parts[:2]), [*parts[2:], "", ""]
        files, place = self.repositories.get(repository), "/".join(part for part in rest if part)
        self.asked[action or "info"] += 1
        if files is None:
            return 404, {"error": "Repository not found"}
        if revision not in ("", "main", _COMMIT):
            return 404, {"error": "Revision not found"}
        match action:
            case "" | "revision":
                return 200, {
                    "id": repository,
                    "sha": _COMMIT,
                    "private": False,
                    "siblings": [{"rfilename": name} for name in files],
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                }
            case "tree":
                is_recursive = query.get("recursive", ["False"])[0].lower() == "true"
                return self._tree(files, f"{place}/" if place else "", is_recursive)
            case "paths-info":
                return 200, [_entry(name, files) for name in query["paths"] if _entry(name, files)]
            case "resolve" if place in files:
                return 200, files[place]
        return 404, {"error": "Entry not found"}

    @staticmethod
    def _tree(files: dict[str, bytes], prefix: str, is_recursive: bool) -> tuple[int, Any]:
        below = [name for name in files if name.startswith(prefix)]
        names = set(below) if is_recursive else {prefix + name.removeprefix(prefix).split("/")[0] for name in below}
        return (200, [_entry(name, files) for name in sorted(names)]) if names else (404, {"error": "Entry not found"})


def _entry(name: str, files: dict[str, bytes]) -> dict[str, Any] | None:
    if name in files:
        return {"type": "file", "path": name, "size": len(files[name]), "oid": hashlib.sha1(files[name]).hexdigest()}
    return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0} if any(f.startswith(f"{name}/") for f in files) else None


@contextmanager
def serving(hub: FakeHub) -> Iterator[str]:
    """Run it; yields its address, for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            url, body = urlsplit(self.path), self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            query = json.loads(body) if body.startswith("{") else parse_qs(body or url.query)
            status, found = hub.answer(self.command, unquote(url.path).strip("/"), query)
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                status, found = 401, {"error": "Invalid credentials"}
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            etag = hashlib.sha1(data).hexdigest()
            wanted = self.headers.get("Range", "").removeprefix("bytes=")
            self.send_response_only(206 if wanted and status == 200 else status)
            if wanted and status == 200:
                first, _, last = wanted.partition("-")
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                data = data[int(first) : int(last or len(data)) + 1]
            for name, value in (("ETag", f'"{etag}"'), ("X-Repo-Commit", _COMMIT), ("Content-Length", str(len(data)))):
                self.send_header(name, value)
            if status == 401:
                self.send_header("X-Error-Code", "GatedRepo")
            elif status == 404:
                self.send_header("X-Error-Code", _ERROR_CODES[found["error"]])
            self.end_headers()
            if self.command != "HEAD":
                hub.bytes_sent += len(data)
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = handle_any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
