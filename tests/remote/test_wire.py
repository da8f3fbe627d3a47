from __future__ import annotations

import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from dagflow import PluginError, Prompt
from dagflow.remote import wire
from dagflow.remote.wire import WireError

TEXTS = {"prompts": json.dumps([["a cat", {}]] * 2)}
GOOD = save({"images": torch.rand(2, 3, 8, 8)}, TEXTS)


def test_a_request_arrives_as_it_was_sent() -> None:
    images = torch.rand(3, 3, 5, 7).transpose(2, 3)
    metadata = {"k": [1, 2.5, None, True], "ü": {"x": "\ud800 ☃"}}
    prompts = [Prompt("a cat", metadata), Prompt(""), Prompt("\x00 ü \U0001f408" * 1000)]
    there, texts = wire.decode_request(wire.encode_request(images, prompts), max_images=3)
    assert torch.equal(there, images)
    assert texts == prompts


def test_an_empty_batch_is_a_request() -> None:
    images, prompts = wire.decode_request(wire.encode_request(torch.rand(0, 3, 8, 8), []), 1)
    assert images.shape == (0, 3, 8, 8)
    assert prompts == []


def test_scores_arrive_as_they_were_sent() -> None:
    scores = torch.tensor([0.1, -1e-40, float("inf"), 3e38])
    there, serves = wire.decode_scores(wire.encode_scores(scores, "jpeg"), 4)
    assert torch.equal(there, scores)
    assert serves == "jpeg"


@pytest.mark.parametrize(
    "value",
    [object(), torch.zeros(1), (1, 2), {1: "x"}, {"deep": [(1,)]}, float("nan"), b"x", {1}],
    ids=lambda value: type(value).__name__,  # an object's text holds its address
)
def test_metadata_that_json_would_change_is_refused_by_name(value: object) -> None:
    with pytest.raises(PluginError, match=r"prompt 'a cat' holds 'colour' = .*JSON does not carry"):
        wire.encode_request(torch.rand(1, 3, 8, 8), [Prompt("a cat", {"colour": value})])


def test_images_of_another_dtype_are_refused_before_they_travel() -> None:
    with pytest.raises(PluginError, match=r"torch\.float16; expected float32"):
        wire.encode_request(torch.rand(1, 3, 8, 8).half(), [Prompt("a cat")])


def with_header(header: Any, data: bytes = bytes(1536)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    images = {"dtype": "F32", "shape": [2, 3, 8, 8], "data_offsets": [0, 1536], **changes}
    return {"__metadata__": TEXTS, "images": images}


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((2, 3, 8, 8), np.float32))
    return buffer.getvalue()


HOSTILE = {
    "empty": (b"", 400, "payload"),
    "cut in the length": (GOOD[:5], 400, "payload"),
    "cut in the header": (GOOD[:40], 400, "payload"),
    "cut in the data": (GOOD[:-1], 400, "payload"),
    "with more behind": (GOOD + b"x", 400, "payload"),
    "a pickle": (pickle.dumps({"images": np.zeros((2, 3, 8, 8), np.float32)}), 400, "payload"),
    "an npz archive": (archive(), 400, "payload"),
    "a header of 2^63 bytes": ((2**63).to_bytes(8, "little") + GOOD[8:], 400, "payload"),
    "a header too large": (with_header(b" " * (wire.MAX_HEADER_BYTES + 1)), 413, "too-large"),
    "nested a million times": (with_header(b"[" * 10**6), 400, "payload"),
    "a header that is no table": (with_header([1]), 400, "payload"),
    "not UTF-8": (with_header(b'{"\xff": 1}'), 400, "payload"),
    "offsets beyond the data": (with_header(entry(data_offsets=[0, 9999])), 400, "payload"),
    "offsets that do not fit": (with_header(entry(data_offsets=[0, 8]), bytes(8)), 400, "payload"),
    "negative offsets": (with_header(entry(data_offsets=[-8, 1528])), 400, "payload"),
    "float64": (save({"images": torch.rand(2, 3, 8, 8).double()}, TEXTS), 422, "dtype"),
    "bytes": (save({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, TEXTS), 422, "dtype"),
    "four channels": (save({"images": torch.rand(2, 4, 8, 8)}, TEXTS), 422, "shape"),
    "three dimensions": (save({"images": torch.rand(3, 8, 8)}, TEXTS), 422, "shape"),
    "no pixels": (save({"images": torch.rand(2, 3, 0, 8)}, TEXTS), 422, "shape"),
    "a shape of texts": (with_header(entry(shape=["2", 3, 8, 8])), 422, "shape"),
    "too many images": (save({"images": torch.rand(9, 3, 8, 8)}, TEXTS), 413, "too-many-images"),
    "10^18 images": (with_header(entry(shape=[10**18, 3, 8, 8])), 413, "too-many-images"),
    "10^18 pixels": (with_header(entry(shape=[1, 3, 10**18, 8])), 400, "payload"),
    "another name": (save({"image": torch.rand(2, 3, 8, 8)}, TEXTS), 422, "tensors"),
    "two tensors": (save({"images": torch.rand(2, 3, 8, 8), "x": torch.rand(1)}, TEXTS), 422,
                    "tensors"),
    "no prompts": (save({"images": torch.rand(2, 3, 8, 8)}), 422, "prompts"),
    "three prompts": (save({"images": torch.rand(3, 3, 8, 8)}, TEXTS), 422, "prompts"),
    "prompts that are numbers": (save({"images": torch.rand(2, 3, 8, 8)}, {"prompts": "[[1, {}]]"}),
                                 422, "prompts"),
    "NaN": (save({"images": torch.full((2, 3, 8, 8), torch.nan)}, TEXTS), 422, "not-finite"),
    "infinity": (save({"images": torch.full((2, 3, 8, 8), -torch.inf)}, TEXTS), 422, "not-finite"),
}  # fmt: skip


@pytest.mark.parametrize(("payload", "status", "kind"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_requests_are_refused_with_a_reason(payload: bytes, status: int, kind: str) -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_request(payload, max_images=8)
    assert (caught.value.status, caught.value.kind) == (status, kind)
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("payload", [b"", GOOD, wire.encode_scores(torch.zeros(3), "x")])
def test_an_answer_that_is_none_is_the_servers_fault(payload: bytes) -> None:
    with pytest.raises(PluginError, match="the server"):
        wire.decode_scores(payload, 2)
