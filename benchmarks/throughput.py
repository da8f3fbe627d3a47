"""Images a second, and how much of the device that is; compiled too, where asked.

    python benchmarks/throughput.py [--model tiny|sd15|FOLDER] [--samples 16] [--steps 20]
        [--batch 16] [--rounds 3] [--compiled]

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
from workload import collected, configuration, in_turns, machine, prepared, updated

from dagflow.config import Config
from dagflow.policies.loading import default_device, load_pipeline
from dagflow.policies.shapes import SD15, Shapes

SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        if options.model == "sd15":
            options.model = str(random_sd15(Path(folder) / "sd15"))
        console.print(compared(options))


def compared(options: argparse.Namespace) -> Table:
    """A row for the epochs as they are, and one for compiled ones."""
    samples, steps, batch = options.samples, options.steps, options.batch
    rows = {}
    for compiled in (False, True) if options.compiled else (False,):
        config = configuration(
            *(samples, steps, batch),
            rollout={"potential": "none", "batch_size": batch},
            machine={"compile": compiled},
        ).model_copy(update={"model": options.model})
        rows["compiled" if compiled else "plain"] = seconds(config, options.rounds)
    shapes = Shapes(config)
    guided, peak = shapes.guided_pass(), matrix_rate(shapes.dtype)
    forward = samples * (steps * guided.forward_flops + shapes.decode_flops(preview=False))
    back = samples * steps * guided.both_flops
    rate = f"{peak / 1e12:.3g} tera-FLOPs a second in a matrix product"
    columns = ("sampled, images/s", "of peak", "whole epoch, images/s", "of peak")
    table = Table("", *columns, title=f"{place()}, {shapes.dtype}\n{rate}")
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
        synchronize()

    def update() -> None:
        updated(run, data[0])
        synchronize()

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


def random_sd15(folder: Path) -> Path:
    """The embedded pipeline's classes in SD v1.5's shapes, with random weights in bfloat16."""
    pipeline = load_pipeline("tiny", torch.float32)
    torch.manual_seed(0)
    for name, table in SD15.items():
        old = getattr(pipeline, name)
        if name == "text_encoder":
            changed = type(old.config).from_dict({**old.config.to_dict(), **table})
            network = type(old)(changed)
        else:
            known = {k: v for k, v in old.config.items() if not k.startswith("_")}
            network = type(old).from_config({**(known if name == "vae" else {}), **table})
        torch.nn.Module.to(network, torch.bfloat16)  # without the warning of diffusers
        setattr(pipeline, name, network)
    pipeline.save_pretrained(folder)
    return folder


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def place() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return machine()


if __name__ == "__main__":
    main()
