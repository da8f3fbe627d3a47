"""Rewards of images, and of what intermediate states look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dagflow.errors import PluginError
from dagflow.types import Potential, Prompt, Reward, Trajectories

if TYPE_CHECKING:  # a server of rewards has no diffusers
    from dagflow.policies.stable_diffusion import StableDiffusionPolicy


@dataclass(frozen=True)
class WeightedReward:
    """A reward under its label in the configuration; it counts weight * reward + offset."""

    label: str
    reward: Reward
    weight: float
    offset: float = 0.0
    normalise_epochs: int = 0  # standardised by the statistics of so many first epochs; 0: never


def place(reward: Reward, device: torch.device) -> Reward:
    """Move a reward that is a module to the device, freeze it and put it in eval mode."""
    if isinstance(reward, nn.Module):
        reward.to(device).requires_grad_(False).eval()
    return reward


@torch.no_grad()
def score(rewards: Sequence[WeightedReward], images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """The weighted sum of all rewards, float32 (B,), on the device of the images.

    images: float32 (B, 3, height, width) in [0, 1]. Raises PluginError if a reward raises or
    returns a wrong shape or a value that is not finite, naming the reward and the prompt.
    """
    return total(rewards, raw_scores(rewards, images, prompts))


@torch.no_grad()
def raw_scores(
    rewards: Sequence[WeightedReward], images: Tensor, prompts: Sequence[Prompt]
) -> Tensor:
    """What each of R rewards says, without weights, float32 (R, B); raises as `score` does."""
    none = torch.zeros(0, len(images), device=images.device)
    asked = [_ask(item, images, prompts).to(none) for item in rewards]
    return torch.stack(asked) if asked else none


def total(rewards: Sequence[WeightedReward], raw: Tensor) -> Tensor:
    """The weighted sum (B,) of raw scores (R, B)."""
    result = torch.zeros_like(raw[0])
    for item, values in zip(rewards, raw, strict=True):
        result += item.weight * values + item.offset
    return result


@torch.no_grad()
def potentials(
    policy: StableDiffusionPolicy,
    rewards: Sequence[WeightedReward],
    trajectories: Trajectories,
    final: Tensor,
    kind: Potential,
    progress: Callable[[int], None],
) -> Tensor:
    """Rewards at every state of B trajectories, float32 (B, T+1).

    The last column is `final` (B,), the reward of the image. The others are, for `rollout`, the
    reward of the decoded x0hat of the network that sampled; for `none` and `current` (which the
    update computes itself) zero.
    """
    batch, steps = trajectories.log_pf.shape
    values = torch.zeros(batch, steps + 1, device=trajectories.latents.device)
    values[:, -1] = final
    for i in range(steps if kind == "rollout" else 0):
        images = policy.decode(trajectories.previews[:, i])
        values[:, i] = score(rewards, images, trajectories.prompts)
        progress(batch)
    return values


def _ask(item: WeightedReward, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    try:
        values = item.reward(images, prompts)
    except torch.OutOfMemoryError:
        raise
    except PluginError as error:  # it says itself what happened
        raise PluginError(f"reward '{item.label}': {error}") from error
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"reward '{item.label}' raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(values, Tensor) or values.shape != (len(images),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(
            f"reward '{item.label}' returned {got}; a tensor of shape ({len(images)},) is due"
        )
    if not values.isfinite().all():
        bad = int((~values.isfinite()).nonzero()[0])
        raise PluginError(
            f"reward '{item.label}' returned {float(values[bad])} for the prompt "
            f"'{prompts[bad].text}'"
        )
    return values
