"""The memory that SD v1.5's UNet takes to train at batch 1, against `dagflow doctor --estimate`.

    python benchmarks/sd15_memory.py

The real architecture with random weights, float32, on the CPU: one guided pass of one image forward
and back through a LoRA of rank 4, in a process of its own, with gradient checkpointing and without.
Printed: the peak above what the weights take, the estimate of it, and their ratio. bfloat16 halves
both. Takes some minutes and 8 GB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from workload import machine

from dagflow.config import resolve
from dagflow.policies.shapes import Shapes
from dagflow.recipe import read_recipe

MEGABYTE = 2**20


def shapes(checkpointing: bool) -> Shapes:
    tree = read_recipe("paper-compressibility")
    tree |= {"dtype": "float32", "machine": {"gradient_checkpointing": checkpointing}}
    return Shapes(resolve(tree))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", choices=["plain", "checkpointing"])
    one = parser.parse_args().one
    if one:
        print(measure(one == "checkpointing"))
        return
    console = Console(width=120)
    console.print(machine())
    table = Table("", "weights, MB", "peak above, MB", "estimated", "ratio")
    for kind in ("plain", "checkpointing"):
        command = [sys.executable, __file__, "--one", kind]
        peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        counted = shapes(kind == "checkpointing")
        weights = sum(p.nbytes for p in counted.unet.parameters()) // MEGABYTE
        estimated = counted.guided_pass().saved_bytes // MEGABYTE
        table.add_row(
            kind, f"{weights:,}", f"{peak:,}", f"{estimated:,}", f"{peak / estimated:.2f}"
        )
    console.print(table)


def measure(checkpointing: bool) -> int:
    """Megabytes above the weights at the peak of a pass forward and back."""
    unet = shapes(checkpointing).unet.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    latents, embeds = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    times = torch.full((2,), 500)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    unet(latents, times, embeds, return_dict=False)[0].sum().backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


if __name__ == "__main__":
    main()
