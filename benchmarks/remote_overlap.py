"""How much time is saved because a remote reward scores while sampling continues.

    python benchmarks/remote_overlap.py [--repeats 5] [--seconds 0.01]

Collects an epoch of the embedded model (64 trajectories, 20 steps, rewards of all states) with a
reward behind `dagflow serve` that takes --seconds per image and does not use this machine's
processor, like one on another machine: once in the background, once one batch after another.
Prints the seconds of each, medians of alternating repeats in one run, their ratio, and whether the
potentials are equal to the last bit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from remote_throughput import put_plugin, served

from dagflow.collect import collect
from dagflow.config import resolve
from dagflow.engine.metrics import Clock
from dagflow.engine.replay import Buffer
from dagflow.plugins import load_plugins
from dagflow.prepare import Run, Watcher, prepare
from dagflow.recipe import read_recipe

PLUGIN = '''
import time
import dagflow

def distant(seconds: float = 0.01):
    """The mean of all pixels, after a pause of that many seconds per image."""
    def score(images, prompts):
        time.sleep(seconds * len(images))
        return images.mean((1, 2, 3))
    return score

@dagflow.hookimpl
def dagflow_register_rewards():
    return {"distant": distant}
'''


class Silent(Watcher):
    def phase(self, name: str, total: int, epoch: int) -> None: ...
    def advance(self, units: int) -> None: ...
    def show(self, metrics: object) -> None: ...
    def say(self, text: str) -> None: ...
    def pictures(self, images: object, epoch: int) -> None: ...
    def epoch_done(self, epoch: int, epochs: int) -> None: ...


def measure(run: Run) -> tuple[float, Tensor]:
    began = time.perf_counter()
    epoch = collect(run, 0, {}, run.policy.weights(), Buffer(1, 1), Clock())
    return time.perf_counter() - began, epoch.potentials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.01)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        put_plugin(Path(folder), PLUGIN)
        with served("distant", f"seconds={arguments.seconds}") as url:
            reward = {"remote": {"url": url}}
            config = resolve({**read_recipe("tiny"), "rewards": reward, "output": folder})
            beside = prepare(config, load_plugins(), Silent())
            (item,) = beside.rewards
            between = replace(beside, rewards=(replace(item, background=None),))
            times: list[list[float]] = [[], []]
            for k in range(arguments.repeats + 1):
                done = [measure(run) for run in (beside, between)]
                for column, (took, _) in zip(times, done, strict=True):
                    column += [took] if k else []  # the first round warms up
            beside.close()
    overlapped, serial = (statistics.median(column) for column in times)
    equal = torch.equal(done[0][1], done[1][1])
    print(f"in the background {overlapped:.1f} s, one after another {serial:.1f} s")
    print(f"ratio {serial / overlapped:.2f}; potentials equal: {'yes' if equal else 'NO'}")


if __name__ == "__main__":
    main()
