from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import torch
from starlette.requests import Request

from dagflow import PluginError, Prompt, UserError
from dagflow.plugins import load_plugins
from dagflow.remote import client, server, wire
from dagflow.remote.client import RemoteReward
from dagflow.remote.server import Limits, create_app
from dagflow.remote.worker import Worker
from tests.remote.conftest import QUICK, put_probes, wait_until

PROMPTS = [Prompt(f"a cat, number {k}", {"number": k}) for k in range(40)]


def images(count: int = 40, size: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def brightness(batch, prompts):
    return batch.mean((1, 2, 3))


def elsewhere(work: Coroutine[Any, Any, Any]) -> Any:
    """Its result, from a thread of its own: another test may have left a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def number(batch, prompts):
    return torch.tensor([float(prompt.metadata["number"]) for prompt in prompts])


@pytest.mark.parametrize("name", ["jpeg-compressibility", "network"])
def test_scores_are_those_of_the_reward_itself_to_the_last_bit(
    serve, tmp_path, monkeypatch, name: str
) -> None:
    from dagflow.engine.scoring import place

    monkeypatch.syspath_prepend(put_probes(tmp_path))
    make = load_plugins().maker("reward", name, {})
    reward = place(make(), torch.device("cpu"))
    remote = RemoteReward(serve(place(make(), torch.device("cpu"))), "", QUICK)
    for size in (24, 33, 64):
        with torch.no_grad():
            expected = reward(images(size=size), PROMPTS)
        got = remote(images(size=size), PROMPTS)
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)


def test_a_large_batch_travels_in_parts_at_once_and_comes_back_in_order(serve) -> None:
    url = serve(number, max_images=3)
    remote = RemoteReward(url, "", QUICK, in_flight=4)
    assert remote(images(), PROMPTS).tolist() == list(range(40))
    per_image = wire.image_bytes(images())
    small = RemoteReward(serve(number, max_bytes=3 * per_image), "", QUICK)
    assert small(images(), PROMPTS).tolist() == list(range(40))
    assert remote(images(0), []).shape == (0,)


def test_a_batch_that_fits_is_scored_in_one_call(serve) -> None:
    sizes: list[int] = []

    def reward(batch, prompts):
        sizes.append(len(batch))
        return brightness(batch, prompts)

    url = serve(reward)
    RemoteReward(url, "", QUICK)(images(), PROMPTS)
    RemoteReward(url, "", QUICK, batch=16)(images(), PROMPTS)
    assert sorted(sizes) == [8, 16, 16, 40]


def test_one_thread_makes_and_calls_the_reward_one_call_at_a_time(serve) -> None:
    threads: set[int] = set()
    inside: list[int] = []

    def make():
        threads.add(threading.get_ident())

        def reward(batch, prompts):
            inside.append(1)
            threads.add(threading.get_ident())
            assert len(inside) == 1
            time.sleep(0.02)
            inside.pop()
            return brightness(batch, prompts)

        return reward

    remote = RemoteReward(serve(None, make=make), "", QUICK, in_flight=8, batch=4)
    assert torch.equal(remote(images(), PROMPTS), brightness(images(), PROMPTS))
    assert len(threads) == 1


def test_the_read_timeout_is_for_one_batch_although_two_are_under_way(serve) -> None:
    def reward(batch, prompts):
        time.sleep(1.2)
        return brightness(batch, prompts)

    remote = RemoteReward(serve(reward), "", replace(QUICK, read_timeout=2.0, retries=0))
    with ThreadPoolExecutor(remote.concurrency) as pool:
        calls = [pool.submit(remote, images(2), PROMPTS[:2]) for _ in range(remote.concurrency)]
        assert all(call.result().shape == (2,) for call in calls)


def test_a_reward_that_raises_is_named_with_its_prompt_and_not_asked_again(serve) -> None:
    calls: list[int] = []

    def reward(batch, prompts):
        calls.append(1)
        raise ValueError("no faces here")

    remote = RemoteReward(serve(reward), "", QUICK)
    expected = r"the reward raised ValueError: no faces here for the prompt 'a cat, number 0'$"
    with pytest.raises(PluginError, match=expected):
        remote(images(1), PROMPTS[:1])
    with pytest.raises(PluginError, match="no faces here for 40 images, the first of them for the"):
        remote(images(), PROMPTS)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(3), r"returned \(3,\); expected a tensor of shape \(40,\)"),
        ([0.0], "returned list"),
        (torch.zeros(40) * 1j, "returned complex numbers"),
    ],
)
def test_a_reward_that_returns_something_else_is_reported(serve, answer, message: str) -> None:
    remote = RemoteReward(serve(lambda batch, prompts: answer), "", QUICK)
    with pytest.raises(PluginError, match=message):
        remote(images(), PROMPTS)


def test_the_engine_names_the_reward_by_its_label(serve) -> None:
    from dagflow.engine.scoring import WeightedReward, ask

    def raising(batch, prompts):
        raise ValueError("no")

    def infinite(batch, prompts):
        return brightness(batch, prompts) / 0

    for reward, message in (
        (raising, "^reward 'far': on the server at .* raised ValueError: no"),
        (infinite, "^reward 'far' returned inf for the prompt 'a cat, number 0'"),
    ):
        far = WeightedReward("far", RemoteReward(serve(reward), "", QUICK), 1.0)
        with pytest.raises(PluginError, match=message):
            ask([far], images(), PROMPTS)()


def test_the_trainer_waits_for_a_reward_that_is_still_loading(serve) -> None:
    loaded = threading.Event()

    def make():
        loaded.wait(20)
        return brightness

    url = serve(None, make=make)
    assert httpx2.get(f"{url}/health", trust_env=False).status_code == 200
    assert httpx2.get(f"{url}/ready", trust_env=False).status_code == 503
    threading.Timer(0.2, loaded.set).start()
    remote = RemoteReward(url, "", client.Patience(2, 20, retries=8, backoff=0.05))
    assert torch.equal(remote(images(), PROMPTS), brightness(images(), PROMPTS))


def test_a_server_that_is_gone_is_asked_again_a_few_times(serve, monkeypatch, caplog) -> None:
    url = serve(brightness)
    remote = RemoteReward(url, "", QUICK)

    def away(*_, **__):
        raise httpx2.ConnectError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(remote._http, "request", away)
        with pytest.raises(PluginError, match=r"no answer from .*refused.*gave up \(retries = 3\)"):
            remote(images(), PROMPTS)
    waits = [record.message.rpartition("again in ")[2] for record in caplog.records]
    assert waits == ["0.05 s", "0.1 s", "0.2 s"]
    assert torch.equal(remote(images(), PROMPTS), brightness(images(), PROMPTS))


def test_waits_double_up_to_half_a_minute() -> None:
    assert client.Patience(1, 1, 7, 1.0).delays == [1, 2, 4, 8, 16, 30, 30]
    assert client.Patience(1, 1, 5000, 1.0).delays[-1] == 30


def test_a_server_that_stops_asks_to_be_asked_again() -> None:
    """A signal, and what is in hand takes longer than uvicorn waits: it cancels the task."""
    begun, end = threading.Event(), threading.Event()

    def slow(batch, prompts):
        begun.set()
        end.wait(20)
        return brightness(batch, prompts)

    worker = Worker(lambda: slow, torch.device("cpu"))
    worker.start()
    worker.loaded.result(20)
    payload = wire.encode_request(images(2), PROMPTS[:2])
    body = [{"type": "http.request", "body": payload}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return body.pop() if body else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def ask_and_stop() -> None:
        headers = {wire.WIRE_HEADER: str(wire.WIRE_VERSION), "content-length": str(len(payload))}
        scope = {"type": "http", "method": "POST", "path": "/score", "query_string": b""}
        scope |= {"headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()]}
        app = create_app(worker, "it", "", Limits())
        asked = asyncio.create_task(app(scope, receive, send))
        await asyncio.to_thread(begun.wait, 20)
        asked.cancel()
        await asked

    elsewhere(ask_and_stop())
    end.set()
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"])["error"]["kind"] == "stopping"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_stands_before_a_server_is_asked_again(serve, monkeypatch, status: int) -> None:
    remote, refusals = RemoteReward(serve(brightness), "", QUICK), [status, status]
    ask = remote._http.request

    def behind_a_proxy(*given: Any, **named: Any) -> Any:
        if refusals:
            return httpx2.Response(refusals.pop(), content=b"<html>Bad Gateway")
        return ask(*given, **named)

    monkeypatch.setattr(remote._http, "request", behind_a_proxy)
    assert len(remote(images(), PROMPTS)) == 40
    assert not refusals


def test_a_reason_of_any_characters_arrives() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    reason = "raised FileNotFoundError: 'a\udcff'"
    request = Request({"type": "http"}, receive)
    answer = elsewhere(server._refuse(request, wire.WireError(500, "reward", reason)))
    assert client.error_of(500, bytes(answer.body)) == ("reward", reason)


def test_another_reward_at_the_same_address_is_noticed(serve) -> None:
    remote = RemoteReward(serve(brightness, serves="one"), "", QUICK)
    remote._url = serve(brightness, serves="two")
    with pytest.raises(PluginError, match="now serves two; it was one"):
        remote(images(), PROMPTS)


def test_a_token_is_asked_for(serve, tmp_path, monkeypatch) -> None:
    url = serve(brightness, token="secret")
    for wrong in ("", "secre", "secret2"):
        with pytest.raises(UserError, match=r"401 token.*missing or wrong"):
            RemoteReward(url, wrong, QUICK)
    file = tmp_path / "token"
    file.write_text("secret\n")
    make = load_plugins().maker("reward", "remote", {"url": url, "token_file": str(file)})
    assert len(make()(images(), PROMPTS)) == 40
    with pytest.raises(UserError, match="'none' cannot be read"):
        client.read_token("none")
    monkeypatch.setenv("DAGFLOW_TOKEN", "secret")
    load_plugins().maker("reward", "remote", {"url": url})()


def test_two_wire_versions_do_not_talk(serve, monkeypatch) -> None:
    url = serve(brightness)
    remote = RemoteReward(url, "", QUICK)
    remote._http.headers[wire.WIRE_HEADER] = "7"
    message = r"speaks wire version 1; the request's is 7"
    with pytest.raises(PluginError, match=message):
        remote(images(), PROMPTS)
    monkeypatch.setattr(wire, "WIRE_VERSION", 8)
    state = b'{"dagflow": "0.0.9", "wire": 2, "serves": "", "max_images": 1, "max_bytes": 1}'
    with pytest.raises(UserError, match=r"\(dagflow 0.0.9\) speaks wire version 2.*version 8"):
        client.read_offer(state, url)


@pytest.mark.parametrize("url", ["8000", "ftp://x", "http://", "http://u:p@x", "http://x?a", "::"])
def test_an_address_that_is_none_is_the_users_mistake(url: str) -> None:
    with pytest.raises(UserError, match="not of the form http://HOST:PORT"):
        RemoteReward(url, "", QUICK)


@pytest.mark.parametrize(
    ("key", "value"), [("max_images", 0), ("max_bytes", "256"), ("wire", None), ("serves", 3)]
)
def test_something_else_that_answers_is_not_taken_for_a_server(key: str, value: object) -> None:
    state = {"dagflow": "1", "wire": 1, "serves": "it", "max_images": 1, "max_bytes": 9}
    assert client.read_offer(json.dumps(state).encode(), "http://x").serves == "it"
    for content in (b"<html>", b"[" * 200_000, json.dumps(state | {key: value}).encode()):
        with pytest.raises(UserError, match="is not `dagflow serve`"):
            client.read_offer(content, "http://127.0.0.1:80")


def test_a_client_that_leaves_gives_up_its_place(serve) -> None:
    busy, calls = threading.Event(), []

    def reward(batch, prompts):
        calls.append(len(batch))
        busy.wait(20)
        return brightness(batch, prompts)

    url = serve(reward)
    waiting = threading.Thread(target=RemoteReward(url, "", QUICK), args=(images(1), PROMPTS[:1]))
    waiting.start()
    wait_until(lambda: calls)
    hasty = RemoteReward(url, "", client.Patience(1, 0.3, retries=0, backoff=0))
    with pytest.raises(PluginError, match="ReadTimeout"):
        hasty(images(2), PROMPTS[:2])
    time.sleep(0.3)  # until the server notices
    busy.set()
    waiting.join()
    RemoteReward(url, "", QUICK)(images(3), PROMPTS[:3])
    assert calls == [1, 3]


def test_only_a_loopback_address_goes_without_a_warning() -> None:
    from dagflow.remote.listen import is_loopback

    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))
