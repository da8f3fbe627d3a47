"""FLOPs and bytes of one pass through a network, counted on PyTorch's meta device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Pass:
    """The cost of passing one item through a network, forward and backward."""

    forward_flops: float
    both_flops: float
    saved_bytes: int  # kept for the backward pass


class FusedAttention(TorchFunctionMode):
    """Attention that saves no matrix of all pairs for the backward pass, as on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return attend(given["query"], given["key"], given["value"])[0]
        return func(*args, **(kwargs or {}))


def measure_pass(network: nn.Module, call: Callable[[], Tensor]) -> Pass:
    """FLOPs and saved bytes of a call on the meta device; parameters' bytes do not count."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    with FlopCounterMode(display=False) as counter:
        output = call()
        forward = counter.get_total_flops()
        output.sum().backward()
        return Pass(forward, counter.get_total_flops(), total)


def forward_flops(call: Callable[[], object]) -> float:
    """FLOPs of a call without gradient."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def largest_layer_bytes(network: nn.Module, call: Callable[[], object]) -> int:
    """Bytes of the input and output of the largest layer, plus those of a residual input.

    The residual input counts as the larger of the two.
    """
    largest = 0

    def look(_: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        nonlocal largest
        sizes = [x.nbytes for x in (*inputs, output) if isinstance(x, Tensor)]
        largest = max(largest, sum(sizes) + max(sizes, default=0))

    leaves = [module for module in network.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(look) for module in leaves]
    with torch.no_grad(), FusedAttention():
        call()
    for hook in hooks:
        hook.remove()
    return largest
