"""Images per second, and how much of the device that uses; optionally compiled.

    python benchmarks/throughput.py [--model tiny|sd15|FOLDER] [--samples 16] [--steps 20]
        [--chunk 16] [--rounds 3] [--compiled]

Runs whole epochs of `kl` without potentials, training on all transitions. `sd15` is a pipeline of
SD v1.5's shapes with random weights; on a GPU networks are bfloat16. Work is the UNet's and the
VAE's FLOPs, counted from their shapes as `dagflow doctor --estimate` does, and compared with what
the same device achieves in one large matrix product of the same precision: model FLOPs utilisation.
Two epochs run before the timed ones; the time of the first is printed too. `--compiled` does the
same again with `machine.compile`, where the first epoch compiles.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from models import Model, arguments, model
from workload import collected, in_turns, machine, prepared, synchronize, updated

from dagflow.collect import Epoch
from dagflow.config import Config
from dagflow.policies.loading import default_device
from dagflow.policies.shapes import Shapes

SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices


def main() -> None:
    parser = arguments(chunk=16)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    console = Console(width=120)
    console.print(machine())
    with tempfile.TemporaryDirectory() as folder:
        chosen = model(options.model, Path(folder))
        for compiled in (False, True) if options.compiled else (False,):
            console.print(epochs(chosen, options, compiled))


def epochs(chosen: Model, options: argparse.Namespace, compiled: bool) -> Table:
    samples, steps = options.samples, options.steps
    config = chosen.configuration(
        options,
        rollout={"potential": "none", "batch_size": options.chunk},
        machine={"compile": compiled},
    )
    shapes = Shapes(config)
    guided, peak = shapes.guided_pass(), matrix_rate(shapes.dtype)
    forward = samples * (steps * guided.forward_flops + shapes.decode_flops(preview=False))
    back = samples * steps * guided.both_flops
    took = seconds(config, options.rounds)
    whole = took["rollout"] + took["update"]
    columns = ("first epoch, s", "sampled, images/s", "of peak", "whole epoch, images/s", "of peak")
    rate = f"{peak / 1e12:.3g} tera-FLOPs a second in a matrix product"
    table = Table("", *columns, title=f"{chosen.title}, {shapes.dtype}, {rate}")
    table.add_row(
        "compiled" if compiled else "plain",
        f"{took['first epoch']:.1f}",
        f"{samples / took['rollout']:.3g}",
        f"{forward / took['rollout'] / peak:.0%}",
        f"{samples / whole:.3g}",
        f"{(forward + back) / whole / peak:.0%}",
    )
    return table


def seconds(config: Config, rounds: int) -> dict[str, float]:
    """Seconds of the first epoch, and the least for sampling and updating after a second one."""
    run = prepared(config)
    data: list[Epoch] = []

    def rollout() -> None:
        data[:] = [collected(run)]

    def update() -> None:
        updated(run, data[0])

    parts = {"rollout": rollout, "update": update}
    first = in_turns(parts, 1)
    in_turns(parts, 1)
    return {"first epoch": sum(first.values()), **in_turns(parts, rounds)}


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOPs per second of a square matrix product, the best of ten."""
    device = default_device()
    side = SIDE[device.type]
    a, b = torch.randn(2, side, side, dtype=dtype, device=device)
    least = float("inf")
    for _ in range(10):
        synchronize()
        began = time.perf_counter()
        a @ b
        synchronize()
        least = min(least, time.perf_counter() - began)
    return 2 * side**3 / least


if __name__ == "__main__":
    main()
