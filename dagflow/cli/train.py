"""`dagflow train`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dagflow import RunError, UserError
from dagflow import recipe as recipe_file
from dagflow.cli import names, rewards
from dagflow.cli.console import err, out
from dagflow.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from torch import Tensor

    from dagflow.config import Config
    from dagflow.prepare import Run
    from dagflow.train import Outcome
    from dagflow.truth import Truth

INTERRUPTED = 130
CHANGEABLE = {"epochs", "stop_at_gain", "checkpoint", "evaluate", "machine"}  # when a run resumes


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name (see `dagflow recipes`) or a TOML file. Default: tiny.",
            autocompletion=names.recipes,
            show_default=False,
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:ARGUMENT][=WEIGHT]",
            help="Reward, such as jpeg-compressibility or remote:URL; may be repeated, the "
            "weighted sum counts. Replaces the recipe's rewards.",
            autocompletion=names.rewards,
        ),
    ] = None,
    eval_reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A reward that is measured and never trained on; may be repeated.",
            autocompletion=names.rewards,
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="Objective: kl, db, tb, rtb, ...", autocompletion=names.objectives),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Prompt source: animals, file:PATH, ...", autocompletion=names.prompts),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Train on this prompt; may be repeated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="tiny (embedded), the folder of a diffusers pipeline, a hub id, ddpm:FOLDER or "
            "ddpm:HUB_ID (unconditional), or world:NAME (its answer is known).",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Run directory. Default: a new one under runs/.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides prompts, noise and weights.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "-s",
            "--set",
            metavar="KEY.PATH=VALUE",
            help="Any setting of the configuration, such as -s epochs=3 -s update.batch_size=64.",
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.")
    ] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Show where time and memory went, and write traces."),
    ] = False,
) -> None:
    """Align a model with a reward.

    Examples:

      dagflow train --reward jpeg-compressibility --objective kl

      dagflow train --reward jpeg-incompressibility --objective db --seed 1 -s epochs=4

      dagflow train --resume runs/jpeg-compressibility-kl-001

    Ctrl-C finishes the current step, saves, and says how to go on; a second one stops at once.
    """
    from dagflow import config

    registry = load_plugins()
    settings = setting or []
    if resume is not None:
        given = [recipe, reward, eval_reward, objective, prompts, prompt, model, output, seed]
        if any(value is not None for value in given):
            raise UserError("--resume takes the run's own configuration; only -s goes with it.")
        _go(_resumed(resume, settings), registry, resume=True, profile=profile)
        return
    tree = recipe_file.read_recipe(recipe or recipe_file.DEFAULT)
    if reward:
        tree["rewards"] = rewards.tables(reward, registry)
    if eval_reward:
        measured = rewards.tables(eval_reward, registry)
        tree["evaluate"] = {**tree.get("evaluate", {}), "rewards": measured}
    if objective:
        use(tree, "objective", objective, registry.find("objective", objective).options)
    if prompts:
        source = registry.find("prompts", prompts.partition(":")[0])
        use(tree, "prompts", prompts, source.options)
    if prompt:
        if prompts:
            raise UserError("--prompts and --prompt exclude each other.")
        tree["prompts"] = {"name": "texts", "texts": prompt}
    given_values = {"model": model, "output": output and str(output), "seed": seed}
    tree |= {key: value for key, value in given_values.items() if value is not None}
    config.override(tree, settings)
    resolved = config.resolve(tree)
    if not resolved.output:
        resolved = resolved.model_copy(update={"output": _free_directory(resolved)})
    _go(resolved, registry, resume=False, profile=profile)


def _go(resolved: Config, registry: Registry, resume: bool, profile: bool) -> None:
    from dagflow import train as training
    from dagflow.cli.display import Display, profile_table
    from dagflow.prepare import Interrupted, prepare
    from dagflow.profiling import profiled

    if not resume:
        training.require_free(Path(resolved.output))
    with Display(err, resolved.stop_at_gain > 0) as display, _stoppable() as stop_asked:
        run = prepare(resolved, registry, display, stop_asked)
        watch = profiled(run.folder / "profile") if profile else nullcontext()
        try:
            with watch as profiles:
                outcome = training.resume(run) if resume else training.start(run)
        except Interrupted:
            display.stop()
            err.print(f"Interrupted and saved. Go on with: dagflow train --resume {run.folder}")
            raise typer.Exit(INTERRUPTED) from None
        except RunError as error:
            hint = f"What was done before is saved: dagflow train --resume {run.folder} goes on."
            raise RunError(f"{error}\n{hint}") from error
    _summarise(run, outcome)
    if profiles:
        out.print(f"profile   {profiles.folder}")
        out.print(profile_table(profiles))


def _resumed(folder: Path, settings: list[str]) -> Config:
    from dagflow import config
    from dagflow.train import read_config

    before = read_config(folder)
    tree = before.model_dump(mode="json")
    config.override(tree, settings)
    after = config.resolve(tree)
    changed = {
        key for key in type(after).model_fields if getattr(after, key) != getattr(before, key)
    }
    if changed - CHANGEABLE:
        raise UserError(
            f"{', '.join(sorted(changed - CHANGEABLE))} cannot change when a run resumes; "
            f"only {', '.join(sorted(CHANGEABLE))} can."
        )
    if after.epochs != before.epochs and (before.reward_budget or before.update.decay):
        what = "reward_budget" if before.reward_budget else "update.decay"
        raise UserError(f"epochs cannot change when a run with {what} resumes: it decides them.")
    # beta's rise keeps its length in updates
    anneal = min(1.0, before.objective.anneal * before.epochs / after.epochs)
    objective = before.objective.model_copy(update={"anneal": anneal})
    return after.model_copy(update={"objective": objective})


def use(tree: dict[str, Any], table: str, name: str, options: Iterable[str]) -> None:
    """Name a plugin in a table of the recipe; of what stands there, keep what it understands."""
    from dagflow.config import Config

    known = {*type(getattr(Config(), table)).model_fields, *options}
    old = tree.get(table, {})
    kept = {key: old[key] for key in old if key in known} if isinstance(old, dict) else {}
    tree[table] = {**kept, "name": name}


def _free_directory(resolved: Config) -> str:
    label = "+".join(resolved.rewards) or "run"
    stem = f"{label}-{resolved.objective.name}"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return str(folder)


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C a request; the second acts at once."""
    asked: list[bool] = []

    def handler(*_: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        err.print("Stopping after this step (Ctrl-C again: at once) ...")

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, previous)


def _summarise(run: Run, outcome: Outcome) -> None:
    comparison, stopped = outcome.comparison, outcome.stopped
    if stopped is not None:
        out.print(
            f"stopped   after epoch {stopped.epochs} of {run.config.epochs}: the reward rose by "
            f"{stopped.gain:.2f} deviations (stop_at_gain = {run.config.stop_at_gain:g})"
        )
    out.print(f"pictures  {run.folder / 'samples'}")
    out.print(f"metrics   {run.folder / 'metrics.jsonl'}")
    kind = "LoRA" if "lora" in run.policy.WEIGHTS_FILE else "weights"
    out.print(f"{kind:<9} {outcome.checkpoint}")
    if run.config.objective.divergence is not None:
        out.print(f"beta      {outcome.beta:.4g} (found for {run.config.objective.beta})")
    if comparison is not None:
        out.print(f"report    {run.folder / 'report.json'}")
        if len(comparison.scores) > 1:
            for label, scores in comparison.scores.items():
                out.print(f"{label}: {_change(comparison.base_scores[label], scores)}")
        change = _change(comparison.base_rewards, comparison.rewards)
        out.print(f"reward on {len(comparison.rewards)} held-out seeds: {change}")
        if "slope" in comparison.temperature:
            out.print(_temperature(run, outcome))
    if outcome.truth is not None:
        out.print(_distances(outcome.truth))


def _temperature(run: Run, outcome: Outcome) -> str:
    """The measured slope of log-density against reward, beside what it should become."""
    assert outcome.comparison is not None
    found = outcome.comparison.temperature
    scale = 1 if run.learner.density == "sum" else prod(run.policy.latent_shape)
    return (
        f"slope of log-density against reward: {found['slope']:.4g} (in proportion: "
        f"{outcome.beta * scale:.4g}), effective samples {found['ess']:.0%}"
    )


def _distances(truth: Truth) -> str:
    """Of each set of samples from the known target."""
    parts = (f"{name} {value.total_variation:.3f}" for name, value in truth.distances.items())
    return f"total variation from the target: {', '.join(parts)}"


def _change(base: Tensor, now: Tensor) -> str:
    from dagflow.evaluate import standard_error

    change, error = float((now - base).mean()), standard_error(now - base)
    errors = f" ({abs(change) / error:.1f} standard errors)" if error else ""
    means = f"base {float(base.mean()):.4f}, trained {float(now.mean()):.4f}"
    return f"{means}, change {change:+.4f} +- {error:.4f}{errors}"
