"""`dagflow train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dagflow import UserError
from dagflow import recipe as recipe_file
from dagflow.cli import names, rewards
from dagflow.cli.launch import Machines
from dagflow.cli.options import (
    EvalRewardOption,
    ModelOption,
    ObjectiveOption,
    PromptsOption,
    RecipeArgument,
    RewardOption,
    SettingOption,
)
from dagflow.cli.run import Resumed, run
from dagflow.plugins import Kind, Registry, load_plugins

if TYPE_CHECKING:
    from dagflow.config import Config

# What may change when a run resumes:
CHANGEABLE = {"epochs", "stop_at_gain", "checkpoint", "evaluate", "alarms", "machine", "tracking"}
FIXED_IN_EVALUATE = ("watched", "images_per_prompt", "grid", "features")
GROUP: dict[str, Any] = {"rich_help_panel": "Several processes"}


def register(app: typer.Typer) -> None:
    app.command()(train)


def train(
    recipe: RecipeArgument = None,
    reward: RewardOption = None,
    eval_reward: EvalRewardOption = None,
    objective: ObjectiveOption = None,
    prompts: PromptsOption = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Train on this prompt; may be repeated."),
    ] = None,
    model: ModelOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Run directory. Default: a new one under runs/.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides prompts, noise and weights.")] = None,
    setting: SettingOption = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN[@EPOCH]",
            help="Resume an interrupted run from its newest checkpoint, or from that of an epoch.",
        ),
    ] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also log to tensorboard, trackio or wandb; may be repeated. none turns all off.",
            autocompletion=names.trackers,
        ),
    ] = None,
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            help="Show pictures during training. Default: if the terminal has all colours.",
            show_default=False,
        ),
    ] = None,
    num_processes: Annotated[
        int,
        typer.Option(min=1, help="Processes on this machine, such as one for each GPU.", **GROUP),
    ] = 1,
    nnodes: Annotated[
        int, typer.Option(min=1, help="Machines; give each the same command.", **GROUP)
    ] = 1,
    node_rank: Annotated[
        int, typer.Option(min=0, help="Which of the machines this is, from 0.", **GROUP)
    ] = 0,
    master_addr: Annotated[
        str, typer.Option(help="Name or address of machine 0.", **GROUP)
    ] = "localhost",
    master_port: Annotated[
        int, typer.Option(min=1, max=65535, help="A free port of machine 0.", **GROUP)
    ] = 29500,
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

      dagflow train paper-aesthetic --num-processes 8

    Ctrl-C finishes the current step, saves, and says how to resume; a second one stops at once.
    """
    machines = Machines(num_processes, nnodes, node_rank, master_addr, master_port)
    settings = [*_tracking(tracker), *(setting or [])]
    if resume is not None:
        given = [recipe, reward, eval_reward, objective, prompts, prompt, model, output, seed]
        if any(value is not None for value in given):
            raise UserError(
                "--resume takes the run's own configuration; it allows only -s and --tracker."
            )
        place = Resumed.named(resume)
        run(lambda: _resumed(place.folder, settings), machines, profile, place, pictures)
        return
    tree = compose(recipe, reward, eval_reward, objective, prompts, prompt)
    given_values = {"model": model, "output": output and str(output), "seed": seed}
    tree |= {key: value for key, value in given_values.items() if value is not None}
    run(lambda: _composed(tree, settings), machines, profile, pictures=pictures)


def compose(
    recipe: str | None,
    reward: list[str] | None,
    eval_reward: list[str] | None,
    objective: str | None,
    prompts: str | None,
    prompt: list[str] | None,
) -> dict[str, Any]:
    """The tree of a recipe, with what the command line gives instead."""
    if prompts and prompt:
        raise UserError("give either --prompts or --prompt, not both.")
    tree = recipe_file.read_recipe(recipe or recipe_file.DEFAULT)
    registry = load_plugins()
    if reward:
        tree["rewards"] = rewards.tables(reward, registry)
    if eval_reward:
        measured = rewards.tables(eval_reward, registry, "--eval-reward", "it is only measured")
        evaluate = tree.get("evaluate", {})
        if not isinstance(evaluate, dict):
            raise UserError(f"evaluate = {evaluate!r} is not a table.")
        tree["evaluate"] = {**evaluate, "rewards": measured}
    if objective:
        use(tree, "objective", objective, registry)
    if prompts:
        use(tree, "prompts", prompts, registry)
    if prompt:
        tree["prompts"] = {"name": "texts", "texts": prompt}
    return tree


def _tracking(names: list[str] | None) -> list[str]:
    """The setting that --tracker stands for."""
    if names is None:
        return []
    if "none" in names and len(names) > 1:
        raise UserError("--tracker none cannot be combined with other trackers.")
    return [f"tracking.trackers={json.dumps([name for name in names if name != 'none'])}"]


def _composed(tree: dict[str, Any], settings: list[str]) -> Config:
    from dagflow import config
    from dagflow.folder import require_free

    config.override(tree, settings)
    resolved = config.resolve(tree)
    if resolved.output:
        require_free(Path(resolved.output))
    return resolved


def _resumed(folder: Path, settings: list[str]) -> Config:
    from dagflow import config
    from dagflow.folder import read_config

    before = read_config(folder)
    tree = before.model_dump()
    config.override(tree, settings)
    after = config.resolve(tree)
    old, new = dict(before), dict(after)
    changed = {key for key in new if new[key] != old[key] and repr(new[key]) != repr(old[key])}
    if changed - CHANGEABLE:
        raise UserError(
            f"{', '.join(sorted(changed - CHANGEABLE))} cannot change when a run resumes; "
            f"only {', '.join(sorted(CHANGEABLE))} can."
        )
    for name in FIXED_IN_EVALUATE:
        if getattr(after.evaluate, name) != getattr(before.evaluate, name):
            raise UserError(
                f"evaluate.{name} cannot change when a run resumes: its looks would no longer "
                f"compare."
            )
    if after.epochs != before.epochs and (before.reward_budget or before.update.decay):
        what = "reward_budget" if before.reward_budget else "update.decay"
        raise UserError(f"epochs cannot change when a run with {what} resumes.")
    if after.epochs == before.epochs:
        return after
    # beta rises over the same number of updates as before
    anneal = before.objective.anneal * before.epochs / after.epochs
    objective = before.objective.model_copy(update={"anneal": anneal})
    return after.model_copy(update={"objective": objective})


def use(tree: dict[str, Any], kind: Kind, name: str, registry: Registry) -> None:
    """Name a plugin in its table of the recipe, and keep the settings there that it understands.

    Options of another plugin are kept only if both come from one distribution.
    """
    from dagflow.config import Config

    item, before = registry.find(kind, name.partition(":")[0]), getattr(Config(), kind)
    old = tree.get(kind, {})
    if not isinstance(old, dict):
        old = {}
    known = {*type(before).model_fields}
    author = registry.author(kind, str(old.get("name", before.name)).partition(":")[0])
    if author == item.distribution:
        known |= item.options.keys()
    tree[kind] = {**{key: value for key, value in old.items() if key in known}, "name": name}
