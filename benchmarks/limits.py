"""How far an epoch is from what cannot be avoided.

    python benchmarks/limits.py [--samples 16] [--steps 20] [--rounds 3]

The update with `potential = "rollout"` against its bare guided forward and backward passes, and the
rollout in latents, nothing decoded, against its bare guided passes; the same batches, in turns.
With the flow network of the recipe and with none (ddpo), which shows what the flow network costs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from workload import collected, configuration, in_turns, machine, prepared, size, updated, windows

from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine.rollout import rollout
from dagflow.prepare import Run

CHUNK = 64


def main() -> None:
    options = size()
    console = Console(width=120)
    console.print(machine())
    table = Table("", "seconds", "bare passes", "ratio")
    for title, objective in (("update, kl", None), ("update, ddpo (no flow)", {"name": "ddpo"})):
        changes = {"objective": objective} if objective else {}
        config = configuration(options.samples, options.steps, CHUNK, **changes)
        run = prepared(config)
        data = collected(run)

        def bare(run: Run = run, data: object = data) -> None:
            for window in windows(run, data):
                for part in window.parts(CHUNK):
                    b, i = part.places()
                    latents, times = (
                        part.trajectories.latents[b, i],
                        run.path.timesteps.to(i.device)[i],
                    )
                    embeds = part.trajectories.prompt_embeds[b]
                    run.policy.predict(latents, times, embeds).guided.sum().backward()
            run.learner.optimizer.zero_grad(set_to_none=True)

        ours = lambda run=run, data=data: updated(run, data)  # noqa: E731
        _add(table, title, in_turns({"ours": ours, "bare": bare}, options.rounds))
    _add(table, "rollout in latents", in_turns(_rollouts(run, options), options.rounds))
    console.print(table)


def _rollouts(run: Run, options: argparse.Namespace) -> dict[str, object]:
    shape, prompts = run.policy.latent_shape, run.prompts[: options.samples]
    indices = range(options.samples)
    noise = trajectory_noise(Stream.ROLLOUT, 0, 0, indices, options.steps, shape)
    embeds = run.policy.encode([prompt.text for prompt in prompts])
    decode = run.policy.decode

    def ours() -> None:
        run.policy.decode = lambda latents: latents  # type: ignore[method-assign]
        rollout(run.policy, run.path, prompts, noise, "mean")
        run.policy.decode = decode  # type: ignore[method-assign]

    @torch.no_grad()
    def bare() -> None:
        for i in range(options.steps):
            times = run.path.timesteps[i].expand(options.samples)
            run.policy.predict(noise[:, i], times, embeds)

    return {"ours": ours, "bare": bare}


def _add(table: Table, title: str, seconds: dict[str, float]) -> None:
    ours, bare = seconds["ours"], seconds["bare"]
    table.add_row(title, f"{ours:.2f}", f"{bare:.2f}", f"{ours / bare:.2f}")


if __name__ == "__main__":
    main()
