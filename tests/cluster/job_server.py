"""Ray's job server as far as its client asks it, without a Ray behind it: it keeps what was submitted and lets tests say how jobs end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from aiohttp import web

LOGS = "listing\n100 %\n"


class JobServer:
    """packages: name -> zip file. jobs: id -> details as the API gives them."""

    def __init__(self) -> None:
        self.packages: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.address = ""

    def end(self, submission_id: str, status: str, exit_code: int | None = None) -> None:
        self.jobs[submission_id] |= {"status": status, "driver_exit_code": exit_code, "message": f"it {status.lower()}", "end_time": 2}

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/packages/{protocol}/{name}", self._has_package),
                web.put("/api/packages/{protocol}/{name}", self._keep_package),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/", self._list),
                web.get("/api/jobs/{id}", self._status),
                web.get("/api/jobs/{id}/logs", self._logs),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
                web.post("/api/jobs/{id}/stop", self._stop),
            ]
        )
        return app

    def _job(self, request: web.Request) -> dict[str, Any]:
        try:
            return self.jobs[request.match_info["id"]]
        except KeyError:
            raise web.HTTPNotFound(text="Job does not exist") from None

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": version("ray"), "ray_commit": "", "session_name": ""})

    async def _has_package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _keep_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        details = {"type": "SUBMISSION", "status": "RUNNING", "start_time": len(self.jobs), "end_time": None, "message": ""}
        self.jobs[asked["submission_id"]] = {**details, **asked}
        return web.json_response({"job_id": asked["submission_id"], "submission_id": asked["submission_id"]})

    async def _list(self, _: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._job(request))

    async def _logs(self, request: web.Request) -> web.Response:
        self._job(request)
        return web.json_response({"logs": LOGS})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        job = self._job(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for line in LOGS.splitlines(keepends=True):
            await socket.send_str(line)
        if job["status"] == "RUNNING":
            self.end(job["submission_id"], "SUCCEEDED", 0)
        await socket.close()
        return socket

    async def _stop(self, request: web.Request) -> web.Response:
        job = self._job(request)
        was_running = job["status"] == "RUNNING"
        if was_running:
            self.end(job["submission_id"], "STOPPED")
        return web.json_response({"stopped": was_running})


@contextmanager
def job_server() -> Iterator[JobServer]:
    """A server in a thread of its own."""
    server, loop, ready = JobServer(), asyncio.new_event_loop(), threading.Event()
    runner = web.AppRunner(server.app())

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    def serve() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
