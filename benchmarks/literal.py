"""The authors' procedure, following Algorithm 1 of the paper and their code, for comparison.

Goes through a mini-batch of trajectories one transition at a time: x0hat of the current network's
text branch at both ends, each decoded and scored; the guided prediction; the flow network at both
ends; a backward pass. It shares the mathematics of one Gaussian step with dagflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dagflow.collect import Epoch
from dagflow.diffusion import path as gaussian
from dagflow.engine.scoring import ask, total
from dagflow.engine.window import Window
from dagflow.prepare import Run


def literal_update(run: Run, data: Epoch, window: Window, together: int) -> None:
    """One optimizer step of `db` or plain `kl` on the window's trajectories, all their steps."""
    learner, settings = run.learner, run.learner.settings
    chosen = window.rows[:, 0].unique()
    for batch in chosen.split(together):
        for i in range(run.path.steps):
            loss = _loss(run, data, window.beta, batch, i)
            (loss.sum() / len(window.rows)).backward()
    for parameters in (run.policy.parameters(), learner.objective_parameters):
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)


def _loss(run: Run, data: Epoch, beta: float, batch: Tensor, i: int) -> Tensor:
    policy, learner, path = run.policy, run.learner, run.path
    objective, states = learner.objective, data.trajectories.latents
    x, x_next = states[batch, i], states[batch, i + 1]
    embeds = data.trajectories.prompt_embeds[batch]
    known = path.timesteps.to(policy.device)
    times = [known[k].expand(len(batch)) for k in (i, min(i + 1, path.steps))]
    step = gaussian.step_from(path, torch.full((len(batch),), i, device=policy.device))
    guided = policy.predict(x, times[0], embeds).guided
    x0 = policy.predicted_x0(step.state, x, guided)
    log_pf = gaussian.log_pf(step, x, x_next, x0, learner.density)
    log_pb = gaussian.log_pb(step, x, x_next, learner.density)
    log_flow = objective.flow(x, times[0], embeds.float()) + beta * _reward(run, data, batch, i)
    log_flow_next = beta * _reward(run, data, batch, i + 1)
    if i + 1 < path.steps:
        log_flow_next = log_flow_next + objective.flow(x_next, times[1], embeds.float())
    drift = (guided - data.trajectories.noise_pred[batch, i]).pow(2).flatten(1).mean(1)
    penalty = learner.settings.regulariser * drift
    if run.config.objective.name == "db":
        return (log_flow + log_pf - log_flow_next - log_pb) ** 2 + penalty
    delta = log_flow + log_pf.detach() - log_flow_next - log_pb
    ratio = (log_pf - data.trajectories.log_pf[batch, i]).exp()
    clip = objective.clip
    cost = delta.detach()
    policy_loss = torch.maximum(cost * ratio, cost * ratio.clamp(1 - clip, 1 + clip))
    return delta**2 + objective.coefficient * policy_loss + penalty


@torch.no_grad()
def _reward(run: Run, data: Epoch, batch: Tensor, i: int) -> Tensor:
    """The reward of the decoded x0hat at state i, or of the image at the last state."""
    policy, path = run.policy, run.path
    x = data.trajectories.latents[batch, i]
    if i < path.steps:
        place = torch.full((len(batch),), i, device=policy.device)
        times = path.timesteps.to(policy.device)[place]
        output = policy.predict_text(x, times, data.trajectories.prompt_embeds[batch])
        x = policy.predicted_x0(gaussian.state_at(path, place), x, output)
    prompts = [data.trajectories.prompts[k] for k in batch.tolist()]
    return total(data.rewards, ask(data.rewards, policy.decode(x), prompts)()).to(policy.device)


def literal_updates(run: Run, data: Epoch, every: Sequence[Window], together: int) -> None:
    """All updates of an epoch."""
    for window in every:
        literal_update(run, data, window, together)
