"""One optimizer step on a window of transitions.

log_pf reaches the objective as a leaf. Its gradient is then propagated through the network, one
micro-batch at a time. An objective on whole trajectories couples all their transitions, so its
window passes twice: first without gradient, for the numbers; then each micro-batch again, with the
loss's gradient at those numbers. Memory depends on neither T nor the size of the window. A window
that is a single micro-batch passes once.

Each process passes its own transitions. Processes share only the few numbers per transition that
an objective gets, and only if it needs those of others. They sum gradients once, before the step.

Each state is passed and evaluated once in a pass. Potentials of the current network use the same
pass; if an objective needs those of the whole window first, the text branch alone passes before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dagflow.diffusion import path as gaussian
from dagflow.engine.learner import Learner
from dagflow.engine.potentials import CurrentPotentials
from dagflow.engine.window import (
    Window,
    as_trajectories,
    flows,
    joined,
    log_z,
    numbers,
    of_all,
    whole_window,
)
from dagflow.errors import NotFinite, PluginError, RunError, blaming
from dagflow.profiling import span, traced
from dagflow.types import RESERVED_METRICS, Transitions

FLOWS = ("log_flow", "log_flow_next")
Sums = dict[str, tuple[float, int]]  # the sum over some items and their number, by name


class Passed(NamedTuple):
    """The results of a pass of the current network for M transitions."""

    log_pf: Tensor  # (M,)
    guided: Tensor  # (M, C, H, W)


def update(learner: Learner, given: Window | CurrentPotentials) -> dict[str, float]:
    """One step of policy and objective on all transitions of a window; returns its metrics.

    Fills in the potentials of a window that uses the current network's. Raises NotFinite, before
    the step, if a loss or gradient is not finite.
    """
    current = given if isinstance(given, CurrentPotentials) else None
    window = given.window if isinstance(given, CurrentPotentials) else given

    def gradients() -> Sums:
        metrics = Averages()
        if learner.objective.needs.trajectories:
            _whole_trajectories(learner, window, current, metrics)
        else:
            _single_transitions(learner, window, current, metrics)
        return metrics.read()

    return _step(learner, learner.processes.share(gradients), learner.policy.parameters())


def _whole_trajectories(
    learner: Learner, window: Window, current: CurrentPotentials | None, metrics: Averages
) -> None:
    parts, total = window.parts(learner.settings.microbatch_size), window.total
    idle = learner.processes.passes(len(parts)) - len(parts)
    once = len(parts) == 1 and not learner.processes.lockstep
    together = pass_rows(learner, window, current) if once else None
    with torch.no_grad():
        log_pf = [(together or pass_rows(learner, part, current)).log_pf for part in parts]
        _idle(learner, window, idle)
    if current:
        current.settle()
    slopes = _slopes(learner, window, log_pf, metrics)
    for part, slope in zip(parts, slopes, strict=True):
        with traced("update"):
            passed = together or pass_rows(learner, part, None)
            through_policy = (passed.log_pf * slope["log_pf"]).sum()
            through_flow = _through_flow(learner, part, slope)
            penalty = _penalty(learner, part, passed.guided, total, metrics)
            with span("backward"):
                (through_policy + through_flow + penalty).backward()
        _log_ratio(learner, part, passed.log_pf, metrics)
    _idle(learner, window, idle)


def _single_transitions(
    learner: Learner, window: Window, current: CurrentPotentials | None, metrics: Averages
) -> None:
    if current and learner.objective.needs.window:
        current.complete(window)
    whole = whole_window(learner, window)
    parts = window.parts(learner.settings.microbatch_size)
    idle = learner.processes.passes(len(parts)) - len(parts)
    for part in reversed(parts):
        with traced("update"):
            passed = pass_rows(learner, part, current)
            if current:
                current.complete(part)
            leaf = passed.log_pf.detach().requires_grad_()
            batch = numbers(learner, part, leaf, whole)
            _objective_backward(learner, batch, window.total, metrics)
            loss = _penalty(learner, part, passed.guided, window.total, metrics)
            if leaf.grad is not None:
                loss = loss + (passed.log_pf * leaf.grad).sum()
            with span("backward"):
                loss.backward()
        _log_ratio(learner, part, passed.log_pf, metrics)
    _idle(learner, window, idle)


def _idle(learner: Learner, window: Window, count: int) -> None:
    """Passes that the other processes need this one to make; their results are not used."""
    for _ in range(count):
        passed = pass_rows(learner, window.part(torch.zeros(1, 2, dtype=torch.int64)), None)
        if torch.is_grad_enabled():
            (0 * passed.guided.sum()).backward()


def warm_up(learner: Learner, window: Window) -> dict[str, float]:
    """One step of only the objective's own parameters, with the rollout's log_pf."""
    parts = window.parts(learner.settings.microbatch_size)

    def gradients() -> Sums:
        metrics = Averages()
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
                _objective_backward(learner, batch, window.total, metrics)
        return metrics.read()

    return _step(learner, learner.processes.share(gradients), [])


def pass_rows(learner: Learner, part: Window, current: CurrentPotentials | None) -> Passed:
    """Pass the current network at the states where some rows begin; `current` may look too."""
    policy, trajectories = learner.policy, part.trajectories
    b, i = part.places
    x = trajectories.latents[b, i]
    times = part.path.times(i)
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

    These are the gradients of log_pf and, if the objective has them, of the flows; the objective's
    other parameters get theirs here. Every process computes the loss of all processes'
    trajectories.
    """
    size = learner.settings.microbatch_size
    parts = window.parts(size)

    @torch.no_grad()
    def told() -> Transitions | None:
        pairs = zip(parts, log_pf, strict=True)
        flat = [numbers(learner, part, values, None) for part, values in pairs]
        return as_trajectories(learner, window, joined(flat)) if flat else None

    whole, own = of_all(learner, told)
    leaves = {
        name: values.clone().requires_grad_()
        for name in ("log_pf", "log_z", *FLOWS)
        if (values := getattr(whole, name)) is not None
    }
    batch = replace(whole, **leaves)
    _objective_backward(learner, batch, len(batch.log_pf), metrics, learner.processes.size)
    slopes = {
        name: (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)[own]
        for name, leaf in leaves.items()
    }
    if "log_z" in slopes and parts:
        (log_z(learner, window) * slopes.pop("log_z")).sum().backward()
    split = {name: values.flatten().split(size) for name, values in slopes.items()}
    return [{name: values[k] for name, values in split.items()} for k in range(len(parts))]


def _through_flow(learner: Learner, part: Window, slope: Mapping[str, Tensor]) -> Tensor:
    """A scalar whose gradient is that of the loss through the flow network."""
    result = torch.zeros((), device=learner.policy.device)
    if not learner.objective.needs.log_flow:
        return result
    for name, values in zip(FLOWS, flows(learner, part), strict=True):
        result = result + (values * slope[name]).sum()
    return result


def _penalty(
    learner: Learner, part: Window, prediction: Tensor, total: int, metrics: Averages
) -> Tensor:
    """The regulariser's contribution to the mean loss over `total` transitions."""
    b, i = part.places
    drift = (prediction - part.trajectories.noise_pred[b, i].float()).pow(2).flatten(1).mean(1)
    metrics.add("regulariser", drift)
    return learner.settings.regulariser * learner.scale**2 * drift.sum() / total


def _log_ratio(learner: Learner, part: Window, log_pf: Tensor, metrics: Averages) -> None:
    metrics.add("log_ratio", (log_pf.detach() - part.log_pf_old) / learner.scale)


def _objective_backward(
    learner: Learner, batch: Transitions, total: int, metrics: Averages, times: int = 1
) -> None:
    """Gradients of the mean loss, for the objective's own parameters and the leaves.

    `times`: how many processes do the same. Each divides its parameters' gradients by that.
    """
    count = len(batch.log_pf)
    with blaming(learner.who, torch.OutOfMemoryError):
        loss, extra = _loss_and_metrics(learner.objective(batch), count)
        with span("flow"):
            (loss.sum() / total).backward()
        if times > 1:
            for parameter in learner.objective_parameters:
                if parameter.grad is not None:
                    parameter.grad /= times
        for name, values in {"loss": loss, **extra}.items():
            metrics.add(name, values)


def _loss_and_metrics(answer: object, count: int) -> tuple[Tensor, Mapping[str, Tensor]]:
    """What an objective returned for B = `count`. Raises PluginError if that is something else."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        got = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
        raise PluginError(f"it returned {got}; expected a loss ({count},) and a mapping of metrics")
    loss, extra = answer
    if not isinstance(loss, Tensor) or loss.shape != (count,):
        got = str(tuple(loss.shape)) if isinstance(loss, Tensor) else type(loss).__name__
        raise PluginError(f"its loss is {got}; expected a tensor of shape ({count},)")
    if not loss.requires_grad:
        raise PluginError("its loss has no gradient; compute it from log_pf, without detach()")
    if not isinstance(extra, Mapping):
        raise PluginError(f"its metrics are {type(extra).__name__}; expected a mapping of tensors")
    for name, values in extra.items():
        if not isinstance(name, str) or name in RESERVED_METRICS:
            raise PluginError(f"its metric {name!r} has a name that the engine uses itself")
        if not isinstance(values, Tensor) or not values.numel():
            got = "an empty tensor" if isinstance(values, Tensor) else type(values).__name__
            raise PluginError(f"its metric '{name}' is {got}; expected a tensor with values")
    return loss, extra


def _step(
    learner: Learner, told: Sequence[Sums], policy_parameters: list[nn.Parameter]
) -> dict[str, float]:
    """Sum the processes' gradients, clip each group, step, and drop the gradients.

    Losses are squares of log-densities, so the norm at which to clip grows with scale squared.
    Returns the metrics over all processes, and the norms.
    """
    metrics = means(told)
    if not math.isfinite(metrics["loss"]):
        raise NotFinite("the loss is not finite; the step was not taken")
    learner.processes.sum_gradients([*policy_parameters, *learner.objective_parameters])
    limit = learner.settings.max_grad_norm * learner.scale**2
    norms = {}
    groups = {"policy": policy_parameters, "flow": learner.objective_parameters}
    for name, parameters in groups.items():
        if parameters:
            norm = float(nn.utils.clip_grad_norm_(parameters, limit))
            norms[f"{name}_grad_norm"] = norm
            if not math.isfinite(norm):
                raise NotFinite(f"the gradient of the {name} is not finite; the step was not taken")
    with span("optimizer"):
        try:
            learner.optimizer.step()
        except torch.OutOfMemoryError as error:  # the step may be half done
            raise RunError("the device is out of memory for the optimizer's own state") from error
        learner.optimizer.zero_grad(set_to_none=True)
    return {**metrics, **norms}


class Averages:
    """Sums over the items of all micro-batches, and the number of items, by name.

    They stay on the device until they are read, so that the CPU need not wait.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, values: Tensor) -> None:
        more = values.detach().sum().double()
        self._sums[name] = self._sums[name] + more if name in self._sums else more
        self._counts[name] += values.numel()

    def read(self) -> Sums:
        """The sum and the number of items, by name."""
        return {name: (float(total), self._counts[name]) for name, total in self._sums.items()}


def means(told: Sequence[Sums]) -> dict[str, float]:
    """The means over the items of all processes."""
    every: Sums = {}
    for sums in told:
        for name, (total, count) in sums.items():
            before = every.get(name, (0.0, 0))
            every[name] = (before[0] + total, before[1] + count)
    return {name: total / count for name, (total, count) in every.items()}
