"""A whole epoch, rollout and update, against the authors' procedure (literal.py), in one run.

    python benchmarks/vs_literal.py [--samples 16] [--steps 20] [--rounds 3]

On the embedded model, and on one whose VAE decodes at the price of SD v1.5's. First the gradients
of one update are compared, from the same trajectories, and what passes is counted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from literal import literal_update, literal_updates
from workload import (
    PLAIN_KL,
    collected,
    configuration,
    counted,
    epoch,
    in_turns,
    machine,
    prepared,
    size,
    smooth,
    updated,
    windows,
    with_costly_decoder,
)

from dagflow.prepare import Run

CHUNK = 64
CURRENT = {"potential": "current"}


def variants(steps: int) -> dict[str, dict[str, object]]:
    """Settings of the rollout by what is shown for them."""
    return {
        "current": CURRENT,
        "rollout": {"potential": "rollout"},
        "rollout, preview decoder": {"preview_decoder": "tiny"},
        "rollout, a quarter of the steps": {"potential_steps": steps // 4},
    }


def main() -> None:
    options = size()
    console = Console(width=120)
    console.print(machine())
    for name in ("db", "kl"):
        console.print(f"{name}: gradients differ by {difference(name, options.steps):.1e}")
    with tempfile.TemporaryDirectory() as folder:
        costly = with_costly_decoder(Path(folder))
        for title, model in (("tiny", "tiny"), ("a decoder as costly as SD v1.5's", str(costly))):
            console.print(table(title, model, options))


def difference(name: str, steps: int) -> float:
    """Largest relative distance between our gradients and the literal ones, of any matrix."""
    objective = {**PLAIN_KL, "name": name, "flow_channels": [16, 32, 64]}
    if name == "db":
        objective = {key: objective[key] for key in ("name", "beta", "returns", "flow_channels")}
    unclipped = {"max_grad_norm": 1e12}
    config = configuration(8, steps, CHUNK, objective=objective, rollout=CURRENT, update=unclipped)
    found = []
    for literal in (False, True):
        run = smooth(prepared(config))
        shake(run)
        data = collected(run)
        (window, *_) = windows(run, data)
        seen: list[Tensor] = []
        parameters = [*run.policy.parameters(), *run.learner.objective_parameters]
        run.learner.optimizer.register_step_pre_hook(
            lambda *_, seen=seen, parameters=parameters: seen.extend(
                parameter.grad.clone() for parameter in parameters
            )
        )
        shake(run)  # away from the network that sampled
        if literal:
            literal_update(run, data, window, 4)
        else:
            updated(run, data)
        found.append(seen[: len(parameters)])
    return max(
        float((ours - theirs).norm() / theirs.norm())
        for ours, theirs in zip(*found, strict=True)
        if float(theirs.norm()) > 0
    )


def shake(run: Run) -> None:
    """Move all weights from their special beginning."""
    source = torch.Generator().manual_seed(5)
    for parameter in [*run.policy.parameters(), *run.learner.objective_parameters]:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=source)


def table(title: str, model: str, options: argparse.Namespace) -> Table:
    changes = variants(options.steps)
    runs = {name: variant(model, options, rollout) for name, rollout in changes.items()}
    plain = variant(model, options, {"potential": "none"})

    def literal() -> None:
        data = collected(plain)
        literal_updates(plain, data, list(windows(plain, data)), options.samples // 2)

    epochs = {"literal": literal}
    epochs |= {name: (lambda run=run: epoch(run)) for name, run in runs.items()}
    seconds = in_turns(epochs, options.rounds)
    result = Table("", "seconds", "ratio", "UNet passes beyond the guided", "decoded", title=title)
    for name, function in epochs.items():
        run = runs.get(name, plain)
        with counted(run) as seen:
            function()
        share = [seen[label] / options.samples for label in ("text", "decoded")]
        ratio = seconds["literal"] / seconds[name]
        result.add_row(
            name, f"{seconds[name]:.1f}", f"{ratio:.2f}", f"{share[0]:.1f}", f"{share[1]:.1f}"
        )
    return result


def variant(model: str, options: argparse.Namespace, rollout: dict[str, object]) -> Run:
    config = configuration(options.samples, options.steps, CHUNK, rollout=rollout)
    return prepared(config.model_copy(update={"model": model}))


if __name__ == "__main__":
    main()
