"""The server process: its socket, its time limits for connections, and its shutdown."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dagflow import UserError
from dagflow.remote.worker import Worker

HEADER_TIMEOUT = 10.0  # seconds for a request's headers to arrive
KEEP_ALIVE = 15  # seconds that an idle connection stays open
MAX_CONNECTIONS = 256  # further ones are turned away
LINGER = 1.0  # seconds before a turned-away connection is closed, so that it receives the answer
ANSWER = "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with two more limits: headers must arrive within HEADER_TIMEOUT, and a
    connection above MAX_CONNECTIONS is turned away without harm to the earlier ones."""

    _header_timer: asyncio.TimerHandle | None = None
    _turned_away = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio only does this for its own sockets; without it an answer waits 40 ms for an ACK
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > MAX_CONNECTIONS:
            self.connections.discard(self)
            self._turned_away = True
            self._answer("503 Service Unavailable")
            self.loop.call_later(LINGER, transport.close)
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self._turned_away:
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # headers are still to come
            self._start_timer()
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT, self._give_up)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._answer("408 Request Timeout")
            self.transport.close()

    def _answer(self, status: str) -> None:
        self.transport.write(ANSWER.format(status=status).encode())


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises UserError if it is not available."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, TypeError) as error:  # TypeError: a name that is not encodable
        raise UserError(f"cannot listen on {host} port {port}: {error}") from error


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: ASGIApp, worker: Worker, listening: socket.socket, when_loaded: Callable[[], None]
) -> None:
    """Serve until a signal arrives. Raises what the reward raised if it cannot be built."""
    server = uvicorn.Server(_settings(app))

    def look(loaded: Future[None]) -> None:
        if loaded.exception() is None:
            when_loaded()
        else:
            server.should_exit = True

    worker.loaded.add_done_callback(look)
    worker.start()
    server.run(sockets=[listening])
    if worker.loaded.done():
        worker.loaded.result()


def _settings(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=5,
    )


def exit_with_parent() -> None:
    """End this process, and those it started, when its parent ends.

    The parent's end closes our standard input, even after SIGKILL. But another process may have
    inherited the other end of that pipe, so the parent's process id is watched too.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        readable, _, _ = select.select([0], [], [], 1.0)
        if readable and not os.read(0, 4096):
            break
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
