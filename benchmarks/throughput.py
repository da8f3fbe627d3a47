"""Images a second, and how much of the device that is; compiled too, where asked.

    python benchmarks/throughput.py [--model tiny|sd15|FOLDER] [--samples 16] [--steps 20]
        [--chunk 16] [--rounds 3] [--compiled]

Whole epochs of `kl` without potentials, all transitions trained on. `sd15` is a pipeline of SD
v1.5's shapes with random weights; on a GPU networks are bfloat16. Work is the UNet's and the VAE's
FLOPs, counted from their shapes as `dagflow doctor --estimate` does, and is set against what the
same device achieves in one large matrix product of the same precision: model FLOPs utilisation.
`--compiled` does the same with `machine.compile`, after two epochs that compile.
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

from dagflow.config import Config
from dagflow.policies.loading import default_device
from dagflow.policies.shapes import Shapes

SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices


def main() -> None:
    parser = arguments(chunk=16)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        console.print(compared(model(options.model, Path(folder)), options))


def compared(chosen: Model, options: argparse.Namespace) -> Table:
    """A row for the epochs as they are, and one for compiled ones."""
    samples, steps = options.samples, options.steps
    rows = {}
    for compiled in (False, True) if options.compiled else (False,):
        config = chosen.configuration(
            options,
            rollout={"potential": "none", "batch_size": options.chunk},
            machine={"compile": compiled},
        )
        rows["compiled" if compiled else "plain"] = seconds(config, options.rounds)
    shapes = Shapes(config)
    guided, peak = shapes.guided_pass(), matrix_rate(shapes.dtype)
    forward = samples * (steps * guided.forward_flops + shapes.decode_flops(preview=False))
    back = samples * steps * guided.both_flops
    rate = f"{peak / 1e12:.3g} tera-FLOPs a second in a matrix product"
    columns = ("sampled, images/s", "of peak", "whole epoch, images/s", "of peak")
    table = Table("", *columns, title=f"{machine()}, {shapes.dtype}\n{rate}")
    for name, took in rows.items():
        whole = took["rollout"] + took["update"]
        table.add_row(
            name,
            f"{samples / took['rollout']:.3g}",
            f"{forward / took['rollout'] / peak:.0%}",
            f"{samples / whole:.3g}",
            f"{(forward + back) / whole / peak:.0%}",
        )
    return table


def seconds(config: Config, rounds: int) -> dict[str, float]:
    """The least that sampling and updating an epoch take, after two epochs that do not count."""
    run = prepared(config)
    data = [collected(run)]
    updated(run, data[0])

    def rollout() -> None:
        data[0] = collected(run)

    def update() -> None:
        updated(run, data[0])

    in_turns({"rollout": rollout, "update": update}, 1)
    return in_turns({"rollout": rollout, "update": update}, rounds)


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOPs a second of a square matrix product, the best of ten."""
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
