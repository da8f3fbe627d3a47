"""What a run will need, before it begins: counts of work, FLOPs and bytes from shapes alone.

Networks are built on PyTorch's meta device, so that even a model that is not on this machine, or
does not fit it, can be counted. Time follows from FLOPs and a rate, or from units timed here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dagflow.config import Config
from dagflow.counting import Pass, measure_pass
from dagflow.engine.transitions import cut, shares
from dagflow.measures.drift import STEPS
from dagflow.policies.shapes import TOKENS, Shapes
from dagflow.prepare import Run
from dagflow.types import Needs, Objective, PolicySpec

FLOAT = 4  # bytes
TRAINED = 4 * FLOAT  # bytes per parameter: itself, its gradient, AdamW's two moments
SECONDS_AT_LEAST = 0.2  # for which a unit is timed


@dataclass(frozen=True)
class Unit:
    """How often something is done, for one image, state or transition, and what each costs."""

    each_epoch: int
    once: int  # in the whole run
    flops: float  # of each; 0 if unknown

    def count(self, epochs: int) -> int:
        return self.each_epoch * epochs + self.once


@dataclass(frozen=True)
class Estimate:
    """The needs of a run. Bytes are per device, without layers' workspace."""

    units: Mapping[str, Unit]
    bytes: Mapping[str, int]  # held together at the peak
    epochs: int
    share: float  # of the work, that the busiest device has

    @property
    def flops(self) -> float:
        return sum(unit.count(self.epochs) * unit.flops for unit in self.units.values())

    @property
    def peak_bytes(self) -> int:
        return sum(self.bytes.values())

    def hours(self, rate: float) -> float:
        """Hours at `rate` FLOPs per second per device; units without FLOPs are left out."""
        return self.flops * self.share / rate / 3600

    def hours_timed(self, seconds: Mapping[str, float]) -> float:
        """Hours from the seconds that each unit takes."""
        total = sum(self.units[name].count(self.epochs) * seconds[name] for name in self.units)
        return total * self.share / 3600


def estimate(config: Config, shapes: Shapes, objective: Objective, gpus: int) -> Estimate:
    """Count the work of a run. `objective` is built on the meta device."""
    flow = getattr(objective, "flow", None)
    guided = shapes.guided_pass()
    flow_pass = _flow_pass(flow, shapes.spec) if flow else Pass(0.0, 0.0, 0)
    flops = {
        "guided forward": guided.forward_flops,
        "guided forward and backward": guided.both_flops,
        "text forward": guided.forward_flops / 2,
        "decode": shapes.decode_flops(preview=False),
        "preview decode": shapes.decode_flops(preview=True),
        "reward": 0.0,
        "flow forward and backward": flow_pass.both_flops,
    }
    counts = work(config, objective.needs)
    units = {name: Unit(*counts[name], flops[name]) for name in counts if any(counts[name])}
    saved = guided.saved_bytes + flow_pass.saved_bytes
    samples = config.rollout.samples_per_epoch
    share = -(-samples // gpus) / samples
    return Estimate(units, _bytes(config, shapes, objective, saved, gpus), config.epochs, share)


def work(config: Config, needs: Needs) -> dict[str, tuple[int, int]]:
    """How often each unit is done: in each epoch, and once in the run.

    With potentials of the current network on only some of the steps, these are upper bounds.
    """
    rollout, steps = config.rollout, config.rollout.num_inference_steps
    samples, every = rollout.samples_per_epoch, rollout.samples_per_epoch * steps
    trained = every if needs.trajectories else config.transitions_per_epoch
    states = len(rollout.potential_states(steps)) if needs.potentials else 0
    updates = max(1, min(samples // rollout.images_per_prompt, every // config.update.batch_size))
    twice = needs.trajectories and every / updates > config.update.microbatch_size
    current = rollout.potential == "current" and states > 0
    touched = min(states, config.steps_per_trajectory + 1) if current else states
    beyond = samples * (current and trained < every)
    before = (trained if needs.window else 0) * current
    table, held_out = config.evaluate, 2 * config.evaluate.images
    watched = max(table.watched, table.grid)
    measured = watched if table.watched else 0
    looks, drift = -(-config.epochs // table.every), min(STEPS, steps)
    drawn = watched * (looks + 1)  # the base model draws once more
    against_base = needs.log_p_base and not needs.on_policy
    looked = samples * (states if needs.trajectories else touched)
    first = config.update.flow_from_data or config.update.flow_warmup > 0
    begun = samples * states * (current and first)
    cheap = bool(rollout.preview_decoder)
    warm_up = config.update.flow_warmup * config.update.batch_size
    flows = trained if needs.log_flow else 0
    return {
        "guided forward": (
            every * (2 if needs.log_p_base else 1) + trained * twice,
            (held_out + table.images * against_base + drawn) * steps
            + drift * (table.images + measured * looks),
        ),
        "guided forward and backward": (trained, 0),
        "text forward": (before + beyond, begun),
        "decode": (samples + looked * (not cheap), held_out + drawn + begun * (not cheap)),
        "preview decode": (looked * cheap, begun * cheap),
        "reward": (samples + looked, held_out + begun + measured * (looks + 1)),
        "flow forward and backward": (flows, warm_up if needs.log_flow else 0),
    }


def microbatch(config: Config, needs: Needs, gpus: int) -> int:
    """The most transitions that a device passes at once: no more than its share of a step."""
    with torch.device("cpu"):  # objectives are counted on the meta device
        windows = cut(config, 0, config.rollout.num_inference_steps, needs)
        owner = torch.empty(config.rollout.samples_per_epoch, dtype=torch.int64)
    for rank, own in enumerate(shares(windows, gpus)):
        owner[own] = rank
    most = max(int(owner[rows[:, 0]].bincount().max()) for rows in windows)
    return min(config.update.microbatch_size, most)


def timed(run: Run, gpus: int) -> dict[str, float]:
    """Seconds of each unit on this machine, for one image, state or transition."""
    policy, objective = run.policy, run.learner.objective
    count, shape = microbatch(run.config, objective.needs, gpus), policy.latent_shape
    latents = torch.randn(count, *shape, device=policy.device)
    times = run.path.timesteps[:1].expand(count).to(policy.device)
    prompts = [run.prompts[k % len(run.prompts)] for k in range(count)]
    embeds = policy.encode([prompt.text for prompt in prompts])
    images = policy.decode(latents)
    flow = getattr(objective, "flow", None)
    units: dict[str, Callable[[], object]] = {
        "guided forward": lambda: policy.predict(latents, times, embeds),
        "text forward": lambda: policy.predict_text(latents, times, embeds),
        "decode": lambda: policy.decode(latents),
        "preview decode": lambda: policy.preview(latents),
        "reward": lambda: [item.reward(images, prompts) for item in run.rewards],
    }
    with torch.no_grad():
        seconds = {name: _seconds(unit) / count for name, unit in units.items()}

    def train() -> None:
        policy.predict(latents, times, embeds).guided.sum().backward()

    def train_flow() -> None:
        assert flow is not None
        flow(latents, times, embeds.float()).sum().backward()

    seconds["guided forward and backward"] = _seconds(train) / count
    seconds["flow forward and backward"] = _seconds(train_flow) / count if flow else 0.0
    run.learner.optimizer.zero_grad(set_to_none=True)
    return seconds


def _seconds(unit: Callable[[], object]) -> float:
    """The shortest of several calls, after one that does not count."""
    times: list[float] = []
    while len(times) < 3 or sum(times[1:]) < SECONDS_AT_LEAST:
        began = time.perf_counter()
        unit()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _flow_pass(flow: nn.Module, spec: PolicySpec) -> Pass:
    height, width = spec.latent_size
    latents = torch.empty(1, spec.latent_channels, height, width, device="meta")
    times = torch.zeros(1, dtype=torch.int64, device="meta")
    embeds = torch.empty(1, TOKENS, spec.cross_attention_dim, device="meta")
    return measure_pass(flow, lambda: flow(latents, times, embeds))


def _bytes(
    config: Config, shapes: Shapes, objective: Objective, saved: int, gpus: int
) -> dict[str, int]:
    spec, rollout = shapes.spec, config.rollout
    values = spec.latent_channels * spec.latent_size[0] * spec.latent_size[1]
    pixels = 3 * shapes.image_size**2
    own = objective.parameters() if isinstance(objective, nn.Module) else []
    learned = shapes.lora_parameters + sum(parameter.numel() for parameter in own)
    samples = -(-rollout.samples_per_epoch // gpus)
    if config.machine.offload:  # a batch of the rollout, or the trajectories of an update
        updated = -(-config.update.batch_size // config.steps_per_trajectory // gpus)
        samples = min(samples, max(rollout.batch_size, updated))
    steps = rollout.num_inference_steps
    each = (steps + 1) * values * FLOAT + steps * values * shapes.dtype.itemsize + pixels * FLOAT
    update = microbatch(config, objective.needs, gpus) * saved
    decoded = (1 if config.machine.vae_slicing else rollout.batch_size) * shapes.decode_bytes
    return {
        "frozen weights": shapes.frozen_bytes,
        "what is trained, with AdamW": learned * TRAINED,
        "trajectories": samples * each,
        "one micro-batch, forward and back": max(update, decoded),
    }
