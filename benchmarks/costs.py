"""Nothing grows faster than its work: time of an epoch against its size, on the embedded model.

    python benchmarks/costs.py [--rounds 2]

Doubles one of samples, steps, resolution and rewards at a time. Prints the ratio of the seconds to
those of the line before; 2 is proportional. For the resolution the work is counted in FLOPs of the
UNet's pass, whose attention grows faster than its pixels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from workload import configuration, epoch, in_turns, machine, prepared

from dagflow.config import Config
from dagflow.policies.loading import load_pipeline
from dagflow.policies.shapes import Shapes

CHUNK = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    console = Console(width=120)
    console.print(machine())
    table = Table("", "", "seconds", "times the line before", "work, times")
    with tempfile.TemporaryDirectory() as folder:
        for title, configs in lines(Path(folder)).items():
            runs = {name: prepared(config) for name, config in configs.items()}
            epochs = {name: (lambda run=run: epoch(run)) for name, run in runs.items()}
            seconds = list(in_turns(epochs, rounds).items())
            for k, (name, took) in enumerate(seconds):
                ratio = f"{took / seconds[k - 1][1]:.2f}" if k else ""
                work = _work(title, list(configs.values()), k) if k else ""
                table.add_row(title if not k else "", name, f"{took:.1f}", ratio, work)
    console.print(table)


def lines(folder: Path) -> dict[str, dict[str, Config]]:
    """Configurations by what grows, and by its size."""
    twice: dict[str, Any] = {"jpeg-compressibility": {}, "second": {"name": "jpeg-compressibility"}}
    return {
        "samples": {str(n): configuration(n, 10, CHUNK) for n in (8, 16, 32)},
        "steps": {str(n): configuration(8, n, CHUNK) for n in (10, 20, 40)},
        "latent size": {
            str(n): configuration(8, 10, CHUNK).model_copy(update={"model": _resized(folder, n)})
            for n in (16, 32)
        },
        "rewards": {
            "1": configuration(8, 10, CHUNK),
            "2": configuration(8, 10, CHUNK, rewards=twice),
        },
    }


def _resized(folder: Path, size: int) -> str:
    pipeline = load_pipeline("tiny", torch.float32)
    pipeline.unet.register_to_config(sample_size=size)
    pipeline.save_pretrained(folder / str(size))
    return str(folder / str(size))


def _work(title: str, configs: list[Config], k: int) -> str:
    if title == "rewards":
        return "1, except the reward"
    if title != "latent size":
        return "2.00"
    flops = [Shapes(config).guided_pass().both_flops for config in configs]
    return f"{flops[k] / flops[k - 1]:.2f}"


if __name__ == "__main__":
    main()
