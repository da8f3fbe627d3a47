"""Rewards of intermediate states under the network as it is now (`potential = "current"`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.engine.learner import Learner
from dagflow.engine.scoring import Scores, WeightedReward, ask, total
from dagflow.engine.window import Window


@torch.no_grad()
def current_potentials(
    learner: Learner, window: Window, rewards: Sequence[WeightedReward]
) -> Tensor:
    """Potentials (B, T+1) of the current network at the states that the window touches.

    The reward of the decoded x0hat of the text branch; the last column stays the image's own.
    """
    policy, trajectories = learner.policy, window.trajectories
    steps = window.path.steps
    values = window.potentials.clone()
    asked: list[tuple[Tensor, Tensor, Scores]] = []
    touched = torch.cat([window.rows, window.rows + torch.tensor([0, 1])]).unique(dim=0)
    touched = touched[touched[:, 1] < steps]
    for part in window.part(touched).parts(learner.settings.microbatch_size):
        b, i = part.places()
        x = trajectories.latents[b, i]
        times = window.path.timesteps.to(policy.device)[i]
        output = policy.predict_text(x, times, trajectories.prompt_embeds[b])
        state = gaussian.state_at(window.path, i)
        images = policy.decode(policy.predicted_x0(state, x, output))
        asked.append((b, i, ask(rewards, images, [trajectories.prompts[k] for k in b.tolist()])))
    for b, i, scores in asked:
        values[b, i] = total(rewards, scores())
    return values
