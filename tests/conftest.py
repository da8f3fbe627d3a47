"""What most tests stand on: the embedded model, a very short run, and the installed command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dagflow import Prompt, config
from dagflow.config import Config
from dagflow.engine.scoring import WeightedReward, ask, total
from dagflow.engine.window import Window
from dagflow.plugins import load_plugins
from dagflow.prepare import Run, prepare

torch.set_num_threads(1)
if not os.environ.get("DAGFLOW_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests know the numbers of a CPU

SHORT: dict[str, Any] = {
    "epochs": 2,
    "rewards": {"jpeg-compressibility": {}},
    "objective": {"name": "kl", "beta": 5.0, "flow_channels": [16, 16]},
    "rollout": {"samples_per_epoch": 4, "batch_size": 4, "num_inference_steps": 4},
    "update": {
        "batch_size": 8,
        "microbatch_size": 5,
        "learning_rate": 1e-3,
        "flow_learning_rate": 1e-3,
        "flow_warmup": 2,
    },
    "evaluate": {"images": 4, "grid": 2, "watched": 2},
}
SHORT_OPTIONS = [
    *("-s", "epochs=2", "-s", "stop_at_gain=0", "-s", "objective.flow_channels=[16, 16]"),
    *("-s", "rollout.samples_per_epoch=4", "-s", "rollout.num_inference_steps=4"),
    *("-s", "update.batch_size=8", "-s", "update.flow_warmup=2"),
    *("-s", "evaluate.images=4", "-s", "evaluate.grid=2", "-s", "evaluate.watched=2"),
]


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WITHOUT_FLOW = {"tb", "vargrad", "rtb", "ddpo", "grpo"}


class Silent:
    """A watcher that shows nothing."""

    def phase(self, name: str, total: int, epoch: int) -> None: ...
    def advance(self, units: int) -> None: ...
    def show(self, metrics: Any) -> None: ...
    def say(self, text: str) -> None: ...
    def pictures(self, images: Any, epoch: int) -> None: ...
    def epoch_done(self, epoch: int, epochs: int) -> None: ...


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the tree with changes, table by table."""
    result = dict(tree)
    for key, value in changes.items():
        inner = result.get(key)
        both = isinstance(value, dict) and isinstance(inner, dict)
        result[key] = merged(inner, value) if both else value
    return result


def short_config(**changes: Any) -> Config:
    """The configuration of a run of a few seconds."""
    tree = merged(SHORT, changes)
    if tree["objective"]["name"] in WITHOUT_FLOW:
        tree["objective"].pop("flow_channels", None)
    return config.resolve(tree)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Prepare a short run on the embedded model; keywords change its configuration."""

    def make(stop_asked: Callable[[], bool] = lambda: False, **changes: Any) -> Run:
        settings = short_config(**{"output": str(tmp_path / "run"), **changes})
        return prepare(settings, load_plugins(), Silent(), stop_asked)

    return make


def run_dagflow(
    folder: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a directory."""
    command = str(Path(sys.executable).with_name("dagflow"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(
        [command, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def dagflow(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed command in an empty directory."""
    return partial(run_dagflow, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB; skips where this user cannot mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def put_plugin(
    folder: Path,
    module: str,
    source: str,
    distribution: str = "",
    entry_point: str = "",
    requires: str = "dagflow-align",
) -> None:
    """Put a distribution with one module and one entry point into a folder, as pip would."""
    distribution = distribution or f"dist-{module}"
    (folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    info = folder / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\nRequires-Dist: {requires}\n"
    )
    (info / "entry_points.txt").write_text(f"[dagflow]\n{entry_point or module} = {module}\n")


def score(rewards: Sequence[WeightedReward], images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """The total of all rewards, (B,)."""
    return total(rewards, ask(rewards, images, prompts)())


@contextmanager
def put_out(layers: Iterable[nn.Module]) -> Iterator[set[torch.dtype]]:
    """In this context: the dtypes that those layers put out which have none inside."""
    found: set[torch.dtype] = set()
    handles = [
        layer.register_forward_hook(lambda _, __, output: found.add(output.dtype))
        for layer in layers
        if not list(layer.children())
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def first_window(run: Run) -> Window:
    """One window that holds every transition of the first epoch, at the final beta."""
    from dagflow.collect import collect
    from dagflow.engine.levels import zero_levels
    from dagflow.engine.metrics import Clock
    from dagflow.engine.replay import Buffer

    data = collect(run, 0, {}, run.policy.weights(), Buffer(1, 1), Clock())
    count = len(data.trajectories.prompts)
    rows = torch.cartesian_prod(torch.arange(count), torch.arange(run.path.steps))
    beta = run.config.objective.beta
    levels = zero_levels(run.path.steps)
    return Window(data.trajectories, data.potentials, run.path, rows, beta, beta, levels)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The machine's Chromium, headless; it asks nothing of the network by itself."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()
