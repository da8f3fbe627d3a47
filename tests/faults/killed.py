"""Kill a run at random instants until it is done; its end must be that of a run left alone.

    python -m tests.faults.killed FOLDER OBJECTIVE KILLS [SEED]

Each life is a fork of this process, so that it begins at once; the run is of a world, where an
epoch takes an instant, and checkpoints after each. Prints one JSON
line of what was counted, and fails if anything was lost.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dagflow.config import Config, resolve
from dagflow.engine.checkpoint import checkpoints, damage
from dagflow.plugins import load_plugins
from dagflow.prepare import prepare
from dagflow.train import resume, start
from tests.conftest import Silent

WRITE = 0.01  # seconds that a checkpoint takes
DENSITY = {"name": "world-density", "world": "gaussians-2d"}
SETTINGS: dict[str, Any] = {
    "epochs": 25,
    "model": "world:gaussians-2d",
    "rewards": {
        "truth": {**DENSITY, "normalise_epochs": 2},
        "again": {**DENSITY, "weight": 0.5},
    },
    "prompts": {"name": "texts", "texts": ["the world"]},
    "objective": {"beta": 1.0, "log_density": "sum", "flow_channels": [16, 16]},
    "rollout": {"samples_per_epoch": 16, "images_per_prompt": 2, "num_inference_steps": 5},
    "update": {"batch_size": 20, "flow_warmup": 5},
    "evaluate": {"images": 0, "grid": 2},
    "checkpoint": {"keep": 2},
}


def config(folder: Path, objective: str) -> Config:
    replay = {} if objective == "kl" else {"share": 0.25, "backward": 0.25, "capacity": 8}
    settings = {**SETTINGS, "replay": replay, "output": str(folder)}
    settings["objective"] = {**settings["objective"], "name": objective}
    return resolve(settings)


def live(settings: Config) -> None:
    """Begin, or go on, to the end."""
    run = prepare(settings, load_plugins(), Silent())
    resume(run) if (run.folder / "config.toml").is_file() else start(run)


def life(settings: Config, seconds: float | None, source: random.Random | None = None) -> bool:
    """One life of the run, killed after so many seconds; whether it came to its end.

    With a `source` of chance it is killed sooner: as soon as it writes a checkpoint.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            live(settings)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if seconds is not None:
        _wait(seconds, Path(settings.output, "checkpoints"), source)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "a life ended by itself, badly"
    return True


def _wait(seconds: float, folder: Path, source: random.Random | None) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if source and any(folder.glob(".*.partial")):
            time.sleep(source.uniform(0, WRITE))
            return
        time.sleep(min(left, 1e-4) if source else left)


def state(folder: Path) -> dict[str, Any]:
    """Everything that must be equal in the end, without what names the moment."""
    newest = checkpoints(folder / "checkpoints")[-1]
    files = {path.name: path.read_bytes() for path in newest.iterdir()}
    pictures = {path.name: path.read_bytes() for path in (folder / "samples").iterdir()}
    tensors = load_file(newest / "training_state.safetensors")
    saved = json.loads(files.pop("state.json"))
    del saved["timings_bytes"], files["SHA256SUMS"]
    metrics = (folder / "metrics.jsonl").read_bytes()
    values = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return {**files, **pictures, **values, "state": saved, "metrics": metrics}


def main() -> None:
    torch.set_num_threads(1)
    root, objective, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    source = random.Random(int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    began = time.monotonic()
    assert life(config(root / "whole", objective), None)
    usual, expected = time.monotonic() - began, state(root / "whole")
    counts = {"objective": objective, "kills": 0, "runs": 0, "inside a write": 0, "lost": 0}
    counts |= {"unreadable latest": 0, "different in the end": 0}
    while counts["kills"] < kills:
        counts["runs"] += 1
        folder = root / f"killed-{counts['runs']}"
        settings = config(folder, objective)
        while True:
            seconds = source.uniform(0, usual) if counts["kills"] < kills else None
            sharp = source if counts["kills"] % 2 else None
            if life(settings, seconds, sharp):
                break
            counts["kills"] += 1
            _count(folder / "checkpoints", counts)
        found = state(folder)
        changed = [name for name in expected if found.get(name) != expected[name]]
        counts["different in the end"] += bool(changed) or found.keys() != expected.keys()
    print(json.dumps(counts))
    sys.exit(counts["lost"] + counts["unreadable latest"] + counts["different in the end"])


def _count(folder: Path, counts: dict[str, Any]) -> None:
    """What a kill left behind."""
    if not folder.is_dir():
        return
    hidden = [
        path.name for path in folder.iterdir() if path.name.endswith((".partial", ".dropped"))
    ]
    counts["inside a write"] += bool(hidden)
    whole = checkpoints(folder)
    counts["lost"] += any(damage(path) for path in whole)
    latest = folder / "latest"
    if latest.is_symlink():
        counts["unreadable latest"] += not latest.exists() or bool(damage(latest))


if __name__ == "__main__":
    main()
