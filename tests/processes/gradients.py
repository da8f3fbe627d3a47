"""Run in each of several processes: the gradients of one update, for many objectives.

Arguments: the file to write (by process 0): a tensor `CASE/policy` and `CASE/flow` for each case,
and what travelled between processes meanwhile; and `--double`, for float64 in all but a few cases.
"""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed

from dagflow.collect import collect
from dagflow.engine.levels import first_levels
from dagflow.engine.metrics import Clock
from dagflow.engine.potentials import CurrentPotentials
from dagflow.engine.processes import Processes, processes
from dagflow.engine.replay import Buffer
from dagflow.engine.scoring import WeightedReward
from dagflow.engine.transitions import cut
from dagflow.engine.update import update
from dagflow.engine.window import Window
from dagflow.plugins import load_plugins
from dagflow.prepare import Run, prepare
from tests.conftest import Silent, merged, short_config

CASES: dict[str, dict[str, Any]] = {
    "db": {"objective": {"name": "db", "returns": 0}},
    "kl": {"objective": {"name": "kl", "returns": 0}},
    "kl-normalised": {"objective": {"name": "kl", "normalise": True, "returns": 0}},
    "kl-returns": {"objective": {"name": "kl", "returns": 0.9}},
    "current": {"objective": {"name": "db", "returns": 0}, "rollout": {"potential": "current"}},
    "tb": {"objective": {"name": "tb"}},
    "vargrad": {"objective": {"name": "vargrad"}},
    "subtb": {"objective": {"name": "subtb"}},
    "rtb": {"objective": {"name": "rtb"}},
    "residual-db": {"objective": {"name": "residual-db", "returns": 0}},
    "ddpo": {"objective": {"name": "ddpo"}},
    "grpo": {"objective": {"name": "grpo"}},
    "replay": {
        "objective": {"name": "db", "returns": 0},
        "replay": {"share": 0.25, "backward": 0.25},
    },
    "normalised": {"objective": {"name": "db", "returns": 0}, "rewards": {}},
    "offload": {"objective": {"name": "db", "returns": 0}, "machine": {"offload": True}},
    "sharded": {"objective": {"name": "db", "returns": 0}, "machine": {"shard": True}},
    "sharded-uneven": {
        "objective": {"name": "rtb"},
        "machine": {"shard": True},
        "rollout": {"samples_per_epoch": 6},
        "update": {"batch_size": 7, "microbatch_size": 3},
    },
    "uneven": {
        "objective": {"name": "tb"},
        "rollout": {"samples_per_epoch": 6},
        "update": {"batch_size": 7},
    },
}
# Rewards and shards are of float32 in all cases; in these that meets float64.
IN_SINGLE = ("current", "sharded", "sharded-uneven")
COMMON = {
    "rollout": {"samples_per_epoch": 12, "images_per_prompt": 2},
    "update": {"batch_size": 24},
}


# Smooth ones: a file's size jumps where rounding moves a pixel.
REWARDS = (
    WeightedReward("bright", lambda images, prompts: images.mean((1, 2, 3)), 1.0),
    WeightedReward("green", lambda images, prompts: images[:, 1].mean((1, 2)), -0.5),
)


class Traffic:
    """Counts what meets, and how many bytes one process sends."""

    def __init__(self) -> None:
        self.meetings = self.meeting_bytes = self.reductions = self.reduced_bytes = 0
        if distributed.is_initialized():
            self._gather, self._reduce = distributed.all_gather_object, distributed.all_reduce
            distributed.all_gather_object = self.gather
            distributed.all_reduce = self.reduce

    def gather(self, everything: list[Any], value: Any, group: Any) -> None:
        self.meetings += 1
        self.meeting_bytes += len(pickle.dumps(value))
        self._gather(everything, value, group=group)

    def reduce(self, values: torch.Tensor, group: Any) -> None:
        self.reductions += 1
        self.reduced_bytes += values.numel() * values.element_size()
        self._reduce(values, group=group)


def gradients(case: dict[str, Any], group: Processes) -> tuple[dict[str, torch.Tensor], Traffic]:
    tree = merged(COMMON, case)
    group.lockstep = False
    if group.size == 1:
        tree.pop("machine", None)
    run = prepare(short_config(**tree), load_plugins(), Silent(), processes=group)
    if torch.get_default_dtype() == torch.float64:
        run = in_double(run)
    epochs = 2 if "rewards" in case else 0
    run = replace(run, rewards=[replace(item, normalise_epochs=epochs) for item in REWARDS])
    learner, buffer = run.learner, Buffer(8, 8)
    weights = run.policy.weights()
    if "replay" in case:
        first = collect(run, 0, {}, weights, buffer, Clock())
        buffer = buffer.with_more(first.prompts, first.final, first.sampled, group)
    data = collect(run, 1, {}, weights, buffer, Clock())
    sampled = data.sampled
    potentials = data.potentials[: len(sampled.prompts)]
    levels = first_levels(learner, run.path, sampled, potentials)
    rows = cut(run.config, 1, run.path.steps, learner.objective.needs)[0]
    window = Window(
        data.trajectories, data.potentials, run.path, data.own(rows), 5.0, 5.0, levels, len(rows)
    )
    if run.config.machine.offload:
        window = window.on(run.policy.device)
    current = None
    if run.config.rollout.potential == "current":
        current = CurrentPotentials(learner, window, data.rewards, run.potential_states)
    found: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> None:
        parameters = {"policy": run.policy.parameters(), "flow": learner.objective_parameters}
        for name, group in parameters.items():
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            if parts:
                found[name] = torch.cat([part.flatten() for part in parts])

    torch.nn.utils.clip_grad_norm_ = lambda parameters, limit: torch.ones(())
    learner.optimizer.step = keep
    traffic = Traffic()
    numbers = update(learner, current or window)
    found["loss"] = torch.tensor(numbers["loss"])
    found["reward"] = data.final
    texts = [prompt.text.encode() for prompt in data.prompts]
    found["prompts"] = torch.tensor([int.from_bytes(text[:7], "big") for text in texts])
    return found, traffic


def compute_in_double() -> None:
    """Have what this process makes from now on be float64, and what is made so stay so."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double


def in_double(run: Run) -> Run:
    """The same run, its networks too."""
    parts = (*run.policy.pipeline.components.values(), *vars(run.learner.objective).values())
    for module in parts:
        if isinstance(module, torch.nn.Module):
            module.double()
    return run


def main() -> None:
    torch.set_num_threads(1)
    target, double = Path(sys.argv[1]), "--double" in sys.argv
    if double:
        compute_in_double()
    tensors, traffics = {}, {}
    with processes() as group:
        for name, case in CASES.items():
            if double and name in IN_SINGLE:
                continue
            found, traffic = gradients(case, group)
            tensors |= {f"{name}/{key}": value.clone() for key, value in found.items()}
            traffics[name] = {k: v for k, v in vars(traffic).items() if isinstance(v, int)}
        if group.is_main:
            save_file(tensors, target)
            target.with_suffix(".json").write_text(json.dumps(traffics))


if __name__ == "__main__":
    main()
