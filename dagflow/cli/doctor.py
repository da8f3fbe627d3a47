"""`dagflow doctor`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from dagflow import UserError
from dagflow import recipe as recipe_file
from dagflow.cli import names
from dagflow.cli.console import err, out, print_whole
from dagflow.cli.options import (
    ModelOption,
    ObjectiveOption,
    PromptsOption,
    RecipeArgument,
    RewardOption,
    SettingOption,
)
from dagflow.cli.train import compose
from dagflow.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from dagflow.checks.result import Check, Result, Status
    from dagflow.config import Config

PACKAGES = ("torch", "diffusers", "peft", "accelerate", "transformers", "open_clip_torch")
STYLES: dict[Status, str] = {
    "ok": "green",
    "warning": "yellow",
    "failed": "bold red",
    "skipped": "dim",
}
GIGABYTE = 2**30
COUNTING: dict[str, Any] = {"rich_help_panel": "With --estimate"}


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    recipe: RecipeArgument = None,
    reward: RewardOption = None,
    objective: ObjectiveOption = None,
    prompts: PromptsOption = None,
    model: ModelOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the run would write. Default: under runs/.")
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|FOLDER",
            help="Check that this LoRA, or a run's newest, fits and changes the model.",
        ),
    ] = None,
    setting: SettingOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    estimate: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Only predict the memory and hours of this recipe or TOML file.",
            autocompletion=names.recipes,
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices that share the run.", **COUNTING)] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Tera-FLOPs per second that a device achieves. Default: timed on this machine.",
            **COUNTING,
        ),
    ] = None,
) -> None:
    """Check the machine, plugins, weights, model and mathematics of a run before it begins.

    Examples:

      dagflow doctor

      dagflow doctor paper-aesthetic -s rollout.num_inference_steps=10

      dagflow doctor --model PATH/TO/PIPELINE --reward my-reward

      dagflow doctor --lora runs/jpeg-compressibility-kl-001

      dagflow doctor --estimate paper-aesthetic --gpus 8 --tflops 100

    Exit code: 0 if nothing failed, 1 if a check failed, 2 for wrong input.

    An A100 achieves some 100 tera-FLOPs per second in bfloat16, a third of its data sheet's.
    """
    from dagflow import config

    if estimate is None and (tflops or gpus > 1):
        raise UserError("--gpus and --tflops need --estimate RECIPE.")
    chosen = (recipe, reward, objective, prompts, model, output, lora)
    if estimate is not None:
        if any(chosen) or as_json:
            raise UserError("--estimate RECIPE can only be combined with --gpus, --tflops and -s.")
        from dagflow.cli.estimate import show_estimate

        tree = recipe_file.read_recipe(estimate)
        config.override(tree, setting or [])
        show_estimate(config.resolve(tree), load_plugins(), gpus, tflops)
        return
    if lora is not None and recipe is None and (lora / "config.toml").is_file():
        recipe = str(lora / "config.toml")
    tree = compose(recipe, reward, None, objective, prompts, None)
    tree |= {"model": model} if model is not None else {}
    config.override(tree, setting or [])
    _check(config.resolve(tree), output, lora, as_json)


def _check(resolved: Config, output: Path | None, lora: Path | None, as_json: bool) -> None:
    from dagflow.checks.patient import Patient
    from dagflow.checks.runner import all_checks
    from dagflow.policies.loading import default_device

    registry = load_plugins()
    folder = (output or Path(resolved.output or "runs")).absolute()
    patient = Patient(resolved, registry, default_device(), folder)
    results = _examined(patient, all_checks(patient, lora))
    if as_json:
        failed = any(result.status == "failed" for result in results)
        record = {"ok": not failed, "checks": [asdict(result) for result in results]}
        typer.echo(json.dumps(record, indent=2))
    else:
        out.print(_machine(registry))
        _print(results)
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)


def _examined(patient: Any, checks: Sequence[Check]) -> list[Result]:
    """Run all checks, showing a progress bar."""
    from dagflow.checks.runner import examine

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("checking", total=None)
        patient.progress = lambda units: bars.advance(task, units)

        def begins(check: Check, steps: int) -> None:
            name = escape(f"{check.group}: {check.name}")
            bars.reset(task, description=name, total=steps or None)

        return list(examine(patient, list(checks), begins))


def _machine(registry: Registry) -> Table:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    table = Table(box=None, show_header=False)
    table.add_row("Python", platform.python_version())
    for name in PACKAGES:
        try:
            table.add_row(name, version(name))
        except PackageNotFoundError:
            table.add_row(name, "missing")
    table.add_row("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use")
    devices = [
        f"{torch.cuda.get_device_name(k)}, "
        f"{torch.cuda.get_device_properties(k).total_memory / GIGABYTE:.0f} GB"
        for k in range(torch.cuda.device_count())
    ]
    table.add_row("GPU", "\n".join(devices) or "none: the embedded model and worlds need none")
    return table


def _print(results: Sequence[Result]) -> None:
    from dagflow.checks.result import GROUPS

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "check", "found", "limit"):
        table.add_column(heading, overflow="fold")
    for group in GROUPS:
        table.add_row("", f"[bold]{group}[/bold]")
        for result in results:
            if result.group == group:
                table.add_row(*_cells(result))
    print_whole(table)
    counts = Counter(result.status for result in results)
    out.print(", ".join(f"{counts[status]} {status}" for status in STYLES if counts[status]))


def _cells(result: Result) -> tuple[str, ...]:
    style, found = STYLES[result.status], escape(result.found)
    if result.change:
        found += f"\n[bold]Change[/bold] {escape(result.change)}."
    return f"[{style}]{result.status}[/{style}]", escape(result.name), found, escape(result.limit)
