"""The transitions of one optimizer step, and the numbers about them that an objective gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from hashlib import sha256

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.learner import Learner
from dagflow.engine.levels import Levels
from dagflow.engine.rollout import select
from dagflow.profiling import span
from dagflow.types import Trajectories, Transitions

OF_TRAJECTORIES = ("log_reward", "trajectory", "prompt")  # one number per trajectory


@dataclass(frozen=True)
class Window:
    """This process's transitions of one optimizer step, and the data that they refer to.

    For an objective on whole trajectories, `rows` holds all steps of one trajectory after another.
    """

    trajectories: Trajectories
    potentials: Tensor  # (B, T+1)
    path: GaussianPath
    rows: Tensor  # (M, 2) int64: trajectory, step; on the CPU, so that it never waits for them
    beta: float
    final_beta: float
    levels: Levels
    everywhere: int | None = None  # the step's transitions in all processes; None: these are all

    @property
    def total(self) -> int:
        """The number of transitions of the step in all processes."""
        return len(self.rows) if self.everywhere is None else self.everywhere

    def with_potentials(self, potentials: Tensor) -> Window:
        """The same window with other potentials."""
        return replace(self, potentials=potentials)

    def part(self, rows: Tensor) -> Window:
        """The same window with fewer rows."""
        return replace(self, rows=rows, everywhere=self.total)

    def parts(self, size: int) -> list[Window]:
        """Micro-batches of `size` rows."""
        return [self.part(rows) for rows in self.rows.split(size) if len(rows)]

    def on(self, device: torch.device) -> Window:
        """With only the trajectories of its rows, on that device except their images."""
        chosen, place = self.rows[:, 0].unique(return_inverse=True)
        return replace(
            self,
            trajectories=select(self.trajectories, chosen.tolist(), device),
            potentials=self.potentials[chosen.to(self.potentials.device)],
            rows=torch.stack([place, self.rows[:, 1]], 1),
        )

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Trajectory and step of each row, on the device of the trajectories."""
        b, i = sent(self.rows, self.trajectories.latents.device).unbind(1)
        return b, i

    @property
    def log_pf_old(self) -> Tensor:
        """log_pf of each row under the sampling network, (M,)."""
        b, i = self.places
        return self.trajectories.log_pf[b, i]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy a few values from the CPU to a device, without waiting for its pending work."""
    return values.to(device, non_blocking=True)


def numbers(
    learner: Learner, part: Window, log_pf: Tensor, whole: Transitions | None
) -> Transitions:
    """What the objective needs to know about some transitions, and nothing else."""
    needs, trajectories = learner.objective.needs, part.trajectories
    b, i = part.places
    latents = trajectories.latents
    log_pb = None
    if needs.log_pb:
        step = gaussian.step_from(part.path, i)
        log_pb = gaussian.log_pb(step, latents[b, i], latents[b, i + 1], learner.density)
    log_flow, log_flow_next = flows(learner, part) if needs.log_flow else (None, None)
    return Transitions(
        log_pf=log_pf,
        log_pf_old=part.log_pf_old,
        log_pb=log_pb,
        log_flow=log_flow,
        log_flow_next=log_flow_next,
        beta=part.beta,
        final_beta=part.final_beta,
        scale=learner.scale,
        window=whole,
        log_p_base=trajectories.log_p_base[b, i]
        if needs.log_p_base and trajectories.log_p_base is not None
        else None,
        **(_rewards(part) if needs.rewards else {}),
    )


def _rewards(part: Window) -> dict[str, Tensor]:
    """Beta times the reward of each row's trajectory, and the trajectory's and prompt's numbers.

    A prompt's number is a hash of its text, which is what the policy sees. It is the same in all
    processes.
    """
    (b, _), prompts = part.places, part.trajectories.prompts
    hashes = torch.tensor([_hash(prompts[k].text) for k in part.rows[:, 0].tolist()])
    return {
        "log_reward": part.beta * part.potentials[b, -1],
        "trajectory": part.trajectories.index[b],
        "prompt": sent(hashes, b.device),
    }


@lru_cache(maxsize=4096)
def _hash(text: str) -> int:
    """A 63-bit hash."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1


def flows(learner: Learner, part: Window) -> tuple[Tensor, Tensor]:
    """log F at both ends of each row, (M,) each; a state shared by two rows is evaluated once."""
    rows = part.rows
    ends = torch.cat([rows, rows + torch.tensor([0, 1])])
    distinct, place = ends.unique(dim=0, return_inverse=True)
    values = log_flow(learner, part.part(distinct))
    both: Tensor = values[sent(place, values.device)]
    return both[: len(rows)], both[len(rows) :]


def log_flow(learner: Learner, states: Window) -> Tensor:
    """log F of states (M,), as rows up to T: F_phi plus beta * potential; at the end beta * reward.

    This is the forward-looking flow, equation 10 of the paper, plus the step's level. F_phi is in
    units of the log-density: with `sum` it is multiplied by D.
    """
    objective, trajectories = learner.objective, states.trajectories
    inner = states.rows[:, 1] < states.path.steps
    b, i = states.part(states.rows[inner]).places
    embeds = trajectories.prompt_embeds[b].float()
    with span("flow"):
        learned = learner.flow(trajectories.latents[b, i], states.path.times(i), embeds)
    level = sent(states.levels.of_flow(states.beta, states.rows[:, 1]), learned.device)
    known = states.potentials[states.places]
    if not objective.needs.potentials:
        known = known * sent(~inner, learned.device)
    above = states.beta * known + level
    at = sent(inner.nonzero().flatten(), learned.device)
    return above.index_add(0, at, learner.scale * learned)


@torch.no_grad()
def whole_window(learner: Learner, window: Window) -> Transitions | None:
    """The numbers of all processes' windows under the rollout's network, if they are needed."""
    if not learner.objective.needs.window:
        return None
    parts = window.parts(learner.settings.microbatch_size)

    def told() -> Transitions | None:
        told = [numbers(learner, part, part.log_pf_old, None) for part in parts]
        return joined(told) if told else None

    return of_all(learner, told)[0]


def of_all(learner: Learner, told: Callable[[], Transitions | None]) -> tuple[Transitions, slice]:
    """What all processes report, in the order of ranks, and the slice of this process."""
    device = torch.device("cpu") if learner.processes.size > 1 else learner.policy.device
    found = learner.processes.share(lambda: on(told(), device))
    present = [part for part in found if part is not None]
    counts = [0 if part is None else len(part.log_pf) for part in found]
    begin, rank = sum(counts[: learner.processes.rank]), learner.processes.rank
    whole = on(joined(present), learner.policy.device)
    assert whole is not None
    return whole, slice(begin, begin + counts[rank])


def on(told: Transitions | None, device: torch.device) -> Transitions | None:
    """The same numbers, without gradient, on a device."""
    if told is None:
        return None
    columns = {
        name: values.detach().to(device)
        for name in (field.name for field in fields(Transitions))
        if isinstance(values := getattr(told, name), Tensor)
    }
    return replace(told, **columns)  # type: ignore[arg-type]


def joined(parts: Sequence[Transitions]) -> Transitions:
    """Several micro-batches (at least one) as one."""
    columns = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in (field.name for field in fields(Transitions))
        if isinstance(getattr(parts[0], name), Tensor)
    }
    return replace(parts[0], **columns)  # type: ignore[arg-type]


def as_trajectories(learner: Learner, window: Window, flat: Transitions) -> Transitions:
    """Numbers of whole trajectories, (B, T) and (B,), from those of their transitions, (B * T,).

    Adds log_p0, the log-density of the first state under the standard normal, and log Z if needed.
    """
    steps, trajectories = window.path.steps, window.trajectories
    b = window.places[0][::steps]
    columns: dict[str, Tensor | None] = {
        name: values.view(-1, steps)[:, 0] if name in OF_TRAJECTORIES else values.view(-1, steps)
        for name in (field.name for field in fields(Transitions))
        if isinstance(values := getattr(flat, name), Tensor)
    }
    first = trajectories.latents[b, 0]
    one = torch.ones((), device=first.device)
    columns["log_p0"] = gaussian.log_normal(first, torch.zeros_like(first), one, learner.density)
    if learner.objective.needs.log_z:
        columns["log_z"] = log_z(learner, window)
    return replace(flat, **columns)  # type: ignore[arg-type]


def log_z(learner: Learner, window: Window) -> Tensor:
    """log Z of each whole trajectory's prompt, (B,), in units of the log-density."""
    b = window.places[0][:: window.path.steps]
    learned = learner.scale * learner.log_z(window.trajectories.prompt_embeds[b].float())
    return learned + window.levels.of_log_z(window.beta)
