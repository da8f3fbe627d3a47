"""What a run does when a device is too small or numbers are not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from dagflow.engine.checkpoint import Position
from dagflow.engine.window import Window
from dagflow.prepare import Run


def smaller(run: Run) -> Run | None:
    """The same run with half the micro-batch and half the rollout batch; None if both are 1.

    What is sampled and trained on stays the same; dividing it differently only changes rounding.
    """
    config = run.config
    rollout, update = config.rollout.batch_size, config.update.microbatch_size
    if rollout == update == 1:
        return None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = max(1, rollout // 2), max(1, update // 2)
    settings = config.update.model_copy(update={"microbatch_size": half[1]})
    changed = config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"batch_size": half[0]}),
            "update": settings,
        }
    )
    run.watcher.say(
        f"Out of memory: continuing with rollout.batch_size = {half[0]} and "
        f"update.microbatch_size = {half[1]}; what is computed stays the same."
    )
    return replace(run, config=changed, learner=replace(run.learner, settings=settings))


def keep_batch(run: Run, window: Window, position: Position) -> Path:
    """Write this process's transitions of a window to a file in the run's directory."""
    file = run.folder / f"not-finite-update-{position.update + 1:06d}-process-{run.processes.rank}"
    file = file.with_suffix(".safetensors")
    b, i = window.places
    taken = window.trajectories
    tensors = {
        "trajectory": taken.index[b],
        "step": i,
        "latents": taken.latents[b, i],
        "next_latents": taken.latents[b, i + 1],
        "log_pf": taken.log_pf[b, i],
        "potential": window.potentials[b, i],
        "next_potential": window.potentials[b, i + 1],
    }
    texts = {f"prompt.{k}": taken.prompts[k].text for k in sorted(set(window.rows[:, 0].tolist()))}
    file.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"beta": str(window.beta), **texts}
    save_file({name: values.contiguous() for name, values in tensors.items()}, file, metadata)
    return file
