"""How a run uses its machine: nothing here decides its numbers, but for rounding."""

from __future__ import annotations

import torch
from torch import nn

from dagflow.config import MachineTable
from dagflow.engine.learner import Learner
from dagflow.errors import UserError
from dagflow.policies.policy import Policy

BACKEND = "inductor"  # of torch.compile


def prepare_policy(policy: Policy, settings: MachineTable) -> None:
    """Apply the settings to the networks, and on CUDA what always helps there.

    Raises UserError where a model has nothing of the kind.
    """
    if policy.device.type == "cuda":
        if policy.dtype != torch.float32:
            torch.set_float32_matmul_precision("high")  # TF32 for the flow network and rewards
        for network in policy.networks().values():
            network.to(memory_format=torch.channels_last)
    if settings.gradient_checkpointing:
        _call(policy.networks().get("unet"), "enable_gradient_checkpointing")
    if settings.vae_slicing:
        _call(policy.networks().get("vae"), "enable_slicing")


def compile_networks(learner: Learner) -> None:
    """Have torch.compile make the networks faster; each is compiled when first called."""
    for network in learner.policy.networks().values():
        getattr(network, "decoder", network).compile(backend=BACKEND)
    flow = getattr(learner.objective, "flow", None)
    if isinstance(flow, nn.Module):
        flow.compile(backend=BACKEND)


def _call(network: nn.Module | None, name: str) -> None:
    method = getattr(network, name, None)
    if method is None:
        setting = {"enable_slicing": "vae_slicing"}.get(name, "gradient_checkpointing")
        raise UserError(f"this model has no network for machine.{setting}.")
    method()
