"""The messages between trainer and server: safetensors both ways, JSON for errors; no pickles.

A request holds one tensor `images`, float32 (B, 3, height, width), and its metadata the prompts
as JSON, [[text, metadata], ...]. An answer holds `scores`, float32 (B,), and its metadata what
the server serves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dagflow import PluginError, Prompt

WIRE_VERSION = 1  # raised whenever an older end would misread a newer one
WIRE_HEADER = "x-dagflow-wire"
CONTENT_TYPE = "application/x-safetensors"
MAX_HEADER_BYTES = 8 * 2**20  # prompts and their metadata

Header = dict[str, Any]


class WireError(Exception):
    """A refused request: an HTTP status, one word for programs, a sentence for people."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


def encode_request(images: Tensor, prompts: Sequence[Prompt]) -> bytes:
    """The body of a request. images: float32 (B, 3, height, width) on the CPU; B prompts.

    Raises PluginError for prompt metadata that JSON would change, and for too much of it.
    """
    if images.dtype != torch.float32:
        raise PluginError(f"the images are {images.dtype}; expected float32")
    texts = json.dumps([[prompt.text, _plain(prompt)] for prompt in prompts])
    if len(texts) > MAX_HEADER_BYTES // 2:
        raise PluginError(
            f"the prompts and their metadata take {len(texts)} bytes; a request carries at most "
            f"{MAX_HEADER_BYTES // 2} (see the option `batch`)"
        )
    return save({"images": images.contiguous()}, {"prompts": texts})


def decode_request(payload: bytes, max_images: int) -> tuple[Tensor, list[Prompt]]:
    """Images, float32 (B, 3, height, width) on the CPU, and B prompts.

    Raises WireError for anything else: 400 if the body is not a safetensors file, 413 if the header
    is too large or there are too many images, 422 for wrong contents.
    """
    header = _header(payload)
    _check_images(header, max_images)
    prompts = _prompts(header)
    images = _tensors(payload)["images"]
    if len(prompts) != len(images):
        raise WireError(422, "prompts", f"{len(images)} images came with {len(prompts)} prompts")
    if len(images) and not torch.stack(torch.aminmax(images)).isfinite().all():  # in one pass
        raise WireError(422, "not-finite", "the images hold values that are not finite")
    return images, prompts


def encode_scores(scores: Tensor, serves: str) -> bytes:
    """The body of an answer. scores: float32 (B,) on the CPU."""
    return save({"scores": scores.contiguous()}, {"serves": serves})


def decode_scores(payload: bytes, count: int) -> tuple[Tensor, str]:
    """Scores, float32 (count,), and what the server serves. Raises PluginError if that fails."""
    try:
        serves = str(_header(payload)["__metadata__"]["serves"])
        scores = _tensors(payload)["scores"]
    except (WireError, KeyError, TypeError) as error:
        raise PluginError(f"the server's answer cannot be read: {error}") from error
    if scores.dtype != torch.float32 or scores.shape != (count,):
        raise PluginError(f"the server answered {scores.dtype} {tuple(scores.shape)}")
    return scores, serves


def _plain(prompt: Prompt) -> dict[str, Any]:
    """A prompt's metadata, if JSON returns it unchanged."""
    metadata = dict(prompt.metadata)
    for key, value in metadata.items():
        try:
            same = type(key) is str and _same(json.loads(json.dumps(value)), value)
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise PluginError(
                f"the metadata of the prompt '{prompt.text}' holds {key!r} = {value!r}, which "
                f"JSON does not carry unchanged; a remote reward can receive texts, numbers, "
                f"booleans, None, lists and dictionaries with text keys"
            )
    return metadata


def _same(one: Any, two: Any) -> bool:
    """Equal, with the same types throughout: JSON turns tuples into lists, and keys into texts."""
    if type(one) is not type(two):
        return False
    if isinstance(one, list):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    return bool(one == two)


def _header(payload: bytes) -> Header:
    """The JSON at the front of a safetensors file, read before its claims allocate any memory."""
    length = int.from_bytes(payload[:8], "little")
    if len(payload) < 8 or length > len(payload) - 8:
        raise WireError(400, "payload", "the body is not a safetensors file, or only part of one")
    if length > MAX_HEADER_BYTES:
        message = f"the header has {length} bytes; {MAX_HEADER_BYTES} at most"
        raise WireError(413, "too-large", message)
    try:
        header = json.loads(payload[8 : 8 + length])
    except (ValueError, RecursionError):
        raise WireError(400, "payload", "the body is not a safetensors file") from None
    if not isinstance(header, dict):
        raise WireError(400, "payload", "the body is not a safetensors file")
    return header


def _check_images(header: Header, max_images: int) -> None:
    names = sorted(header.keys() - {"__metadata__"})
    if names != ["images"] or not isinstance(header["images"], dict):
        raise WireError(422, "tensors", f"expected one tensor 'images'; got {names}"[:500])
    dtype: Any = header["images"].get("dtype")
    shape: Any = header["images"].get("shape")
    if dtype != "F32":
        raise WireError(422, "dtype", f"images must be float32 (F32); got {dtype}"[:500])
    if not (_is_shape(shape) and len(shape) == 4 and shape[1] == 3 and min(shape[2:]) > 0):
        raise WireError(422, "shape", f"images must be (B, 3, height, width); got {shape}"[:500])
    if shape[0] > max_images:
        raise WireError(
            413, "too-many-images", f"{shape[0]} images in a request; {max_images} at most"
        )


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)


def _prompts(header: Header) -> list[Prompt]:
    try:
        pairs = json.loads(header["__metadata__"]["prompts"])
        prompts = [Prompt(text, metadata) for text, metadata in pairs]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise WireError(422, "prompts", "prompts must be JSON, [[text, metadata], ...]") from None
    if not all(isinstance(p.text, str) and isinstance(p.metadata, dict) for p in prompts):
        raise WireError(422, "prompts", "a prompt must be a text and a dictionary of metadata")
    return prompts


def _tensors(payload: bytes) -> dict[str, Tensor]:
    try:
        return load(payload)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise WireError(400, "payload", f"the body is not a safetensors file: {error}") from error


def image_bytes(images: Tensor) -> int:
    """The bytes that each image of (B, 3, height, width) adds to a request."""
    return math.prod(images.shape[1:]) * images.element_size()
