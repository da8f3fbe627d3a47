"""A whole epoch, rollout and update, against the authors' procedure (literal.py), in one run.

    python benchmarks/vs_literal.py [--model tiny|sd15|FOLDER] [--samples 16] [--steps 20]
        [--chunk 64] [--rounds 3]

Runs on the embedded model, and on one whose VAE is as costly as SD v1.5's. First compares the
gradients of one update of the embedded model, from the same trajectories, in float32. Also counts
UNet passes and decoded states. The last row is the limit: an epoch of bare guided passes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from literal import literal_update, literal_updates
from models import Model, arguments, models
from workload import (
    FLOW_CHANNELS,
    PLAIN_KL,
    bare_rollout,
    bare_update,
    collected,
    configuration,
    counted,
    epoch,
    in_turns,
    machine,
    prepared,
    smooth,
    updated,
    windows,
)

from dagflow.collect import Epoch
from dagflow.prepare import Run

CHUNK = 64
LIMIT = "nothing but the guided passes"
CURRENT = {"potential": "current"}


def variants(model: Model, steps: int) -> dict[str, dict[str, object]]:
    """Settings of the rollout by the names shown for them."""
    return {
        "current": CURRENT,
        "rollout": {"potential": "rollout"},
        "rollout, preview decoder": {"preview_decoder": model.preview_decoder},
        "rollout, a quarter of the steps": {"potential_steps": max(1, steps // 4)},
    }


def main() -> None:
    options = arguments().parse_args()
    console = Console(width=120)
    console.print(machine())
    for name in ("db", "kl"):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            console.print(f"{name}: gradients differ by {difference(name, options.steps):.1e}")
    with tempfile.TemporaryDirectory() as folder:
        for model in models(options.model, Path(folder)):
            console.print(table(model, options))


def difference(name: str, steps: int) -> float:
    """Largest relative distance between our and the literal gradients, over all matrices."""
    objective = {**PLAIN_KL, "name": name, "flow_channels": list(FLOW_CHANNELS)}
    if name == "db":
        objective = {key: objective[key] for key in ("name", "beta", "returns", "flow_channels")}
    unclipped = {"max_grad_norm": 1e12}
    config = configuration(8, steps, CHUNK, objective=objective, rollout=CURRENT, update=unclipped)
    config = config.model_copy(update={"dtype": "float32"})
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


def passes(run: Run, data: Epoch) -> None:
    """What no whole epoch can do without: its guided passes, of the rollout and the updates."""
    size, trajectories = run.config.rollout.batch_size, data.trajectories
    batches = zip(
        trajectories.latents.split(size), trajectories.prompt_embeds.split(size), strict=True
    )
    for latents, prompt_embeds in batches:
        bare_rollout(run, latents[:, :-1], prompt_embeds)
    bare_update(run, data)


def shake(run: Run) -> None:
    """Move all weights away from their special initial values."""
    source = torch.Generator().manual_seed(5)
    for parameter in [*run.policy.parameters(), *run.learner.objective_parameters]:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=source).to(parameter.device)


def table(model: Model, options: argparse.Namespace) -> Table:
    changes = variants(model, options.steps)
    runs = {
        name: prepared(model.configuration(options, rollout=rollout))
        for name, rollout in changes.items()
    }
    plain = prepared(model.configuration(options, rollout={"potential": "none"}))
    together = min(options.samples // 2, options.chunk)

    def literal() -> None:
        data = collected(plain)
        literal_updates(plain, data, list(windows(plain, data)), together)

    epochs = {"literal": literal}
    epochs |= {name: partial(epoch, run) for name, run in runs.items()}
    epochs[LIMIT] = partial(passes, plain, collected(plain))
    seconds = in_turns(epochs, options.rounds)
    columns = ("", "seconds", "ratio", "UNet passes beyond the guided", "decoded")
    result = Table(*columns, title=model.title)
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


if __name__ == "__main__":
    main()
