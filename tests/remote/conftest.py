"""Servers in threads of this process, and a plugin with odd rewards, really on disk."""

from __future__ import annotations

import sys
import textwrap
import threading
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import uvicorn

import dagflow
from dagflow import Reward
from dagflow.remote import listen
from dagflow.remote.client import Patience
from dagflow.remote.server import Limits, create_app
from dagflow.remote.worker import Worker

ROOT = Path(dagflow.__file__).parents[1]
QUICK = Patience(connect_timeout=2.0, read_timeout=20.0, retries=3, backoff=0.05)

PROBES = """
    import os, sys, time
    import dagflow

    def network(width: int = 16):
        "A small convolutional network with random weights."
        import torch
        from torch import nn
        torch.manual_seed(3)
        class Network(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(
                    nn.Conv2d(3, width, 3, stride=2), nn.GELU(), nn.Dropout(0.5),
                    nn.Conv2d(width, width, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(1),
                    nn.Flatten(), nn.Linear(width, 1))
            def forward(self, images, prompts):
                return self.layers(images).squeeze(1)
        return Network()

    def fragile(file: str):
        "Minus the brightness; ends the process while the file exists."
        def reward(images, prompts):
            if os.path.exists(file):
                print("about to fall", flush=True)
                os._exit(9)
            return -images.mean((1, 2, 3))
        return reward

    def slow(seconds: float = 0.1):
        "The brightness, after a while."
        def reward(images, prompts):
            time.sleep(seconds)
            return images.mean((1, 2, 3))
        return reward

    @dagflow.hookimpl
    def dagflow_register_rewards():
        return {"network": network, "fragile": fragile, "slow": slow}
"""


def put_probes(folder: Path) -> Path:
    """Install the plugin of odd rewards in a folder, as pip would."""
    (folder / "probes.py").write_text(textwrap.dedent(PROBES))
    info = folder / "probes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dagflow]\nprobes = probes\n")
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has dagflow, as this one has it, and the odd rewards."""
    folder = tmp_path_factory.mktemp("environments") / "other"
    venv.create(folder, with_pip=False)
    [packages] = folder.glob("lib/python*/site-packages")
    put_probes(packages)
    shared = [path for path in sys.path if "site-packages" in path]
    (packages / "shared.pth").write_text("\n".join([str(ROOT), *shared]))
    return folder


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serve a reward, or what makes one, from a thread of this process; returns the URL."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(
        reward: Reward,
        token: str = "",
        make: Callable[[], Reward] | None = None,
        serves: str = "it",
        port: int = 0,
        **limits: float,
    ) -> str:
        worker = Worker(make or (lambda: reward), torch.device("cpu"))
        app = create_app(worker, serves, token, Limits(**limits))  # type: ignore[arg-type]
        listening = listen.listen("127.0.0.1", port)
        server = uvicorn.Server(listen._settings(app))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        worker.start()
        thread.start()
        running.append((server, thread))
        return listen.url_of(listening)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
