"""One optimizer step on a window of transitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from dagflow.config import UpdateTable
from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.scoring import Scores, WeightedReward, ask, total
from dagflow.errors import PluginError, RunError, raised
from dagflow.policies.stable_diffusion import StableDiffusionPolicy
from dagflow.types import FlowObjective, LogDensity, Objective, Trajectories, Transitions


@dataclass(frozen=True)
class Learner:
    """What learns, and how: the only mutable things of a run."""

    policy: StableDiffusionPolicy
    objective: Objective
    optimizer: torch.optim.AdamW
    settings: UpdateTable
    density: LogDensity

    @property
    def objective_parameters(self) -> list[nn.Parameter]:
        return list(self.objective.parameters()) if isinstance(self.objective, nn.Module) else []


@dataclass(frozen=True)
class Window:
    """The transitions of one optimizer step, and what they are made of."""

    trajectories: Trajectories
    potentials: Tensor  # (B, T+1)
    path: GaussianPath
    rows: Tensor  # (M, 2) int64: trajectory, step
    beta: float
    final_beta: float

    def part(self, rows: Tensor) -> Window:
        """The same with fewer rows."""
        return replace(self, rows=rows)


def make_learner(
    policy: StableDiffusionPolicy, objective: Objective, settings: UpdateTable, density: LogDensity
) -> Learner:
    """A learner with one AdamW and a group (and learning rate) each for policy and objective."""
    groups = [{"params": policy.parameters(), "lr": settings.learning_rate}]
    if isinstance(objective, nn.Module):
        objective.to(policy.device)
        flow = {"params": list(objective.parameters()), "lr": settings.flow_learning_rate}
        groups += [flow] if flow["params"] else []
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    return Learner(policy, objective, optimizer, settings, density)


def update(learner: Learner, window: Window) -> dict[str, float]:
    """One step of policy and objective on all transitions of the window; returns its metrics.

    log_pf reaches the objective as a leaf. Its gradient is then propagated through the network,
    one micro-batch at a time. Raises RunError, before the step, if a loss or gradient is not
    finite.
    """
    metrics = Averages()
    whole = _whole(learner, window)
    for rows in window.rows.split(learner.settings.microbatch_size):
        _backward(learner, window.part(rows), whole, len(window.rows), metrics)
    scale = _scale(learner, window.trajectories.latents)
    return {**metrics.means(), **_step(learner, learner.policy.parameters(), scale)}


def warm_up(learner: Learner, window: Window) -> dict[str, float]:
    """One step of the objective's own parameters alone, with the rollout's log_pf."""
    metrics = Averages()
    whole = _whole(learner, window)
    for rows in window.rows.split(learner.settings.microbatch_size):
        part = window.part(rows)
        batch = _numbers(learner, part, _old_log_pf(part).requires_grad_(), whole)
        _objective_backward(learner, batch, len(window.rows), metrics)
    scale = _scale(learner, window.trajectories.latents)
    return {**metrics.means(), **_step(learner, [], scale)}


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
    for rows in touched[touched[:, 1] < steps].split(learner.settings.microbatch_size):
        b, i = rows.to(policy.device).unbind(1)
        x = trajectories.latents[b, i]
        times = window.path.timesteps.to(policy.device)[i]
        output = policy.predict_text(x, times, trajectories.prompt_embeds[b])
        state = gaussian.state_at(window.path, i)
        images = policy.decode(gaussian.predicted_x0(state, x, output, policy.prediction_type))
        asked.append((b, i, ask(rewards, images, [trajectories.prompts[k] for k in b.tolist()])))
    for b, i, scores in asked:
        values[b, i] = total(rewards, scores())
    return values


def _backward(
    learner: Learner, part: Window, whole: Transitions | None, total: int, metrics: Averages
) -> None:
    """Accumulate the gradients of one micro-batch of a window of `total` transitions."""
    policy, trajectories = learner.policy, part.trajectories
    b, i = part.rows.to(policy.device).unbind(1)
    x = trajectories.latents[b, i]
    times = part.path.timesteps.to(policy.device)[i]
    prediction = policy.predict(x, times, trajectories.prompt_embeds[b]).guided
    step = gaussian.step_from(part.path, i)
    x0 = gaussian.predicted_x0(step.state, x, prediction, policy.prediction_type)
    log_pf = gaussian.log_pf(step, x, trajectories.latents[b, i + 1], x0, learner.density)

    leaf = log_pf.detach().requires_grad_()
    batch = _numbers(learner, part, leaf, whole)
    _objective_backward(learner, batch, total, metrics)
    drift = (prediction - trajectories.noise_pred[b, i]).pow(2).flatten(1).mean(1)
    penalty = learner.settings.regulariser * batch.scale**2 * drift.sum() / total
    through_policy = 0.0 if leaf.grad is None else (log_pf * leaf.grad).sum()
    (through_policy + penalty).backward()
    metrics.add("regulariser", drift)
    metrics.add("log_ratio", (leaf.detach() - batch.log_pf_old) / batch.scale)


def _objective_backward(
    learner: Learner, batch: Transitions, total: int, metrics: Averages
) -> None:
    """Gradients of the mean loss, for the objective's own parameters and the leaf log_pf."""
    try:
        loss, extra = learner.objective(batch)
        if loss.shape != batch.log_pf.shape:
            raise ValueError(f"the loss has shape {tuple(loss.shape)}, not ({len(batch.log_pf)},)")
        (loss.sum() / total).backward()
        for name, values in {"loss": loss, **extra}.items():
            metrics.add(name, values)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        name = type(learner.objective).__name__
        raise PluginError(f"objective {name} {raised(error)}") from error
    if not loss.isfinite().all():
        raise RunError("the loss is not finite; the step was not taken")


def _numbers(
    learner: Learner, part: Window, log_pf: Tensor, whole: Transitions | None
) -> Transitions:
    """What the objective needs to know of some transitions, and nothing else."""
    needs, trajectories = learner.objective.needs, part.trajectories
    device = learner.policy.device
    b, i = part.rows.to(device).unbind(1)
    latents = trajectories.latents
    log_pb = None
    if needs.log_pb:
        step = gaussian.step_from(part.path, i)
        log_pb = gaussian.log_pb(step, latents[b, i], latents[b, i + 1], learner.density)
    ends = (_log_flow(learner, part, b, i), _log_flow(learner, part, b, i + 1))
    return Transitions(
        log_pf=log_pf,
        log_pf_old=trajectories.log_pf[b, i],
        log_pb=log_pb,
        log_flow=ends[0],
        log_flow_next=ends[1],
        beta=part.beta,
        final_beta=part.final_beta,
        scale=_scale(learner, latents),
        window=whole,
        **(_rewards(part, b) if needs.rewards else {}),
    )


def _rewards(part: Window, b: Tensor) -> dict[str, Tensor]:
    """What trajectories b earned, times beta, and which trajectory and prompt each one is.

    A prompt's number is that of the first trajectory with the same text: what the policy is told.
    """
    texts = [prompt.text for prompt in part.trajectories.prompts]
    first = {text: k for k, text in reversed(list(enumerate(texts)))}
    return {
        "log_reward": part.beta * part.potentials[b, -1],
        "trajectory": b,
        "prompt": torch.tensor([first[texts[k]] for k in b.tolist()], device=b.device),
    }


def _log_flow(learner: Learner, part: Window, b: Tensor, i: Tensor) -> Tensor | None:
    """log F of states i of trajectories b: F_phi plus beta * potential; at the end beta * reward.

    Forward-looking flow, equation 10 of the paper. F_phi counts in units of the log-density, so
    that with `sum` it is multiplied by D.
    """
    needs = learner.objective.needs
    if not needs.log_flow:
        return None
    objective = cast(FlowObjective, learner.objective)
    trajectories = part.trajectories
    times = part.path.timesteps.to(i.device)[i]
    learned: Tensor = objective.flow(
        trajectories.latents[b, i], times, trajectories.prompt_embeds[b].float()
    )
    inner = i < part.path.steps
    known = part.potentials[b, i] if needs.potentials else part.potentials[b, i] * ~inner
    return learned * inner * _scale(learner, trajectories.latents) + part.beta * known


def _scale(learner: Learner, latents: Tensor) -> float:
    return float(latents[0, 0].numel()) if learner.density == "sum" else 1.0


def _old_log_pf(part: Window) -> Tensor:
    b, i = part.rows.to(part.trajectories.log_pf.device).unbind(1)
    return part.trajectories.log_pf[b, i]


@torch.no_grad()
def _whole(learner: Learner, window: Window) -> Transitions | None:
    """The numbers of the whole window with the rollout's log_pf, if the objective asks for them."""
    if not learner.objective.needs.window:
        return None
    parts = [
        _numbers(learner, part, _old_log_pf(part), None)
        for part in map(window.part, window.rows.split(learner.settings.microbatch_size))
    ]
    columns = ("log_pf", "log_pf_old", "log_pb", "log_flow", "log_flow_next",
               "log_reward", "trajectory", "prompt")  # fmt: skip
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in columns
        if getattr(parts[0], name) is not None
    }
    empty = dict.fromkeys(columns)
    first = parts[0]
    return Transitions(
        **{**empty, **joined},  # type: ignore[arg-type]
        beta=first.beta,
        final_beta=first.final_beta,
        scale=first.scale,
    )


def _step(
    learner: Learner, policy_parameters: list[nn.Parameter], scale: float
) -> dict[str, float]:
    """Clip each group, step, and forget the gradients.

    Losses are squares of log-densities, so the norm at which to clip grows with scale squared.
    """
    limit = learner.settings.max_grad_norm * scale**2
    norms = {}
    groups = {"policy": policy_parameters, "flow": learner.objective_parameters}
    for name, parameters in groups.items():
        if parameters:
            norm = nn.utils.clip_grad_norm_(parameters, limit)
            norms[f"{name}_grad_norm"] = float(norm)
            if not norm.isfinite():
                raise RunError(f"the gradient of the {name} is not finite; the step was not taken")
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return norms


class Averages:
    """Means over the items of all micro-batches, by name."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, name: str, values: Tensor) -> None:
        self._sums[name] += float(values.detach().sum())
        self._counts[name] += values.numel()

    def means(self) -> Mapping[str, float]:
        return {name: self._sums[name] / self._counts[name] for name in self._sums}
