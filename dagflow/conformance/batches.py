"""Batches as the engine gives them to an objective, made from random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from dagflow.conformance.contract import advise
from dagflow.types import Needs, PolicySpec, Transitions

COUNT, TRAJECTORIES, PROMPTS = 8, 4, 2
SPEC = PolicySpec(latent_channels=4, cross_attention_dim=32)
SIDE, TOKENS = 8, 5
VALUES = SPEC.latent_channels * SIDE * SIDE  # D
BETA = 5.0
LEARNING_RATE = 0.1
FIELDS = {
    "log_flow": ("log_flow", "log_flow_next"),
    "log_pb": ("log_pb",),
    "potentials": ("log_flow", "log_flow_next"),
    "rewards": ("log_reward", "trajectory", "prompt"),
    "window": ("window",),
    "log_p_base": ("log_p_base",),
    "log_z": ("log_z",),
    "trajectories": ("log_p0",),
}  # of Transitions, by the need that fills them
SHAPES = ((), (COUNT,), (TRAJECTORIES,), (TRAJECTORIES, COUNT // TRAJECTORIES))  # of metrics
OF_TRAJECTORIES = ("log_reward", "trajectory", "prompt")


def transitions(
    objective: Any, scale: float = 1.0, beta: float = BETA, seed: int = 0
) -> Transitions:
    """Eight transitions as the engine would give them to this objective, two per trajectory.

    Trajectories 0 and 1 have one prompt, 2 and 3 another; the last four transitions end their
    trajectories. An objective on whole trajectories gets them as (4, 2).
    """
    source = torch.Generator().manual_seed(seed)

    def draw(size: float) -> Tensor:
        return scale * size * torch.randn(COUNT, generator=source)

    needs: Needs = objective.needs
    log_pf_old, log_pb, moved = draw(0.3), draw(0.3), draw(0.01)
    trajectory = torch.arange(COUNT) % TRAJECTORIES
    rewards = scale * beta * torch.randn(TRAJECTORIES, generator=source)[trajectory]
    whole = Transitions(
        log_pf=log_pf_old.clone(),
        log_pf_old=log_pf_old,
        log_pb=log_pb if needs.log_pb else None,
        log_flow=None,
        log_flow_next=None,
        beta=scale * beta,
        final_beta=scale * BETA,
        scale=scale,
        log_reward=rewards if needs.rewards else None,
        trajectory=trajectory if needs.rewards else None,
        prompt=trajectory // (TRAJECTORIES // PROMPTS) if needs.rewards else None,
        log_p_base=draw(0.3) if needs.log_p_base else None,
    )
    with torch.no_grad():
        window = with_flow(objective, whole) if needs.window else None
    moved_on = replace(with_flow(objective, whole), log_pf=log_pf_old + moved, window=window)
    if needs.trajectories:
        moved_on = _as_trajectories(objective, moved_on, draw(0.3)[:TRAJECTORIES])
    return replace(moved_on, log_pf=moved_on.log_pf.requires_grad_())


def count(objective: Any) -> int:
    """How many losses the objective must return for `transitions`."""
    return TRAJECTORIES if objective.needs.trajectories else COUNT


def _as_trajectories(objective: Any, batch: Transitions, log_p0: Tensor) -> Transitions:
    """Transitions' fields as (4, 2) and trajectories' as (4,), with log_p0 and log Z."""
    columns: dict[str, Any] = {
        name: values[:TRAJECTORIES] if name in OF_TRAJECTORIES else values.view(2, -1).T
        for name in (field.name for field in fields(batch))
        if isinstance(values := getattr(batch, name), Tensor)
    }
    if objective.needs.log_z:
        columns["log_z"] = batch.scale * ask_log_z(objective)
    return replace(batch, log_p0=log_p0, **columns)


def ask_log_z(objective: Any) -> Tensor:
    """log Z of the four trajectories' prompts, (4,), as the engine asks for it."""
    module = getattr(objective, "log_z", None)
    if not isinstance(objective, nn.Module) or not isinstance(module, nn.Module):
        advise(
            f"{type(objective).__name__} asks for log_z, so it must be an nn.Module with a module "
            f"`log_z`: prompt_embeds (B, L, E) -> (B,), which the engine calls."
        )
    embeds = flow_inputs(PROMPTS)[2].repeat_interleave(TRAJECTORIES // PROMPTS, 0)
    values: Tensor = module(embeds)
    if values.shape != (TRAJECTORIES,):
        advise(
            f"log_z returned the shape {tuple(values.shape)} for prompt_embeds "
            f"{tuple(embeds.shape)}, not ({TRAJECTORIES},)."
        )
    return values


def with_flow(objective: Any, batch: Transitions) -> Transitions:
    """The batch with log F at both ends, from the objective's flow network, if it needs that."""
    if not objective.needs.log_flow:
        return batch
    count = len(batch.log_pf)
    latents, times, embeds = flow_inputs(count)
    potential = batch.beta * torch.linspace(-1, 1, count)
    inner = torch.arange(count) < count // 2
    log_flow = batch.scale * ask_flow(objective, latents, times, embeds) + potential
    later = batch.scale * inner * ask_flow(objective, latents.flip(3), times - 50, embeds)
    return replace(batch, log_flow=log_flow, log_flow_next=later - potential)


def ask_flow(objective: Any, latents: Tensor, times: Tensor, embeds: Tensor) -> Tensor:
    """The flow of some states, (B,), as the engine asks for it."""
    flow = getattr(objective, "flow", None)
    if not isinstance(objective, nn.Module) or not isinstance(flow, nn.Module):
        advise(
            f"{type(objective).__name__} asks for log_flow, so it must be an nn.Module with a "
            f"module `flow`: (latents, timesteps, prompt_embeds) -> (B,), which the engine calls."
        )
    try:
        values: Tensor = flow(latents, times, embeds)
    except Exception as error:
        advise(
            f"flow raised {type(error).__name__}: {error}. It gets latents "
            f"{tuple(latents.shape)}, timesteps {tuple(times.shape)} (int64) and prompt_embeds "
            f"{tuple(embeds.shape)}; take their widths from the PolicySpec."
        )
    if values.shape != times.shape:
        advise(
            f"flow returned the shape {tuple(values.shape)} for {len(times)} states, not "
            f"({len(times)},). Pool over the image, and squeeze(1) the last layer."
        )
    return values


def flow_inputs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, C, 8, 8), timesteps (B,) and prompt_embeds (B, 5, E)."""
    source = torch.Generator().manual_seed(count)
    latents = torch.randn(count, SPEC.latent_channels, SIDE, SIDE, generator=source)
    embeds = torch.randn(count, TOKENS, SPEC.cross_attention_dim, generator=source)
    return latents, torch.linspace(951, 51, count).long(), embeds


def cut(batch: Transitions, sizes: list[int]) -> Iterator[Transitions]:
    """The batch in parts, each with the same window."""
    columns = {
        field.name: value.split(sizes)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    for k in range(len(sizes)):
        yield replace(batch, **{name: parts[k] for name, parts in columns.items()})


def declared(objective: Any) -> list[str]:
    """The needs that are true, by name."""
    return [need for need in FIELDS if getattr(objective.needs, need)]
