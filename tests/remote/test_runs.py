"""Whole runs through the installed commands, as docs/isolation.md gives them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SHORT_OPTIONS
from tests.remote.conftest import ROOT, wait_until

PAGE = (ROOT / "docs" / "isolation.md").read_text(encoding="utf-8")
SHORT = [*SHORT_OPTIONS, "-s", "evaluate.images=0", "-s", "evaluate.grid=0", "-s", "epochs=3"]
DAGFLOW = str(Path(sys.executable).with_name("dagflow"))


def documented(beginning: str) -> list[str]:
    """The words of the page's command that begins so, without its `dagflow`."""
    block = re.search(rf"^dagflow ({re.escape(beginning)}.*)$", PAGE, re.MULTILINE)
    assert block, beginning
    return shlex.split(block[1])


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def serve(tmp_path: Path, port: int) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start the page's server, on a free port."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        words = [word.replace("8000", str(port)) for word in documented("serve jpeg")]
        process = subprocess.Popen(
            [DAGFLOW, *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("dagflow serves jpeg-compressibility at http")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_run_outlives_its_server(dagflow, serve, tmp_path: Path, port: int) -> None:
    """The server is killed in the middle; the run stops, is resumed, and ends as without that."""
    reward = ["--reward", "jpeg-compressibility", "-s", "rewards.jpeg-compressibility.quality=80"]
    assert dagflow("train", *reward, "--output", "undisturbed", *SHORT).returncode == 0

    server = serve()
    words = [word.replace("8000", str(port)) for word in documented("train --reward remote:")]
    label = f"remote-127-0-0-1-{port}"
    impatient = ["-s", f"rewards.{label}.retries=1", "-s", f"rewards.{label}.backoff=0.1"]
    trainer = subprocess.Popen(
        [DAGFLOW, *words, "--output", "run", *SHORT, *impatient],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and '"update": 1,' in metrics.read_text(), 120)
    server.send_signal(signal.SIGKILL)
    _, errors = trainer.communicate(timeout=120)
    assert trainer.returncode == 1, errors
    assert "trying again in 0.1 s" in errors
    assert f"reward '{label}': no answer from the server at http://127.0.0.1:{port}" in errors
    assert "gave up (retries = 1)" in errors
    assert "Earlier progress is saved. Resume with: dagflow train --resume run" in errors
    assert "Traceback" not in errors

    serve()
    done = dagflow("train", "--resume", "run")
    assert done.returncode == 0, done.stderr
    undisturbed = (tmp_path / "undisturbed" / "metrics.jsonl").read_text()
    assert metrics.read_text().replace(label, "jpeg-compressibility") == undisturbed


def test_an_isolated_reward_trains_and_leaves_its_log_in_the_run(
    dagflow, environment: Path, tmp_path: Path
) -> None:
    words = documented("train --reward isolated:")
    words = [word.replace("/opt/venvs/faces", str(environment)) for word in words]
    words = [word.replace("face-quality", "network") for word in words]
    done = dagflow(*words, "--output", "run", *SHORT, "-s", "epochs=1")
    assert done.returncode == 0, done.stderr
    [log] = (tmp_path / "run" / "logs").iterdir()
    assert log.name == "network@other.log"
    assert "dagflow serves network at" in log.read_text()
    assert f'target = "network@{environment}"' in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "jpeg"], "no reward called 'jpeg'"),
        (["serve", "jpeg-compressibility", "-s", "qualty=3"], "Did you mean 'quality'?"),
        (["serve", "jpeg-compressibility", "-s", "quality=300"], "JPEG quality goes from 1 to 95"),
        (["serve", "jpeg-compressibility", "--host", "256.1.1.1"], "cannot listen on 256.1.1.1"),
        (["train", "--reward", "remot:http://x"], "Did you mean 'remote'?"),
    ],
)
def test_bad_input_gets_one_message(dagflow, arguments: list[str], message: str) -> None:
    done = dagflow(*arguments, COLUMNS="200")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_for_everybody_is_warned_of(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [DAGFLOW, "serve", "jpeg-compressibility", "--host", "0.0.0.0", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Warning: 0.0.0.0 is not a loopback address: ANYBODY (there is no token) can" in errors
