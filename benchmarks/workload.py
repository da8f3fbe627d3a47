"""Shared by the speed benchmarks: an epoch of any configuration, and timing in turns."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dagflow.collect import Epoch, collect
from dagflow.config import Config, resolve
from dagflow.engine.levels import zero_levels
from dagflow.engine.metrics import Clock
from dagflow.engine.potentials import CurrentPotentials
from dagflow.engine.replay import Buffer
from dagflow.engine.transitions import cut
from dagflow.engine.update import update
from dagflow.engine.window import Window
from dagflow.plugins import load_plugins
from dagflow.prepare import Run, Watcher, prepare
from dagflow.recipe import read_recipe

BETA = 20.0
FLOW_CHANNELS = (16, 32, 64)  # of the recipe `tiny`
PLAIN_KL = {"name": "kl", "beta": BETA, "clip": 3e-2, "returns": 0.0, "coefficient": 1.0}


class Silent(Watcher):
    def phase(self, name: str, total: int, epoch: int) -> None: ...
    def advance(self, units: int) -> None: ...
    def show(self, metrics: object) -> None: ...
    def say(self, text: str) -> None: ...
    def pictures(self, images: object, epoch: int) -> None: ...
    def epoch_done(self, epoch: int, epochs: int) -> None: ...


def configuration(
    samples: int,
    steps: int,
    chunk: int,
    flow_channels: Sequence[int] = FLOW_CHANNELS,
    **tables: Mapping[str, Any],
) -> Config:
    """The recipe `tiny` with that many trajectories and steps, all trained on in two updates."""
    tree = read_recipe("tiny")
    tree["objective"] = {**PLAIN_KL, "flow_channels": list(flow_channels)}
    tree["rollout"] |= {"samples_per_epoch": samples, "num_inference_steps": steps}
    tree["rollout"]["batch_size"] = min(32, samples)
    tree["update"] |= {"batch_size": samples * steps // 2, "microbatch_size": chunk}
    tree["update"] |= {"timestep_fraction": 1.0}
    for name, table in tables.items():
        tree[name] = {**tree.get(name, {}), **table} if name != "objective" else dict(table)
    return resolve(tree)


def prepared(config: Config) -> Run:
    return prepare(config, load_plugins(), Silent())


def collected(run: Run) -> Epoch:
    return collect(run, 0, {}, run.policy.weights(), Buffer(1, 1), Clock())


def windows(run: Run, data: Epoch) -> Iterator[Window]:
    config, steps = run.config, run.path.steps
    for rows in cut(config, 0, steps, run.learner.objective.needs):
        levels = zero_levels(steps)
        yield Window(data.trajectories, data.potentials, run.path, rows, BETA, BETA, levels)


def updated(run: Run, data: Epoch) -> None:
    """All updates of the epoch."""
    for window in windows(run, data):
        states = run.potential_states
        wanted = run.config.rollout.potential == "current" and states
        current = CurrentPotentials(run.learner, window, data.rewards, states) if wanted else None
        update(run.learner, current or window)


def epoch(run: Run) -> None:
    updated(run, collected(run))


@torch.no_grad()
def bare_rollout(run: Run, latents: torch.Tensor, prompt_embeds: torch.Tensor) -> None:
    """The guided passes of one batch's rollout, of states (B, T, C, H, W), and nothing else."""
    times = run.path.timesteps.to(run.policy.device)
    for i in range(latents.shape[1]):
        run.policy.predict(latents[:, i], times[i].expand(len(latents)), prompt_embeds)


def bare_update(run: Run, data: Epoch) -> None:
    """The guided passes of the epoch's updates, forward and back, and nothing else."""
    times = run.path.timesteps.to(run.policy.device)
    for window in windows(run, data):
        for part in window.parts(run.config.update.microbatch_size):
            b, i = part.places
            latents, embeds = part.trajectories.latents[b, i], part.trajectories.prompt_embeds[b]
            run.policy.predict(latents, times[i], embeds).guided.sum().backward()
    run.learner.optimizer.zero_grad(set_to_none=True)


def in_turns(functions: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The least seconds that each function takes, over rounds in which all take turns."""
    least = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            synchronize()
            began = time.perf_counter()
            function()
            synchronize()
            least[name] = min(least[name], time.perf_counter() - began)
    return least


@contextmanager
def counted(run: Run) -> Iterator[Counter[str]]:
    """Counts, inside this context, the states that pass the UNet's branches or are decoded."""
    seen: Counter[str] = Counter()
    policy = run.policy

    def counting(name: str, label: str) -> None:
        plain = getattr(policy, name)

        def count(x: torch.Tensor, *rest: Any) -> Any:
            seen[label] += len(x)
            return plain(x, *rest)

        setattr(policy, name, count)

    names = {"predict": "guided", "predict_text": "text"}
    names |= {"preview": "decoded", "decode": "decoded"}
    for name, label in names.items():
        counting(name, label)
    try:
        yield seen
    finally:
        for name in names:
            delattr(policy, name)


def synchronize() -> None:
    """Wait until the GPU, if any, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> str:
    """The hardware and torch version behind the figures."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":")[1].strip()
            break
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def smooth(run: Run) -> Run:
    """The run with the mean of all pixels as reward, which rounding does not make jump."""
    item = replace(run.rewards[0], reward=lambda images, prompts: images.mean((1, 2, 3)))
    return replace(run, rewards=(item,))
