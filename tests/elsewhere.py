"""A device whose memory is not the CPU's, for machines that have none.

Its tensors hold their numbers on the CPU, say that they are those of another device, and refuse
what CUDA refuses: to meet tensors of the CPU (but scalars and indices), and to be drawn by its
generators. So what would stop a run on a GPU is found without one, but for kernels and precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dagflow.engine import scoring

AWAY = torch.device("lazy:0")  # no library asks for it, and autograd treats it as the CPU
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXED |= {aten._index_put_impl_.default, aten._unsafe_index.Tensor}
READING = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default}
READING |= {aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default}
READING |= {aten.masked_select.default, aten.bincount.default, aten.repeat_interleave.Tensor}
waited: list[str] = []  # operators for which a CPU waits until the device has done all before
_ask, _flatten = scoring._ask, safetensors.torch._flatten_as_ptr


class Away(Tensor):
    """A tensor of that device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> Away:
        return Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=AWAY,
        )

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def __repr__(self, **_: Any) -> str:
        return f"Away({self.here!r})"

    def tolist(self) -> Any:
        waited.append("tolist")
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Makes tensors there that are to be made there."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator gives, on the device where it belongs. Raises RuntimeError as CUDA does."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    known = {id(tensor.here): tensor for tensor in tensors if isinstance(tensor, Away)}
    if func is aten._fused_sdp_choice.default:
        return 0  # no kernel that does it at once
    there = bool(known)
    if func is aten.copy_.default:
        there = isinstance(args[0], Away)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == AWAY.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU")
    if known and func not in CROSSING:
        _refuse_two_devices(func, args, tensors)
    if _waits(func, args, kwargs, there):
        waited.append(str(func))
    args, kwargs = tree_map(lambda x: x.here if isinstance(x, Away) else x, (args, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:
            return known[id(value)]
        return Away(value) if there else value

    return tree_map(placed, func(*args, **kwargs))


def _refuse_two_devices(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in INDEXED and isinstance(args[0], Away):
        tensors = [args[0], *args[2:3]]  # the indices may be anywhere
    if any(not isinstance(tensor, Away) and tensor.dim() for tensor in tensors):
        kinds = ", ".join(f"{type(x).__name__} {tuple(x.shape)}" for x in tensors)
        raise RuntimeError(f"{func}: tensors of two devices: {kinds}")


def _waits(func: Any, args: Any, kwargs: dict[str, Any], there: bool) -> bool:
    """Whether the CPU waits for that device, to know its numbers or to send it some.

    Raises RuntimeError if it does not where it should: on the way back.
    """
    if func in CROSSING:
        source = args[1] if func is aten.copy_.default else args[0]
        at_once = kwargs.get("non_blocking", func is aten.copy_.default and args[2:] == (True,))
        if at_once and isinstance(source, Away) and not there:
            raise RuntimeError(f"{func}: its numbers may be read before they have come")
        return isinstance(source, Away) is not there and not at_once
    if func in INDEXED:
        indices = [x for x in args[1] if x is not None]
        return there and any(not isinstance(x, Away) or x.dtype is torch.bool for x in indices)
    return func in READING and any(isinstance(x, Away) for x in args)


def _stored(tensors: dict[str, Tensor], *rest: Any) -> Any:
    """safetensors brings tensors here by itself, but first asks for their addresses."""
    here = {name: x.here if isinstance(x, Away) else x for name, x in tensors.items()}
    return _flatten(here, *rest)


@contextmanager
def _made_there() -> Iterator[None]:
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor goes past the mode
    try:
        with Device():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def _asked(*arguments: Any) -> Tensor:
    with _made_there():  # each thread has its own modes
        return _ask(*arguments)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Where `default_device` is that device."""
    with (
        patch("dagflow.policies.loading.default_device", lambda: AWAY),
        patch("dagflow.prepare.default_device", lambda: AWAY),
        patch("dagflow.engine.scoring._ask", _asked),
        patch("safetensors.torch._flatten_as_ptr", _stored),
        _made_there(),
    ):
        yield AWAY
