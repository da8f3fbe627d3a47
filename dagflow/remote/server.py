"""A reward over HTTP: who may ask, how much at once, and for how long."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from dagflow import PluginError, Prompt, __version__
from dagflow.remote import wire
from dagflow.remote.wire import WireError
from dagflow.remote.worker import Worker

logger = logging.getLogger("dagflow.serve")

LINGER = 5.0  # seconds to keep reading a refused body, so that the client reads the refusal


@dataclass(frozen=True)
class Limits:
    """What the server accepts; more is refused, not queued."""

    max_images: int = 256  # per request
    max_bytes: int = 128 * 2**20  # per request
    max_requests: int = 64  # in progress at once: arriving, waiting or being scored
    max_held: int = 4  # times max_bytes: the bytes of all those together
    body_timeout: float = 30.0  # seconds for a request's body to arrive


class Gate:
    """Counts requests and bytes in progress."""

    def __init__(self, limits: Limits) -> None:
        self._requests, self._bytes = limits.max_requests, limits.max_held * limits.max_bytes

    @asynccontextmanager
    async def admit(self, size: int) -> AsyncIterator[None]:
        """Raises WireError 503 if there is no room for a request of that many bytes."""
        if not self._requests or size > self._bytes:
            raise WireError(503, "overloaded", "the server has too many requests in progress")
        self._requests -= 1
        self._bytes -= size
        try:
            yield
        finally:
            self._requests += 1
            self._bytes += size


def create_app(worker: Worker, serves: str, token: str, limits: Limits) -> Starlette:
    """The application: GET /health and /ready, POST /score.

    `serves` describes reward and options; answers carry it. An empty token admits everybody.
    """
    gate = Gate(limits)

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        _check_token(request, token)
        if not worker.ready:
            raise WireError(503, "loading", "the reward is still loading")
        state = {"dagflow": __version__, "wire": wire.WIRE_VERSION, "serves": serves}
        state |= {key: asdict(limits)[key] for key in ("max_images", "max_bytes")}
        return JSONResponse(state)

    async def score(request: Request) -> Response:
        _check_token(request, token)
        _check_version(request)
        size = _length(request, limits.max_bytes)
        if not worker.ready:
            raise WireError(503, "loading", "the reward is still loading")
        try:
            async with gate.admit(size):
                payload = await _read(request, limits.body_timeout)
                images, prompts = await asyncio.to_thread(
                    wire.decode_request, payload, limits.max_images
                )
                del payload
                scores = await _scores(worker, request, images, prompts)
        except asyncio.CancelledError:  # the server's grace period for open requests has ended
            raise WireError(503, "stopping", "the server is stopping") from None
        return Response(wire.encode_scores(scores, serves), media_type=wire.CONTENT_TYPE)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/ready", ready),
            Route("/score", score, methods=["POST"]),
        ],
        exception_handlers={WireError: _refuse, ClientDisconnect: _nobody_listens},
    )


def _check_token(request: Request, token: str) -> None:
    given = request.headers.get("authorization", "").encode("latin-1")
    if token and not hmac.compare_digest(given, f"Bearer {token}".encode("latin-1")):
        raise WireError(401, "token", "the token is missing or wrong")


def _check_version(request: Request) -> None:
    version = request.headers.get(wire.WIRE_HEADER, "none")
    if version != str(wire.WIRE_VERSION):
        raise WireError(
            400,
            "wire-version",
            f"this server (dagflow {__version__}) speaks wire version {wire.WIRE_VERSION}; the "
            f"request's is {version[:20]}",
        )


def _length(request: Request, most: int) -> int:
    try:
        length = int(request.headers["content-length"])
    except (KeyError, ValueError):
        raise WireError(411, "length", "a request must state its Content-Length") from None
    if length > most:
        raise WireError(413, "too-large", f"the request has {length} bytes; {most} at most")
    return length


async def _read(request: Request, seconds: float) -> bytes:
    try:
        async with asyncio.timeout(seconds):
            return b"".join([part async for part in request.stream()])
    except TimeoutError:
        message = f"the body did not arrive within {seconds:g} s"
        raise WireError(408, "timeout", message) from None


async def _scores(
    worker: Worker, request: Request, images: Tensor, prompts: list[Prompt]
) -> Tensor:
    """Wait for the worker, and withdraw the job if the client goes away first."""
    job = asyncio.wrap_future(worker.submit(images, prompts))
    gone = asyncio.create_task(_disconnected(request))
    either: list[asyncio.Future[Any]] = [job, gone]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    except PluginError as error:
        logger.error("the reward %s", error, exc_info=error.__cause__)
        raise WireError(500, "reward", str(error)) from error
    finally:
        job.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(request: Request, error: Exception) -> Response:
    """A typed answer. First read and drop the rest of the body for a while: a client whose
    connection is closed while it still sends often loses the answer."""
    assert isinstance(error, WireError)
    try:
        async with asyncio.timeout(LINGER if error.status != 408 else 0):
            async for _ in request.stream():
                pass
    except (TimeoutError, ClientDisconnect, RuntimeError):
        pass
    body = json.dumps({"error": {"kind": error.kind, "message": error.message}})  # in ASCII
    headers = {"connection": "close"}
    return Response(body, error.status, headers, media_type="application/json")


async def _nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=400)
