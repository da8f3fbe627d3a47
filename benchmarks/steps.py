"""What too few steps cost an objective that balances exactly: run `python benchmarks/steps.py`.

With T steps no policy of fixed variance follows q backward exactly. So along trajectories of the
sampler with the target's exact x0hat, w = log p_0 + sum of (log p - log q) is on average above
log p_target by a gap (the KL divergence of p from q), which differs between modes. In terms of the
reverse KL divergence, the best that the policy can then do on its own samples is to draw a mode of
weight m in proportion to m exp(-gap). Prints the gaps, and the total variation of that.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from dagflow import Prompt
from dagflow.engine.temperature import log_weights
from dagflow.evaluate import Sampler
from dagflow.policies.world import WorldPolicy
from dagflow.worlds.catalogue import WORLDS, world

COUNT = 20_000
PROMPT = Prompt("x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    table = Table("world", "steps", "gaps, nats", "total variation", box=None)
    for name in WORLDS:
        for steps in parser.parse_args().steps:
            gaps, distance = bias(name, steps)
            shown = " ".join(f"{gap:.2f}" for gap in gaps.tolist())
            table.add_row(name, str(steps), shown, f"{distance:.3f}")
    Console(width=150).print(table)


def bias(name: str, steps: int) -> tuple[torch.Tensor, float]:
    """Mean gap of each class, and the total variation of weights times exp(-gap)."""
    policy = WorldPolicy(world(name), torch.device("cpu"))
    sampler = Sampler(policy, policy.path(steps), COUNT, seed=0)
    with policy.exact_target():
        ((part, _),) = sampler.batches([PROMPT] * COUNT)
    states = part.latents[:, -1].flatten(1)
    target = policy.world.target.log_density(states)
    above = log_weights(part, sampler.path, "sum") - target
    classes, weights = policy.world.classify(states), policy.world.class_weights
    gaps = torch.stack([above[classes == k].mean() for k in range(len(weights))])
    drawn = weights * (-gaps).exp()
    return gaps, float((drawn / drawn.sum() - weights).abs().sum() / 2)


if __name__ == "__main__":
    main()
