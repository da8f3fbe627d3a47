"""How fast a reward is behind `dagflow serve`, against the same reward in this process.

    python benchmarks/remote_throughput.py [--repeats 7]

For a reward that costs nothing (the mean of the pixels), a cheap one (JPEG size) and a heavy one
(ResNet-50 with random weights), prints images per second in this process and over HTTP on this
machine, each the median of alternating repeats in one run; their ratio; and whether the scores are
equal to the last bit. "4 x" is a batch sent in four requests at once.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dagflow import Prompt, Reward
from dagflow.engine.scoring import place
from dagflow.plugins import load_plugins
from dagflow.policies.loading import default_device
from dagflow.remote.client import Patience, RemoteReward

PLUGIN = '''
import dagflow

def mean():
    """The mean of all pixels."""
    return lambda images, prompts: images.mean((1, 2, 3))

def resnet50():
    """The first output of a ResNet-50 with random weights."""
    import torch, torchvision
    torch.manual_seed(0)
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = torchvision.models.resnet50(weights=None)
        def forward(self, images, prompts):
            return self.network(images)[:, 0]
    return Network()

@dagflow.hookimpl
def dagflow_register_rewards():
    return {"mean": mean, "resnet50": resnet50}
'''
CASES = [  # reward, images, pixels per side
    ("mean", 64, 64),
    ("mean", 32, 512),
    ("jpeg-compressibility", 64, 64),
    ("jpeg-compressibility", 32, 512),
    ("resnet50", 16, 224),
    ("resnet50", 8, 512),
]


def put_plugin(folder: Path, source: str = PLUGIN) -> None:
    """Install a plugin, as pip would, for this process and its children."""
    (folder / "throughput_plugin.py").write_text(source)
    info = folder / "throughput_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: throughput-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dagflow]\nthroughput = throughput_plugin\n")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(folder), *filter(None, [os.getenv("PYTHONPATH")])]
    )


@contextmanager
def served(name: str, *settings: str) -> Iterator[str]:
    """The URL of a server that lives as long as the block."""
    command = [sys.executable, "-m", "dagflow", "serve", name, "--port", "0", "--exit-with-parent"]
    command += [word for setting in settings for word in ("-s", setting)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the server did not start"
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)


@torch.no_grad()
def seconds(reward: Reward, images: Tensor, prompts: list[Prompt]) -> tuple[float, Tensor]:
    began = time.perf_counter()
    scores = reward(images, prompts).cpu()
    return time.perf_counter() - began, scores


def measure(name: str, images: Tensor, repeats: int) -> str:
    """A line of the table."""
    device = default_device()
    prompts = [Prompt("a cat", {"number": k}) for k in range(len(images))]
    here = place(load_plugins().maker("reward", name, {})(), device)
    patience = Patience(5, 600, 3, 1)
    with served(name) as url:
        whole = RemoteReward(url, "", patience)
        parts = RemoteReward(url, "", patience, in_flight=4, batch=len(images) // 4)
        rewards = (here, whole, parts)
        times: list[list[float]] = [[], [], []]
        for k in range(repeats + 1):
            done = [seconds(reward, images.to(device), prompts) for reward in rewards]
            for column, (took, _) in zip(times, done, strict=True):
                column += [took] if k else []  # the first round warms up
        equal = torch.equal(done[0][1], done[1][1])
    rates = [len(images) / statistics.median(column) for column in times]
    side = images.shape[-1]
    cells = [name, f"{len(images)} x {side} x {side}", *(f"{rate:.1f}" for rate in rates)]
    ratios = [f"{rate / rates[0]:.2f}" for rate in rates[1:]]
    return "| " + " | ".join([*cells, *ratios, "yes" if equal else "NO"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(
        "| reward | images | here, images/s | remote | remote, 4 x | ratio | ratio, 4 x | equal |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory() as folder:
        put_plugin(Path(folder))
        for name, count, side in CASES:
            images = torch.rand(count, 3, side, side)
            print(measure(name, images, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
