"""`dagflow doctor --estimate`: what a run will need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from dagflow import UserError
from dagflow.cli.console import err, out
from dagflow.plugins import Registry

if TYPE_CHECKING:
    from dagflow.config import Config
    from dagflow.estimate import Estimate

TERA = 1e12


def show_estimate(resolved: Config, registry: Registry, gpus: int, tflops: float | None) -> None:
    """Print work, memory and hours. Raises UserError for what cannot be counted or timed."""
    import torch

    from dagflow.estimate import estimate, timed
    from dagflow.policies.shapes import Shapes

    if tflops is not None and not math.isfinite(tflops):
        raise UserError(f"--tflops {tflops}: expected a finite number, such as 100.")
    if gpus > (most := resolved.rollout.samples_per_epoch):
        raise UserError(
            f"--gpus {gpus} is more than rollout.samples_per_epoch = {most}, and each device needs "
            f"a trajectory."
        )
    shapes = Shapes(resolved)
    table = resolved.objective
    maker = registry.maker("objective", table.name, table.options, beside=type(table).model_fields)
    with torch.device("meta"):
        found = estimate(resolved, shapes, maker(shapes.spec), gpus)
    seconds = None
    if tflops is None:
        if not resolved.rewards:
            raise UserError(
                "a recipe without a reward cannot be timed: add one, such as "
                "-s rewards.aesthetic.weight=1, or give --tflops."
            )
        from dagflow.cli.display import Display
        from dagflow.prepare import prepare

        with Display(err) as display:
            seconds = timed(prepare(resolved, registry, display), gpus)
    _print_work(found, seconds)
    _print_memory(found)
    hours = found.hours(tflops * TERA) if tflops else found.hours_timed(seconds or {})
    how = f"at {tflops:g} tera-FLOPs per second, without rewards" if tflops else "as timed here"
    shown = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    out.print(f"[bold]time[/bold]    {shown} on {gpus} device{'s' * (gpus > 1)}, {how}")


def _print_work(found: Estimate, seconds: dict[str, float] | None) -> None:
    table = Table("work", "per epoch", "in all", "tera-FLOPs each", box=None)
    if seconds:
        table.add_column("ms each")
    for name, unit in found.units.items():
        each = f"{unit.flops / TERA:.3g}" if unit.flops else "?"
        row = [name, f"{unit.each_epoch:,}", f"{unit.count(found.epochs):,}", each]
        table.add_row(*row, *([f"{1000 * seconds[name]:.2f}"] if seconds else []))
    out.print(table)


def _print_memory(found: Estimate) -> None:
    table = Table("memory per device, without rewards", "MB", box=None)
    for name, size in found.bytes.items():
        table.add_row(name, f"{size / 2**20:,.0f}")
    table.add_row("[bold]peak, at least[/bold]", f"[bold]{found.peak_bytes / 2**20:,.0f}[/bold]")
    out.print(table)
