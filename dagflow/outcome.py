"""What a run shows of its model: a grid after each epoch, and at the end a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from dagflow import charts, report
from dagflow.config import Config
from dagflow.engine import pictures
from dagflow.engine.checkpoint import Position
from dagflow.engine.normalise import normalised
from dagflow.evaluate import Comparison, Sampler, compare, cycle
from dagflow.prepare import Run
from dagflow.truth import Truth, against_truth
from dagflow.worlds.rewards import Density, Ratio


@dataclass(frozen=True)
class Stopped:
    """A run that has gained enough (`stop_at_gain`)."""

    epochs: int  # that were done
    gain: float  # in deviations of the first epoch's rewards


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind."""

    checkpoint: Path
    comparison: Comparison | None
    truth: Truth | None = None
    beta: float = 0.0  # the final one; on the scale of the configuration
    stopped: Stopped | None = None


def draw_grid(run: Run, epoch: int) -> None:
    """The same prompts and noise every time, so that what changes is the model."""
    prompts = cycle(run.heldout, run.config.evaluate.grid)
    total = len(run.processes.own(len(prompts))) * run.path.steps
    run.watcher.phase("grid", total, max(epoch, 1))
    images = _sampler(run, run.watcher.advance).images(prompts)
    picture = pictures.grid(images, columns=8, captions=[prompt.text for prompt in prompts])
    file = run.folder / "samples" / f"epoch-{epoch:04d}.png"
    run.processes.from_main(lambda: _show(run, picture, file, "samples"))
    run.watcher.pictures(images, epoch)


def _show(run: Run, picture: Image, file: Path, name: str) -> None:
    """In the run's folder, and to trackers by a name."""
    pictures.save(picture, file)
    run.trackers.picture(name, file)


def evaluate(
    run: Run, config: Config, position: Position, beta: float
) -> tuple[Comparison, Truth | None]:
    """Base against trained on held-out seeds; a picture of the first of them, and a report.

    `beta` is the final one in nats, on the scale of summed log-densities.
    """
    count = config.evaluate.images
    prompts = cycle(run.heldout, count)
    total = 2 * len(run.processes.own(count)) * run.path.steps
    run.watcher.phase("evaluate", total, config.epochs)
    sampler = _sampler(run, run.advance)
    rewards, against_base = normalised(run.rewards, position.statistics), run.learner.keeps_base
    comparison = compare(sampler, prompts, rewards, run.measured, beta, against_base)
    truth = against_truth(sampler, comparison) if _aims_at_the_truth(run, beta) else None

    def write() -> None:
        _draw_comparison(run, comparison)
        if truth:
            charts.save(charts.truth_chart(truth), run.folder / "samples" / "truth.png")
        numbers = report.report(config, comparison, truth, position.reward_calls)
        report.write(numbers, run.folder / "report.json")

    run.processes.from_main(write)
    return comparison, truth


def _sampler(run: Run, progress: Callable[[int], None]) -> Sampler:
    size, seed = run.config.rollout.batch_size, run.config.seed
    return Sampler(run.policy, run.path, size, seed, progress=progress, processes=run.processes)


def _aims_at_the_truth(run: Run, beta: float) -> bool:
    """Whether reward, beta and prior make a world's own target the one of this run."""
    due = Ratio if run.learner.keeps_base else Density
    exact = len(run.rewards) == 1 and type(run.rewards[0].reward) is due
    return exact and run.rewards[0].weight == beta == 1


def _draw_comparison(run: Run, comparison: Comparison) -> None:
    shown = min(len(comparison.prompts), 12)
    picture = pictures.before_after(
        comparison.base_images[:shown],
        comparison.images[:shown],
        [prompt.text for prompt in comparison.prompts[:shown]],
    )
    _show(run, picture, run.folder / "samples" / "before-after.png", "before-after")
