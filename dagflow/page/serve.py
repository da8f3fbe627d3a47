"""Serves the page: rebuilds it when a run's files change; the page itself asks for new versions."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from dagflow.errors import UserError
from dagflow.page.build import build

FILES = (
    "*.toml",
    "*.json",
    "*.jsonl",
    "samples/*.png",
    "samples/*.json",
    "checkpoints/*/state.json",
)
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Page:
    """The current page of some runs, built once for each state of their files."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._lock = threading.Lock()
        self._version, self._text = "", ""

    def version(self) -> str:
        """A word that changes when a file does that the page is made from."""
        state = hashlib.sha256()
        for folder in self.folders:
            for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
                with contextlib.suppress(FileNotFoundError):  # replaced just now
                    stat = path.stat()
                    state.update(bytes(path) + f" {stat.st_mtime_ns} {stat.st_size}\n".encode())
        return state.hexdigest()[:16]

    def text(self) -> str:
        """The page. Raises UserError if a folder is no longer a run."""
        with self._lock:
            version = self.version()  # before reading: what comes in between is shown next time
            if version != self._version:
                self._text = build(self.folders, version)
                self._version = version
            return self._text


def create_app(folders: Sequence[Path]) -> Starlette:
    """`/` is the page, `/version` a word that changes with it."""
    page = Page(folders)

    def show(request: Request) -> Response:
        try:
            return HTMLResponse(page.text(), headers=HEADERS)
        except UserError as error:
            return PlainTextResponse(str(error), status_code=404, headers=HEADERS)

    def version(request: Request) -> Response:
        return PlainTextResponse(page.version(), headers=HEADERS)

    return Starlette(routes=[Route("/", show), Route("/version", version)])


def serve(folders: Sequence[Path], listening: socket.socket) -> None:
    """Serve until a signal comes."""
    settings = uvicorn.Config(
        create_app(folders),
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listening])
