"""Compares our scores of the cases with the genuine packages'.

    python -m tools.parity.compare FOLDER [--golden FILE]

reads what `originals` wrote and prints the largest difference, with the original preprocessing
(`exact`) and with tensors. `--golden` also writes the numbers that the tests use.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2 import functional as F

from dagflow import Prompt, Reward
from dagflow_rewards import aesthetic, hpsv2, imagereward
from tools.parity.cases import pairs

REWARDS: dict[str, Callable[..., Reward]] = {
    "imagereward": imagereward,
    "hpsv2": hpsv2,
    "aesthetic": aesthetic,
}


def scores(reward: Reward) -> list[float]:
    """Scores, one by one, because the images differ in size."""
    with torch.no_grad():
        return [float(reward(as_tensor(image), [Prompt(text)])) for image, text in pairs()]


def as_tensor(image: Image.Image) -> torch.Tensor:
    return F.pil_to_tensor(image.convert("RGB")).float().div(255)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--golden", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    folder = arguments.folder
    original = json.loads((folder / "scores.json").read_text())
    table = Table("reward", "scores", "spread of the original", "exact", "tensors")
    for name, factory in REWARDS.items():
        theirs = torch.tensor(original[name]["scores"])
        cells = [name, str(len(theirs)), f"{theirs.std():.3g}"]
        for exact in (True, False):
            ours = torch.tensor(scores(factory(weights=str(folder), exact=exact)))
            cells.append(f"{(ours - theirs).abs().max():.1e}")
        table.add_row(*cells)
    Console().print(table)
    if arguments.golden:
        arguments.golden.write_text(json.dumps(original) + "\n")


if __name__ == "__main__":
    main()
