"""Attack `dagflow serve` and count its answers.

    python benchmarks/remote_hostile.py [--times 20] [--requests 1000] [--json]

Starts its own server (jpeg-compressibility, a token, 4 MB and 32 images per request, 2 s for a
body), sends every attack a number of times, and prints a table of the answers, the server's memory
before and after, and whether good requests were answered throughout. Exits with 1 if anything
unexpected happened.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from safetensors.torch import save

MAX_BYTES, MAX_IMAGES, BODY_TIMEOUT = 4_000_000, 32, 2
TOKEN = secrets.token_hex(16)
SETTINGS = [
    *("--max-bytes", str(MAX_BYTES), "--max-images", str(MAX_IMAGES)),
    *("--timeout", str(BODY_TIMEOUT), "--max-requests", "64"),
]
SLOW_CONNECTIONS = 100  # of each kind of slow-loris; with others below the server's 256
CLOSED = "closed"


@dataclass(frozen=True)
class Attack:
    """What is sent, and the acceptable answers: HTTP statuses, or CLOSED for none."""

    name: str
    send: Callable[[int], Awaitable[str]]
    expected: frozenset[str]
    times: int = 0  # 0: as often as the command line says
    at_once: int = 4


async def exchange(port: int, *parts: bytes, pause: float = 0.0, hang_up: bool = False) -> str:
    """Send bytes, with pauses between the parts; returns the answer's status, or CLOSED."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(reader.readline())
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            if pause:
                await asyncio.wait([answer], timeout=pause)
            if answer.done():
                break
        if hang_up:
            return CLOSED
        line = await asyncio.wait_for(answer, 60)
        return line.split()[1].decode() if line else CLOSED
    except (ConnectionError, IndexError):
        return CLOSED
    finally:
        answer.cancel()
        writer.close()


def head(length: int | None, token: str = TOKEN, wire: str = "1", path: str = "/score") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: here",
        f"x-dagflow-wire: {wire}",
        f"authorization: Bearer {token}",
        "transfer-encoding: chunked" if length is None else f"content-length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def body(images: torch.Tensor | None = None, prompts: int | None = None) -> bytes:
    images = torch.rand(4, 3, 64, 64) if images is None else images
    count = len(images) if prompts is None else prompts
    texts = json.dumps([["a cat", {}]] * count)
    return save({"images": images.contiguous()}, {"prompts": texts})


def request(content: bytes, **changes: str) -> tuple[bytes, ...]:
    return (head(len(content), **changes), content)


def attacks(port: int, requests: int) -> list[Attack]:
    good = body()
    cut = good[: len(good) // 2]
    nan = body(torch.full((4, 3, 64, 64), torch.nan))
    pickled = pickle.dumps({"images": np.zeros((4, 3, 64, 64), np.float32)})
    bomb = (7 + 10**6).to_bytes(8, "little") + b"[" * (7 + 10**6)
    claim = (2**63).to_bytes(8, "little") + good[8:]
    giant = b"GET /health HTTP/1.1\r\nx: " + b"a" * 10**6 + b"\r\n\r\n"
    ready = f"GET /ready HTTP/1.1\r\nhost: here\r\nauthorization: Bearer {TOKEN}x\r\n\r\n"

    def say(*parts: bytes, **options: float) -> Callable[[int], Awaitable[str]]:
        return lambda _: exchange(port, *parts, **options)  # type: ignore[arg-type]

    def one(name: str, parts: tuple[bytes, ...], expected: str) -> Attack:
        return Attack(name, say(*parts), frozenset(expected.split()))

    drip_head = [bytes([byte]) for byte in head(len(good))]
    drip_body = [head(len(good)), *(good[k : k + 1] for k in range(60))]
    return [
        one("good request", request(good), "200"),
        one("truncated body", request(cut), "400"),
        Attack("hang up in the body", say(head(len(good)), cut, hang_up=True), frozenset({CLOSED})),
        one("5 MB, declared and sent", request(bytes(5_000_000)), "413"),
        one("10 GB declared, little sent", (head(10**10), bytes(100)), "413"),
        one("33 images", request(body(torch.rand(33, 3, 64, 64))), "413"),
        one("no Content-Length (chunked)", (head(None), b"0\r\n\r\n"), "411"),
        one("float64 images", request(body(torch.rand(4, 3, 64, 64).double())), "422"),
        one("bfloat16 images", request(body(torch.rand(4, 3, 64, 64).bfloat16())), "422"),
        one("4 channels", request(body(torch.rand(4, 4, 64, 64))), "422"),
        one("3 dimensions", request(body(torch.rand(3, 64, 64), prompts=3)), "422"),
        one("3 prompts for 4 images", request(body(prompts=3)), "422"),
        one("NaN in the images", request(nan), "422"),
        one("a pickle", request(pickled), "400"),
        one("a header of 2^63 bytes", request(claim), "400"),
        one("JSON nested a million times", request(bomb), "400"),
        one("wrong token", request(good, token="wrong"), "401"),
        one("wrong token to /ready", (ready.encode(),), "401"),
        one("wire version 2", request(good, wire="2"), "400"),
        one("unknown path", request(good, path="/"), "404"),
        one("GET of /score", (b"GET /score HTTP/1.1\r\nhost: here\r\n\r\n",), "405"),
        one("no HTTP at all", (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",), "400"),
        one("a header line of 1 MB", (giant,), "400 closed"),
        Attack(f"{requests} good requests at once", say(*request(good)), frozenset({"200", "503"}),
               requests, requests),
        Attack("slow-loris, headers", say(*drip_head, pause=0.2), frozenset({"408", CLOSED}),
               SLOW_CONNECTIONS, SLOW_CONNECTIONS),
        Attack("slow-loris, body", say(*drip_body, pause=0.2), frozenset({"408", "503"}),
               SLOW_CONNECTIONS, SLOW_CONNECTIONS),
    ]  # fmt: skip


async def perform(attack: Attack, times: int) -> Counter[str]:
    gate = asyncio.Semaphore(attack.at_once)

    async def once(k: int) -> str:
        async with gate:
            return await attack.send(k)

    answers = await asyncio.gather(*(once(k) for k in range(attack.times or times)))
    return Counter(answers)


async def good_meanwhile(port: int, done: asyncio.Event) -> Counter[str]:
    """One good request after another, as a trainer would send them."""
    answers: Counter[str] = Counter()
    while not done.is_set():
        answers[await exchange(port, *request(body()))] += 1
        await asyncio.sleep(0.1)
    return answers


async def slowly(port: int, slow: list[Attack]) -> tuple[list[Counter[str]], Counter[str]]:
    """All slow attacks at once, and the answers to good requests meanwhile."""
    done = asyncio.Event()
    meanwhile = asyncio.create_task(good_meanwhile(port, done))
    counts = await asyncio.gather(*(perform(attack, 1) for attack in slow))
    done.set()
    return list(counts), await meanwhile


def start() -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "dagflow", "serve", "jpeg-compressibility", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--exit-with-parent", *SETTINGS],
        env={**os.environ, "DAGFLOW_TOKEN": TOKEN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
    assert found, "the server did not start"
    return process, int(found[1])


def measure(times: int, requests: int) -> dict[str, object]:
    """Everything: answers by attack, memory in MB, seconds."""
    began = time.monotonic()
    process, port = start()
    server = psutil.Process(process.pid)
    try:
        planned = attacks(port, requests)
        quick, slow = planned[:-2], planned[-2:]
        for attack in quick[:1] + quick[-1:]:  # creates buffers, threads and caches
            asyncio.run(perform(attack, times))
        before = server.memory_info().rss
        counts = [asyncio.run(perform(attack, times)) for attack in quick]
        slow_counts, meanwhile = asyncio.run(slowly(port, slow))
        counts += slow_counts
        wrong = [a.name for a, c in zip(planned, counts, strict=True) if c.keys() - a.expected]
        last = asyncio.run(perform(planned[0], times))
        return {
            "attacks": {a.name: dict(c) for a, c in zip(planned, counts, strict=True)},
            "good requests during the slow ones": dict(meanwhile),
            "good requests afterwards": dict(last),
            "alive": process.poll() is None,
            "wrong": wrong,
            "memory before, MB": round(before / 1e6, 1),
            "memory after, MB": round(server.memory_info().rss / 1e6, 1),
            "seconds": round(time.monotonic() - began, 1),
        }
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)


def show(result: dict[str, object]) -> None:
    table = dict(result.pop("attacks"))  # type: ignore[call-overload]
    for name in ("good requests during the slow ones", "good requests afterwards"):
        table[name] = result.pop(name)
    print("| sent | times | answers |\n|---|---:|---|")
    for name, counts in table.items():
        answers = ", ".join(f"{status}: {n}" for status, n in sorted(counts.items()))
        print(f"| {name} | {sum(counts.values())} | {answers} |")
    print()
    for name, value in result.items():
        print(f"{name}: {value}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="of each quick attack")
    parser.add_argument("--requests", type=int, default=1000, help="good ones, all at once")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.times, arguments.requests)
    failed = bool(result["wrong"]) or not result["alive"]
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
