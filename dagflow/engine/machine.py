"""How a run uses its machine: nothing here changes its numbers, except by rounding."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from dagflow.config import MachineTable
from dagflow.engine.learner import Learner
from dagflow.engine.processes import ALONE, Processes
from dagflow.errors import UserError
from dagflow.policies.policy import Policy

BACKEND = "inductor"  # for torch.compile


def prepare_device(device: torch.device, settings: MachineTable) -> None:
    """Apply the settings that must be in place before anything is computed on the device.

    A process that has already multiplied matrices on a GPU needs CUBLAS_WORKSPACE_CONFIG from its
    start; torch reports it if not.
    """
    if device.type == "cuda":
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(settings.deterministic)


def prepare_policy(policy: Policy, settings: MachineTable, processes: Processes = ALONE) -> None:
    """Apply the settings to the networks, and on CUDA what always helps there.

    Raises UserError if the model does not support a setting.
    """
    if settings.shard:
        _shard(policy.networks()["unet"], policy.device, processes)
    if policy.device.type == "cuda":
        if policy.dtype != torch.float32:
            torch.set_float32_matmul_precision("high")  # TF32 for the flow network and rewards
        for network in policy.networks().values():
            network.to(memory_format=torch.channels_last)
    if settings.gradient_checkpointing:
        _call(policy, "unet", "enable_gradient_checkpointing", "gradient_checkpointing")
    if settings.vae_slicing:
        _call(policy, "vae", "enable_slicing", "vae_slicing")


def prepare_learner(learner: Learner, settings: MachineTable) -> None:
    """Make a learner's networks faster; call this before any of them is called.

    With a bfloat16 policy on CUDA, a flow network that can do so runs its attention in bfloat16.
    `machine.compile` compiles a network when it is first called.
    """
    policy = learner.policy
    flow: Any = getattr(learner.objective, "flow", None)
    in_bfloat16 = policy.device.type == "cuda" and policy.dtype == torch.bfloat16
    if in_bfloat16 and hasattr(flow, "attend_in_bfloat16"):
        flow.attend_in_bfloat16()
    if settings.compile:
        for network in policy.networks().values():
            _compile(getattr(network, "decoder", network))
        if isinstance(flow, nn.Module):
            _compile(flow)


def _compile(network: nn.Module) -> None:
    """Compile for batches of any size; otherwise a second size would compile again."""
    compiled = torch.compile(network.forward, backend=BACKEND)

    def forward(*given: Any, **named: Any) -> Any:
        for value in (*given, *named.values()):
            if isinstance(value, Tensor) and value.ndim:
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return compiled(*given, **named)

    network.forward = forward


def _shard(unet: Any, device: torch.device, processes: Processes) -> None:
    """Shard the frozen weights of a UNet across the processes with FSDP2, block by block.

    Each process keeps all trained weights. From here on all processes run the UNet in lockstep.
    """
    if processes.size == 1:
        raise UserError("machine.shard divides the model among processes: set --num-processes.")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.size,))
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device)
    for module in (*unet.down_blocks, unet.mid_block, *unet.up_blocks, unet):
        trained = {p for p in module.parameters() if p.requires_grad}
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    processes.lockstep = True


def _call(policy: Policy, network: str, method: str, setting: str) -> None:
    found = getattr(policy.networks().get(network), method, None)
    if found is None:
        raise UserError(f"this model does not support machine.{setting}.")
    found()
