"""GFlowNet training at the price of policy gradient? Whole epochs, in one run.

    python benchmarks/vs_ddpo.py [--samples 16] [--steps 20] [--rounds 3]

An epoch of `kl` with each kind of potential against one of `ddpo`, which has neither potentials nor
a flow network, on as many transitions: on the embedded model, and on one whose VAE decodes at the
price of SD v1.5's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))
from workload import configuration, epoch, in_turns, machine, prepared, size, with_costly_decoder

CHUNK = 64


def main() -> None:
    options = size()
    console = Console(width=120)
    console.print(machine())
    kinds = {
        "kl": {},
        "kl, preview decoder": {"preview_decoder": "tiny"},
        "kl, potentials on a quarter of the steps": {"potential_steps": options.steps // 4},
        "kl, no potentials": {"potential": "none"},
    }
    with tempfile.TemporaryDirectory() as folder:
        costly = str(with_costly_decoder(Path(folder)))
        for title, model in (("tiny", "tiny"), ("a decoder as costly as SD v1.5's", costly)):
            shape = (options.samples, options.steps, CHUNK)
            configs = {
                name: configuration(*shape, rollout=rollout) for name, rollout in kinds.items()
            }
            configs["ddpo"] = configuration(*shape, objective={"name": "ddpo"})
            runs = {
                name: prepared(config.model_copy(update={"model": model}))
                for name, config in configs.items()
            }
            epochs = {name: (lambda run=run: epoch(run)) for name, run in runs.items()}
            seconds = in_turns(epochs, options.rounds)
            table = Table("", "seconds", "times ddpo", title=title)
            for name, took in seconds.items():
                table.add_row(name, f"{took:.1f}", f"{took / seconds['ddpo']:.2f}")
            console.print(table)


if __name__ == "__main__":
    main()
