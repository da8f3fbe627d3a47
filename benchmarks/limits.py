"""How far an epoch is from its unavoidable cost.

    python benchmarks/limits.py [--model tiny|sd15|FOLDER] [--samples 16] [--steps 20]
        [--chunk 64] [--rounds 3]

Compares the update with `potential = "rollout"` with its bare guided forward and backward passes,
and the rollout in latents, without decoding, with its bare guided passes; same batches, in turns.
With the recipe's flow network and without one (ddpo), which shows what the flow network costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from models import Model, arguments, model
from workload import bare_rollout, bare_update, collected, in_turns, machine, prepared, updated

from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine.rollout import rollout
from dagflow.prepare import Run


def main() -> None:
    options = arguments().parse_args()
    console = Console(width=120)
    console.print(machine())
    with tempfile.TemporaryDirectory() as folder:
        console.print(table(model(options.model, Path(folder)), options))


def table(chosen: Model, options: argparse.Namespace) -> Table:
    result = Table("", "seconds", "bare passes", "ratio", title=chosen.title)
    for title, objective in (("update, kl", None), ("update, ddpo (no flow)", {"name": "ddpo"})):
        changes = {"objective": objective} if objective else {}
        run = prepared(chosen.configuration(options, **changes))
        data = collected(run)

        both = {"ours": partial(updated, run, data), "bare": partial(bare_update, run, data)}
        _add(result, title, in_turns(both, options.rounds))
    _add(result, "rollout in latents", in_turns(_rollouts(run, options), options.rounds))
    return result


def _rollouts(run: Run, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    shape = run.policy.latent_shape
    prompts = [run.prompts[k % len(run.prompts)] for k in range(options.samples)]
    indices = range(options.samples)
    noise = trajectory_noise(Stream.ROLLOUT, 0, 0, indices, options.steps, shape)
    noise = noise.to(run.policy.device)
    embeds = run.policy.encode([prompt.text for prompt in prompts])
    decode = run.policy.decode

    def ours() -> None:
        run.policy.decode = lambda latents: latents  # type: ignore[method-assign]
        rollout(run.policy, run.path, prompts, noise, "mean")
        run.policy.decode = decode  # type: ignore[method-assign]

    return {"ours": ours, "bare": partial(bare_rollout, run, noise[:, :-1], embeds)}


def _add(table: Table, title: str, seconds: dict[str, float]) -> None:
    ours, bare = seconds["ours"], seconds["bare"]
    table.add_row(title, f"{ours:.2f}", f"{bare:.2f}", f"{ours / bare:.2f}")


if __name__ == "__main__":
    main()
