"""One optimizer step on a window of transitions.

log_pf reaches the objective as a leaf. Its gradient is then propagated through the network, one
micro-batch at a time. An objective on whole trajectories couples all their transitions, so its
window passes twice: without gradient first, for the numbers; then each micro-batch again, with the
loss's gradient at those numbers. Memory depends on neither T nor the size of the window. A window
that is a single micro-batch passes once.

Each state is passed and evaluated once in a pass. Potentials of the current network rest on the
same pass; where an objective wants those of all the window first, the text branch alone passes
before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dagflow.diffusion import path as gaussian
from dagflow.engine.learner import Learner
from dagflow.engine.potentials import CurrentPotentials
from dagflow.engine.window import Window, as_trajectories, flows, joined, numbers, whole_window
from dagflow.errors import PluginError, RunError, raised
from dagflow.profiling import span, traced
from dagflow.types import Transitions

FLOWS = ("log_flow", "log_flow_next")


class Passed(NamedTuple):
    """What a pass of the network as it is now says of M transitions."""

    log_pf: Tensor  # (M,)
    guided: Tensor  # (M, C, H, W)


def update(learner: Learner, given: Window | CurrentPotentials) -> dict[str, float]:
    """One step of policy and objective on all transitions of a window; returns its metrics.

    Of a window whose potentials are the current network's, those are filled in. Raises RunError,
    before the step, if a loss or gradient is not finite.
    """
    current = given if isinstance(given, CurrentPotentials) else None
    window = given.window if isinstance(given, CurrentPotentials) else given
    metrics = Averages()
    if learner.objective.needs.trajectories:
        _whole_trajectories(learner, window, current, metrics)
    else:
        _single_transitions(learner, window, current, metrics)
    return {**metrics.means(), **_step(learner, learner.policy.parameters())}


def _whole_trajectories(
    learner: Learner, window: Window, current: CurrentPotentials | None, metrics: Averages
) -> None:
    parts = window.parts(learner.settings.microbatch_size)
    together = _policy(learner, window, current) if len(parts) == 1 else None
    with torch.no_grad():
        log_pf = [(together or _policy(learner, part, current)).log_pf for part in parts]
    if current:
        current.settle()
    slopes = _slopes(learner, window, log_pf, metrics)
    for part, slope in zip(parts, slopes, strict=True):
        with traced("update"):
            passed = together or _policy(learner, part, None)
            through_policy = (passed.log_pf * slope["log_pf"]).sum()
            through_flow = _through_flow(learner, part, slope)
            penalty = _penalty(learner, part, passed.guided, len(window.rows), metrics)
            with span("backward"):
                (through_policy + through_flow + penalty).backward()
        _log_ratio(learner, part, passed.log_pf, metrics)


def _single_transitions(
    learner: Learner, window: Window, current: CurrentPotentials | None, metrics: Averages
) -> None:
    if current and learner.objective.needs.window:
        current.complete(window)
    whole = whole_window(learner, window)
    for part in reversed(window.parts(learner.settings.microbatch_size)):
        with traced("update"):
            passed = _policy(learner, part, current)
            if current:
                current.complete(part)
            leaf = passed.log_pf.detach().requires_grad_()
            batch = numbers(learner, part, leaf, whole)
            _objective_backward(learner, batch, len(window.rows), metrics)
            loss = _penalty(learner, part, passed.guided, len(window.rows), metrics)
            if leaf.grad is not None:
                loss = loss + (passed.log_pf * leaf.grad).sum()
            with span("backward"):
                loss.backward()
        _log_ratio(learner, part, passed.log_pf, metrics)


def warm_up(learner: Learner, window: Window) -> dict[str, float]:
    """One step of the objective's own parameters alone, with the rollout's log_pf."""
    metrics = Averages()
    parts = window.parts(learner.settings.microbatch_size)
    if learner.objective.needs.trajectories:
        slopes = _slopes(learner, window, [part.log_pf_old for part in parts], metrics)
        for part, slope in zip(parts, slopes, strict=True):
            if learner.objective.needs.log_flow:
                with span("flow"):
                    _through_flow(learner, part, slope).backward()
    else:
        whole = whole_window(learner, window)
        for part in parts:
            batch = numbers(learner, part, part.log_pf_old.requires_grad_(), whole)
            _objective_backward(learner, batch, len(window.rows), metrics)
    return {**metrics.means(), **_step(learner, [])}


def _policy(learner: Learner, part: Window, current: CurrentPotentials | None) -> Passed:
    """The network as it is now at the states where some rows begin; `current` may look too."""
    policy, trajectories = learner.policy, part.trajectories
    b, i = part.places()
    x = trajectories.latents[b, i]
    times = part.path.timesteps.to(policy.device)[i]
    with span("forward"):
        prediction = policy.predict(x, times, trajectories.prompt_embeds[b])
    if current:
        current.see(part, prediction.text)
    step = gaussian.step_from(part.path, i)
    x0 = policy.predicted_x0(step.state, x, prediction.guided)
    log_pf = gaussian.log_pf(step, x, trajectories.latents[b, i + 1], x0, learner.density)
    return Passed(log_pf, prediction.guided)


def _slopes(
    learner: Learner, window: Window, log_pf: list[Tensor], metrics: Averages
) -> list[dict[str, Tensor]]:
    """Gradients of the mean loss of whole trajectories, for each micro-batch of transitions.

    Of log_pf and, where the objective has them, of the flows; other parameters of the objective
    get theirs at once.
    """
    size = learner.settings.microbatch_size
    parts = window.parts(size)
    with torch.no_grad():
        told = [numbers(learner, part, p, None) for part, p in zip(parts, log_pf, strict=True)]
    flat = joined(told)
    leaves = {
        name: values.detach().clone().requires_grad_()
        for name in ("log_pf", *FLOWS)
        if (values := getattr(flat, name)) is not None
    }
    batch = as_trajectories(learner, window, replace(flat, **leaves))
    _objective_backward(learner, batch, len(batch.log_pf), metrics)
    slopes = {
        name: (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).split(size)
        for name, leaf in leaves.items()
    }
    return [{name: values[k] for name, values in slopes.items()} for k in range(len(parts))]


def _through_flow(learner: Learner, part: Window, slope: Mapping[str, Tensor]) -> Tensor:
    """A number whose gradient is that of the loss through the flow network."""
    result = torch.zeros((), device=learner.policy.device)
    if not learner.objective.needs.log_flow:
        return result
    for name, values in zip(FLOWS, flows(learner, part), strict=True):
        result = result + (values * slope[name]).sum()
    return result


def _penalty(
    learner: Learner, part: Window, prediction: Tensor, total: int, metrics: Averages
) -> Tensor:
    """The regulariser's part of the mean loss over `total` transitions."""
    b, i = part.places()
    drift = (prediction - part.trajectories.noise_pred[b, i].float()).pow(2).flatten(1).mean(1)
    metrics.add("regulariser", drift)
    return learner.settings.regulariser * learner.scale**2 * drift.sum() / total


def _log_ratio(learner: Learner, part: Window, log_pf: Tensor, metrics: Averages) -> None:
    metrics.add("log_ratio", (log_pf.detach() - part.log_pf_old) / learner.scale)


def _objective_backward(
    learner: Learner, batch: Transitions, total: int, metrics: Averages
) -> None:
    """Gradients of the mean loss, for the objective's own parameters and the leaves."""
    count = len(batch.log_pf)
    try:
        loss, extra = learner.objective(batch)
        if loss.shape != (count,):
            raise ValueError(f"the loss has shape {tuple(loss.shape)}, not ({count},)")
        with span("flow"):
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


def _step(learner: Learner, policy_parameters: list[nn.Parameter]) -> dict[str, float]:
    """Clip each group, step, and forget the gradients.

    Losses are squares of log-densities, so the norm at which to clip grows with scale squared.
    """
    limit = learner.settings.max_grad_norm * learner.scale**2
    norms = {}
    groups = {"policy": policy_parameters, "flow": learner.objective_parameters}
    for name, parameters in groups.items():
        if parameters:
            norm = nn.utils.clip_grad_norm_(parameters, limit)
            norms[f"{name}_grad_norm"] = float(norm)
            if not norm.isfinite():
                raise RunError(f"the gradient of the {name} is not finite; the step was not taken")
    with span("optimizer"):
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
