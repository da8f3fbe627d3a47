"""The least memory in which SD v1.5's shapes train, against `dagflow doctor --estimate`.

    python benchmarks/sd15_memory.py

Uses the real architecture with random weights; each line runs in its own process. On a GPU: samples
and decodes, then makes two updates of `kl` in bfloat16, for several micro-batches, with and without
gradient checkpointing; prints the peak of everything that the run holds there, and its estimate.
On the CPU: one guided pass of one image in float32, forward and backward; prints the peak above the
weights, and the estimated bytes saved for the backward pass. Takes some minutes and 8 GB there.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from models import SD15_FLOW_CHANNELS, Model, model
from workload import collected, machine, prepared, updated

from dagflow.config import Config, resolve
from dagflow.estimate import estimate
from dagflow.plugins import load_plugins
from dagflow.policies.shapes import Shapes
from dagflow.prepare import maker_of
from dagflow.recipe import read_recipe

MEGABYTE = 2**20
KINDS = ("plain", "checkpointing")
MICROBATCHES = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs="+", metavar="KIND [MICROBATCH FOLDER]")
    one = parser.parse_args().one
    if one:
        print(measure_epoch(*one) if len(one) > 1 else measure(one[0] == "checkpointing"))
        return
    console = Console(width=120)
    console.print(machine())
    with tempfile.TemporaryDirectory() as folder:
        console.print(on_gpu(Path(folder)) if torch.cuda.is_available() else on_cpu())


def peak_of(*arguments: str) -> int:
    """What this script prints for one line, in its own process."""
    command = [sys.executable, __file__, "--one", *arguments]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def on_gpu(folder: Path) -> Table:
    table = Table("", "micro-batch", "peak, MB", "estimated", "ratio")
    made = model("sd15", folder)
    for kind in KINDS:
        for chunk in MICROBATCHES:
            peak = peak_of(kind, str(chunk), made.name)
            config = whole(made, kind, chunk)
            maker = maker_of(load_plugins(), "objective", "kl", config.objective)
            counted = Shapes(config)
            with torch.device("meta"):
                found = estimate(config, counted, maker(counted.spec), 1)
            estimated = found.peak_bytes // MEGABYTE
            ratio = f"{peak / estimated:.2f}"
            table.add_row(kind, str(chunk), f"{peak:,}", f"{estimated:,}", ratio)
    return table


def whole(made: Model, kind: str, chunk: int) -> Config:
    """A configuration for an epoch of a few images, sampled one at a time."""
    size = argparse.Namespace(samples=4, steps=8, chunk=chunk)
    machine_table = {"gradient_checkpointing": kind == "checkpointing"}
    rollout = {"potential": "none", "batch_size": 1}
    return made.configuration(size, rollout=rollout, machine=machine_table)


def measure_epoch(kind: str, chunk: str, folder: str) -> int:
    """Peak megabytes on the GPU during an epoch."""
    made = Model("", folder, flow_channels=SD15_FLOW_CHANNELS)
    run = prepared(whole(made, kind, int(chunk)))
    updated(run, collected(run))
    return torch.cuda.max_memory_allocated() // MEGABYTE


def on_cpu() -> Table:
    table = Table("", "weights, MB", "peak above, MB", "estimated", "ratio")
    for kind in KINDS:
        peak = peak_of(kind)
        counted = shapes(kind == "checkpointing")
        weights = sum(p.nbytes for p in counted.unet.parameters()) // MEGABYTE
        estimated = counted.guided_pass().saved_bytes // MEGABYTE
        ratio = f"{peak / estimated:.2f}"
        table.add_row(kind, f"{weights:,}", f"{peak:,}", f"{estimated:,}", ratio)
    return table


def shapes(checkpointing: bool) -> Shapes:
    tree = read_recipe("paper-compressibility")
    tree |= {"dtype": "float32", "machine": {"gradient_checkpointing": checkpointing}}
    return Shapes(resolve(tree))


def measure(checkpointing: bool) -> int:
    """Peak megabytes above the weights during a forward and backward pass."""
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
