"""A reward on a server, as the trainer sees it."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import torch
from pydantic import PositiveInt, TypeAdapter, ValidationError
from torch import Tensor

from dagflow import PluginError, Prompt, UserError, __version__
from dagflow.remote import wire

logger = logging.getLogger("dagflow.remote")

TOKEN_VARIABLE = "DAGFLOW_TOKEN"
MAX_BACKOFF = 30.0  # seconds
ASK_AGAIN = (429, 502, 503, 504)  # busy, loading or gone, as a server or a proxy says
PIECE = 2**18  # bytes


class Unreachable(Exception):
    """There is no server, or it is busy or still loading: worth another attempt."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server; in seconds, except `retries`."""

    connect_timeout: float
    read_timeout: float
    retries: int
    backoff: float

    @property
    def delays(self) -> list[float]:
        """The waits between attempts: doubling, and the same in every run."""
        return [min(self.backoff * 2.0 ** min(k, 99), MAX_BACKOFF) for k in range(self.retries)]


@dataclass(frozen=True)
class Versions:
    """The versions of a server's dagflow and wire format."""

    dagflow: str
    wire: int


@dataclass(frozen=True)
class Offer:
    """What a server says about itself."""

    serves: str
    max_images: PositiveInt
    max_bytes: PositiveInt


class RemoteReward:
    """Scores images by asking a server; returns what the reward itself would, bit for bit.

    A batch is one request if it fits the server's limits, else several. At most `in_flight`
    requests are under way at a time, including those of calls from other threads.
    Before another attempt, `moved` is asked for the server's current URL.

    Raises UserError if there is no usable server at the URL.
    """

    concurrency = 2  # a batch is scored while the next one travels
    own_timeout = True

    def __init__(
        self,
        url: str,
        token: str,
        patience: Patience,
        in_flight: int = 4,
        batch: int = 0,
        moved: Callable[[], str] | None = None,
    ) -> None:
        self._url = checked_url(url)
        self._moved = moved or (lambda: self._url)
        self._patience, self._in_flight, self._batch = patience, in_flight, batch
        self._http = _client(token, patience, in_flight)
        self._offer = self._handshake()

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Scores, float32 (B,), on the device of the images, float32 (B, 3, height, width).

        Raises PluginError if the server refuses, its reward raises, or it stays unreachable.
        """
        there = images.detach().to("cpu")
        size = self._chunk_size(there)
        chunks = [slice(k, k + size) for k in range(0, max(len(there), 1), size)]
        stop = threading.Event()
        if len(chunks) == 1:
            return self._score(there, prompts, stop).to(images.device)
        with ThreadPoolExecutor(self._in_flight) as pool:
            parts = [pool.submit(self._score, there[c], prompts[c], stop) for c in chunks]
            try:
                return torch.cat([part.result() for part in parts]).to(images.device)
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _chunk_size(self, images: Tensor) -> int:
        most = self._offer.max_bytes
        room = most - min(most // 8, wire.MAX_HEADER_BYTES)  # the rest is for the prompts
        by_bytes = max(1, room // wire.image_bytes(images))
        return min(self._offer.max_images, by_bytes, self._batch or self._offer.max_images)

    def _score(self, images: Tensor, prompts: Sequence[Prompt], stop: threading.Event) -> Tensor:
        payload = wire.encode_request(images, prompts)
        try:
            content = self._persist(lambda: self._ask("POST", "/score", payload), stop)
        except Unreachable as error:
            raise PluginError(f"{error}; gave up (retries = {self._patience.retries})") from error
        scores, serves = wire.decode_scores(content, len(images))
        if serves != self._offer.serves:
            raise PluginError(
                f"the server at {self._url} now serves {serves}; it was {self._offer.serves}"
            )
        return scores

    def _handshake(self) -> Offer:
        try:
            content = self._persist(lambda: self._ask("GET", "/ready"), threading.Event())
        except Unreachable as error:
            raise UserError(f"{error}. Start one with `dagflow serve NAME`.") from error
        except PluginError as error:
            raise UserError(f"{error}.") from error
        return read_offer(content, self._url)

    def _persist(self, ask: Callable[[], bytes], stop: threading.Event) -> bytes:
        """Ask until there is an answer. Raises Unreachable after the last attempt."""
        for delay in self._patience.delays:
            try:
                return ask()
            except Unreachable as error:
                logger.warning("%s; trying again in %g s", error, delay)
            if stop.wait(delay):
                raise Unreachable("another request has failed")
            self._url = self._moved()
        return ask()

    def _ask(self, method: str, path: str, payload: bytes = b"") -> bytes:
        try:
            answer = self._http.request(
                method,
                self._url + path,
                content=pieces(payload),
                headers={"content-length": str(len(payload))},
            )
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise Unreachable(f"no answer from the server at {self._url} ({reason})") from error
        if answer.status_code in ASK_AGAIN:
            _, message = error_of(answer.status_code, answer.content)
            raise Unreachable(f"the server at {self._url} is not ready: {message}")
        if answer.status_code != 200:
            raise _failure(self._url, answer.status_code, answer.content)
        return answer.content


def pieces(payload: bytes) -> Iterator[bytes]:
    """A body in parts: with each write the client copies the unsent rest of the current part."""
    for start in range(0, len(payload), PIECE):
        yield payload[start : start + PIECE]


def checked_url(url: str) -> str:
    """The URL without a final slash. Raises UserError unless it is http(s)://host[:port][/path]."""
    try:
        parts = httpx2.URL(url)
        good = parts.scheme in ("http", "https") and parts.host and not parts.userinfo
    except httpx2.InvalidURL:
        good = False
    if not good or "?" in url or "#" in url:
        raise UserError(f"'{url}' is not of the form http://HOST:PORT.")
    return url.rstrip("/")


def read_token(file: str) -> str:
    """The content of the file, else the value of DAGFLOW_TOKEN; empty if there is neither.

    Raises UserError if the file cannot be read or the token is not printable ASCII.
    """
    try:
        token = Path(file).read_text(encoding="utf-8") if file else os.environ.get(TOKEN_VARIABLE)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the token file '{file}' cannot be read: {error}") from error
    token = (token or "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token or (file and not token):
        raise UserError("a token must be printable ASCII without spaces, and not empty.")
    return token


def read_offer(content: bytes, url: str) -> Offer:
    """What a server's /ready says. Raises UserError if it is not ours, or of another version."""
    try:
        theirs = TypeAdapter(Versions).validate_json(content, strict=True)
        if theirs.wire != wire.WIRE_VERSION:
            raise UserError(
                f"the server at {url} (dagflow {theirs.dagflow}) speaks wire version {theirs.wire};"
                f" this dagflow ({__version__}) speaks version {wire.WIRE_VERSION}. Install the "
                f"same dagflow on both sides."
            )
        return TypeAdapter(Offer).validate_json(content, strict=True)
    except ValidationError:
        raise UserError(f"what answers at {url} is not `dagflow serve`.") from None


def error_of(status: int, content: bytes) -> tuple[str, str]:
    """Kind and message of a refusal, even if it is not from our server."""
    try:
        error = json.loads(content)["error"]
        return str(error["kind"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        text = content[:200].decode("utf-8", "replace").strip()
        return "unknown", f"HTTP {status} {text}".strip()


def _failure(url: str, status: int, content: bytes) -> PluginError:
    kind, message = error_of(status, content)
    if kind == "reward":
        return PluginError(f"on the server at {url}, the reward {message}")
    return PluginError(f"the server at {url} refused ({status} {kind}): {message}")


def _client(token: str, patience: Patience, in_flight: int) -> httpx2.Client:
    """A client without proxies: those of the environment are for other traffic."""
    headers = {wire.WIRE_HEADER: str(wire.WIRE_VERSION), "content-type": wire.CONTENT_TYPE}
    if token:
        headers["authorization"] = f"Bearer {token}"
    return httpx2.Client(
        headers=headers,
        timeout=httpx2.Timeout(
            RemoteReward.concurrency * patience.read_timeout,  # the previous batch comes first
            connect=patience.connect_timeout,
            pool=None,  # a request waits for our other requests as long as they take
        ),
        limits=httpx2.Limits(max_connections=in_flight, keepalive_expiry=10.0),
        trust_env=False,
    )
