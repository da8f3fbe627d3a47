"""Peak memory against epochs, steps and micro-batches, on the embedded model.

    python benchmarks/memory.py

Each line runs whole epochs in its own process (a process's peak never falls), and prints how far
the peak rose above the memory in use before the first epoch, and the bytes that an epoch stores
(latents, noise predictions).
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
from workload import collected, configuration, machine, prepared, updated

LINES = {
    "epochs": [(1, 20, 32), (2, 20, 32), (4, 20, 32)],
    "steps T": [(1, 10, 32), (1, 20, 32), (1, 40, 32)],
    "micro-batch": [(1, 20, 8), (1, 20, 16), (1, 20, 32), (1, 20, 64)],
}
OBJECTIVES = {"kl": {}, "tb": {"objective": {"name": "tb"}}}
SAMPLES = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=4, metavar=("OBJECTIVE", "EPOCHS", "STEPS", "MICROBATCH"))
    one = parser.parse_args().one
    if one:
        print(measure(one[0], *map(int, one[1:])))
        return
    console = Console(width=120)
    console.print(machine())
    for name in OBJECTIVES:
        table = Table("", "epochs", "T", "micro-batch", "peak above, MB", "stored, MB", title=name)
        for title, lines in LINES.items():
            for line in lines:
                command = [sys.executable, __file__, "--one", name, *map(str, line)]
                peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                stored = SAMPLES * (2 * line[1] + 1) * 4 * 16 * 16 * 4 / 2**20
                table.add_row(title, *map(str, line), peak.strip(), f"{stored:.1f}")
        console.print(table)


def measure(objective: str, epochs: int, steps: int, chunk: int) -> int:
    """Megabytes by which the peak rose."""
    torch.set_num_threads(1)
    run = prepared(configuration(SAMPLES, steps, chunk, **OBJECTIVES[objective]))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    for _ in range(epochs):
        updated(run, collected(run))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


if __name__ == "__main__":
    main()
