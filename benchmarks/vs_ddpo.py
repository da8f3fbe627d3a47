"""Does GFlowNet training cost as much as policy gradient? Whole epochs, in one run.

    python benchmarks/vs_ddpo.py [--model tiny|sd15|FOLDER] [--samples 16] [--steps 20]
        [--chunk 64] [--rounds 3]

Compares an epoch of `kl` with each kind of potential with one of `ddpo`, which has neither
potentials nor a flow network, on the same number of transitions: on the embedded model, and on one
whose VAE is as costly as SD v1.5's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from models import Model, arguments, models
from workload import epoch, in_turns, machine, prepared


def main() -> None:
    options = arguments().parse_args()
    console = Console(width=120)
    console.print(machine())
    with tempfile.TemporaryDirectory() as folder:
        for model in models(options.model, Path(folder)):
            console.print(table(model, options))


def table(model: Model, options: argparse.Namespace) -> Table:
    kinds = {
        "kl": {},
        "kl, preview decoder": {"preview_decoder": model.preview_decoder},
        "kl, potentials on a quarter of the steps": {"potential_steps": max(1, options.steps // 4)},
        "kl, no potentials": {"potential": "none"},
    }
    configs = {name: model.configuration(options, rollout=table) for name, table in kinds.items()}
    configs["ddpo"] = model.configuration(options, objective={"name": "ddpo"})
    runs = {name: prepared(config) for name, config in configs.items()}
    epochs = {name: (lambda run=run: epoch(run)) for name, run in runs.items()}
    seconds = in_turns(epochs, options.rounds)
    result = Table("", "seconds", "times ddpo", title=model.title)
    for name, took in seconds.items():
        result.add_row(name, f"{took:.1f}", f"{took / seconds['ddpo']:.2f}")
    return result


if __name__ == "__main__":
    main()
