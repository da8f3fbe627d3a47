"""`dagflow doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dagflow import UserError
from dagflow import recipe as recipe_file
from dagflow.cli import names
from dagflow.cli.console import err, out
from dagflow.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from dagflow.config import Config
    from dagflow.estimate import Estimate

PACKAGES = ("torch", "diffusers", "peft", "accelerate", "transformers", "open_clip_torch")
GIGABYTE, TERA = 2**30, 1e12


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(
    estimate: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Predict the memory and the hours of this recipe, or TOML file.",
            autocompletion=names.recipes,
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Devices that share the run.")] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Tera-FLOPs a second that a device achieves. Default: timed on this machine.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="KEY.PATH=VALUE", help="A setting, as for train."),
    ] = None,
) -> None:
    """Show what dagflow finds on this machine, or what a run will need.

    Examples:

      dagflow doctor

      dagflow doctor --estimate tiny

      dagflow doctor --estimate paper-aesthetic --gpus 8 --tflops 100

    An A100 achieves some 100 tera-FLOPs a second in bfloat16, a third of what it is sold for.
    """
    from dagflow import config

    registry = load_plugins()
    if estimate is None and (setting or tflops or gpus > 1):
        raise UserError("--gpus, --tflops and -s go with --estimate RECIPE.")
    if estimate is None:
        _show_machine(registry)
        return
    tree = recipe_file.read_recipe(estimate)
    config.override(tree, setting or [])
    _show_estimate(config.resolve(tree), registry, gpus, tflops)


def _show_machine(registry: Registry) -> None:
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
    table.add_row("GPU", "\n".join(devices) or "none: the embedded model and worlds run without")
    broken = [f"{item.entry_point}: {item.reason}" for item in registry.broken]
    table.add_row("plugins", "\n".join(broken) or "all load")
    out.print(table)


def _show_estimate(resolved: Config, registry: Registry, gpus: int, tflops: float | None) -> None:
    import torch

    from dagflow.estimate import estimate, timed
    from dagflow.policies.shapes import Shapes

    shapes = Shapes(resolved)
    table = resolved.objective
    maker = registry.maker("objective", table.name, table.options, beside=type(table).model_fields)
    with torch.device("meta"):
        found = estimate(resolved, shapes, maker(shapes.spec), gpus)
    seconds = None
    if tflops is None:
        if not resolved.rewards:
            raise UserError(
                "to time it, a recipe needs a reward, such as -s rewards.aesthetic.weight=1; or "
                "give --tflops."
            )
        from dagflow.cli.display import Display
        from dagflow.prepare import prepare

        with Display(err) as display:
            seconds = timed(prepare(resolved, registry, display))
    _print_work(found, seconds)
    _print_memory(found)
    hours = found.hours(tflops * TERA) if tflops else found.hours_timed(seconds or {})
    how = f"at {tflops:g} tera-FLOPs a second, rewards left out" if tflops else "as timed here"
    shown = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    out.print(f"[bold]time[/bold]    {shown} on {gpus} device{'s' * (gpus > 1)}, {how}")


def _print_work(found: Estimate, seconds: dict[str, float] | None) -> None:
    table = Table("work", "an epoch", "in all", "tera-FLOPs each", box=None)
    if seconds:
        table.add_column("ms each")
    for name, unit in found.units.items():
        each = f"{unit.flops / TERA:.3g}" if unit.flops else "?"
        row = [name, f"{unit.each_epoch:,}", f"{unit.count(found.epochs):,}", each]
        table.add_row(*row, *([f"{1000 * seconds[name]:.2f}"] if seconds else []))
    out.print(table)


def _print_memory(found: Estimate) -> None:
    table = Table("memory of a device, without rewards", "MB", box=None)
    for name, size in found.bytes.items():
        table.add_row(name, f"{size / 2**20:,.0f}")
    table.add_row("[bold]peak, at least[/bold]", f"[bold]{found.peak_bytes / 2**20:,.0f}[/bold]")
    out.print(table)
