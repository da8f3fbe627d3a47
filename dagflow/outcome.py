"""What a run shows at the end: a comparison of its model with the base model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dagflow import charts, report
from dagflow.alarms import Alarm
from dagflow.config import Config
from dagflow.engine import pictures
from dagflow.engine.checkpoint import Position, read, restore
from dagflow.engine.normalise import normalised
from dagflow.evaluate import Comparison, compare, cycle
from dagflow.folder import whole_checkpoint
from dagflow.prepare import Run
from dagflow.truth import Truth, against_truth
from dagflow.watch import sampler_of, show_picture
from dagflow.worlds.rewards import Density, Ratio


@dataclass(frozen=True)
class Stopped:
    """A run that has gained enough (`stop_at_gain`), or that an alarm has ended."""

    epochs: int  # done
    gain: float  # in deviations of the first epoch's rewards
    alarms: tuple[Alarm, ...] = ()
    went_back: bool = False  # to a checkpoint before them


@dataclass(frozen=True)
class Evaluation:
    """Base against trained on held-out seeds."""

    comparison: Comparison
    truth: Truth | None
    numbers: dict[str, Any]  # report.json


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind."""

    checkpoint: Path
    evaluation: Evaluation | None
    beta: float = 0.0  # the final one; on the scale of the configuration
    stopped: Stopped | None = None


def evaluate(run: Run, config: Config, position: Position, ended: bool) -> Evaluation:
    """Draw with both models, and write pictures of the first seeds and report.json.

    `ended`: whether the run has ended.
    """
    count, beta = config.evaluate.images, beta_in_nats(run, config)
    prompts = cycle(run.heldout, count)
    total = 2 * len(run.processes.own(count)) * run.path.steps
    run.watcher.phase("evaluate", total, config.epochs)
    sampler = sampler_of(run, run.advance)
    rewards, against_base = normalised(run.rewards, position.statistics), run.learner.keeps_base
    comparison = compare(sampler, prompts, rewards, run.measured, beta, against_base)
    truth = against_truth(sampler, comparison) if _aims_at_the_truth(run, beta) else None

    def write() -> dict[str, Any]:
        _draw_comparison(run, comparison)
        if truth:
            charts.save(charts.truth_chart(truth), run.folder / "samples" / "truth.png")
        numbers = report.report(
            config,
            comparison,
            truth,
            position.reward_calls,
            position.name,
            beta,
            run.features,
            ended,
        )
        report.write(numbers, run.folder / report.NAME)
        return numbers

    return Evaluation(comparison, truth, run.processes.from_main(write))


def beta_in_nats(run: Run, config: Config) -> float:
    """The final beta on the scale of summed log-densities."""
    scale = prod(run.policy.latent_shape) if run.learner.density == "mean" else 1
    return config.final_beta * scale


def evaluate_checkpoint(run: Run, place: str = "") -> Evaluation:
    """Evaluate the newest undamaged checkpoint of a run's folder, or only `place`.

    Raises UserError if there is none, or it does not fit this configuration.
    """
    with closing(run):
        saved = read(whole_checkpoint(run.folder, place, run.watcher.say), run.policy)
        restore(saved, run.learner)
        beta = saved.position.beta
        config = run.config if beta is None else run.config.with_beta(beta)
        return evaluate(run, config, saved.position, report.has_ended(run.folder))


def _aims_at_the_truth(run: Run, beta: float) -> bool:
    """Whether reward, beta and prior make the world's own target this run's target."""
    due = Ratio if run.learner.keeps_base else Density
    exact = len(run.rewards) == 1 and type(run.rewards[0].reward) is due
    return exact and run.rewards[0].weight == beta == 1 and not run.rewards[0].normalise_epochs


def _draw_comparison(run: Run, comparison: Comparison) -> None:
    shown = min(len(comparison.prompts), 12)
    picture = pictures.before_after(
        comparison.base.images[:shown],
        comparison.trained.images[:shown],
        [prompt.text for prompt in comparison.prompts[:shown]],
    )
    folder = run.folder / "samples"
    show_picture(run, picture, folder / "before-after.png", "before-after")
    for name, one in (("base", comparison.base), ("trained", comparison.trained)):
        places = report.ranked(one.rewards)
        rows = [k for rank in places for k in rank]
        captions = [comparison.prompts[k].text for k in rows]
        sheet = pictures.grid(one.images[rows], len(places[0]), captions)
        pictures.save(sheet, folder / f"ranked-{name}.png")
