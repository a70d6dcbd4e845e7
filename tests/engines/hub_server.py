"""A hub of our own: enough of the Hugging Face API for one snapshot download."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

_COMMIT = "0" * 40


class HubServer:
    """Serves the files of one folder as the repository ``owner/name``, whatever its name."""

    def __init__(self, folder: Path) -> None:
        self._files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        self.url = ""
        self.downloads: list[str] = []

    async def info(self, _request: web.Request) -> web.Response:
        """GET /api/models/OWNER/NAME/revision/main."""
        siblings = [{"rfilename": name} for name in self._files]
        return web.json_response({"id": "x/y", "sha": _COMMIT, "siblings": siblings})

    async def tree(self, _request: web.Request) -> web.Response:
        """GET /api/models/OWNER/NAME/tree/REVISION."""
        return web.json_response(
            [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in self._files.items()
            ]
        )

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        """HEAD and GET /OWNER/NAME/resolve/REVISION/FILE."""
        path = self._files[request.match_info["file"]]
        if request.method == "GET":
            self.downloads.append(path.name)
        headers = {"X-Repo-Commit": _COMMIT, "ETag": f'"{_etag(path)}"'}
        return web.Response(body=path.read_bytes(), headers=headers)

    async def root(self, _request: web.Request) -> web.Response:
        """HEAD /: the probe."""
        return web.Response()


@asynccontextmanager
async def hub_server(folder: Path) -> AsyncIterator[HubServer]:
    """Run it on a free port of localhost."""
    server = HubServer(folder)
    app = web.Application()
    app.router.add_get("/", server.root)
    app.router.add_get("/api/models/{owner}/{name}/revision/{revision}", server.info)
    app.router.add_get("/api/models/{owner}/{name}/tree/{revision}", server.tree)
    app.router.add_get("/{owner}/{name}/resolve/{revision}/{file}", server.resolve)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        yield server
    finally:
        await runner.cleanup()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
