from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
import venv
from datetime import date
from pathlib import Path

import psutil
import pytest
import torch

from dagflow import PluginError, Prompt, UserError, config
from dagflow.plugins import load_plugins
from dagflow.remote.environment import settings
from tests.remote.conftest import put_probes, wait_until

PROMPTS = [Prompt("a cat", {"k": [1]}), Prompt("ein Hund")]
IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
PARENT = """
import sys, time
from dagflow.remote import isolated
reward = isolated(sys.argv[1])
print(reward.pid, flush=True)
time.sleep(600)
"""


def start(target: str, **options):
    return load_plugins().maker("reward", "isolated", {"target": target, **options})()


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of floats depend on how many threads share them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def make():
    """An isolated reward that is closed when the test is over."""
    made = []

    def keep(target: str, **options):
        made.append(start(target, **options))
        return made[-1]

    yield keep
    for reward in made:
        reward.close()


def test_a_network_elsewhere_scores_as_here_and_leaves_its_log(
    environment: Path, tmp_path: Path, monkeypatch
) -> None:
    from dagflow.engine.scoring import place

    reward = start(f"network@{environment}", width=8)
    monkeypatch.syspath_prepend(put_probes(tmp_path))
    here = place(load_plugins().maker("reward", "network", {"width": 8})(), torch.device("cpu"))
    assert torch.equal(reward(IMAGES, PROMPTS), here(IMAGES, PROMPTS))

    reward.open_log(tmp_path)
    log = tmp_path / "logs" / "network@other.log"
    assert "dagflow serves network at http://127.0.0.1:" in log.read_text()

    server = psutil.Process(reward.pid)
    assert not any("TOKEN" in word or reward._token in word for word in server.cmdline())
    del reward
    gc.collect()
    wait_until(lambda: not server.is_running())


def test_a_server_that_dies_is_started_again_but_not_for_ever(
    make, environment: Path, tmp_path: Path
) -> None:
    file = tmp_path / "fall"
    reward = make(f"fragile@{environment}", file=str(file), restarts=1)
    expected = -IMAGES.mean((1, 2, 3))
    assert torch.equal(reward(IMAGES, PROMPTS), expected)
    reward.open_log(tmp_path)

    first = reward.pid
    os.kill(first, signal.SIGKILL)
    assert torch.equal(reward(IMAGES, PROMPTS), expected)
    assert reward.pid != first

    file.touch()
    with pytest.raises(PluginError, match=r"(?s)died \(exit code 9\), once too often.*about to fa"):
        reward(IMAGES, PROMPTS)
    log = (tmp_path / "logs" / "fragile@other.log").read_text()
    assert log.count("dagflow serves fragile") == 2
    assert "died (killed by SIGKILL); starting it again" in log
    assert log.rstrip().endswith("about to fall")


def test_the_server_ends_with_its_trainer_even_after_sigkill(environment: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, f"slow@{environment}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        assert "serve" in server.cmdline()
        parent.kill()
        parent.wait()
        began = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            server.wait(5)
        assert time.monotonic() - began < 5
    finally:
        parent.kill()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("network", {}, "is not of the form NAME@PATH_OF_A_VENV"),
        ("@/x", {}, "is not of the form NAME@PATH_OF_A_VENV"),
        ("network@/nowhere", {}, "'/nowhere' is not a virtual environment: no /nowhere/bin/python"),
        (
            "netwrok@HERE",
            {},
            r"(?s)The end of its log:.*no reward called 'netwrok'. Did you mean 'netw",
        ),
        ("network@HERE", {"widht": 3}, "has no option 'widht'. Did you mean 'width'"),
    ],
)
def test_what_cannot_be_had_is_the_users_mistake(
    make, environment: Path, target: str, options, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(target.replace("HERE", str(environment)), **options)


def test_a_python_that_does_not_start_is_the_users_mistake(make, tmp_path: Path) -> None:
    python = tmp_path / "odd" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("x")
    with pytest.raises(UserError, match=r"odd/bin/python cannot be run: Permission denied"):
        make(f"network@{tmp_path / 'odd'}")
    python.unlink()
    python.symlink_to("/nowhere/python3")
    with pytest.raises(UserError, match=r"that '.*odd' was made with is gone \(.*nowhere/python3"):
        make(f"network@{tmp_path / 'odd'}")
    python.unlink()
    python.write_text("#!/bin/sh\necho Unknown option: -P\nexit 2\n")
    python.chmod(0o755)
    with pytest.raises(UserError, match=r"the Python of .*odd is too old: it must be 3\.11"):
        make(f"network@{tmp_path / 'odd'}")


def test_an_environment_without_dagflow_is_told_what_to_install(make, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    with pytest.raises(UserError, match=r"has no dagflow. Install it with: .*bare/bin/python -m p"):
        make(f"network@{tmp_path / 'bare'}")


def test_a_reward_that_fails_to_load_leaves_its_last_words(make, environment: Path) -> None:
    with pytest.raises(
        PluginError, match=r"(?s)does not start \(exit code 1\).*negative dimension"
    ):
        make(f"network@{environment}", width=-1)


def test_options_become_words_of_a_command() -> None:
    options = {"a": 1, "b": "x=y z", "c": {"d.e": [True, 0.5]}, "f": {}, "g": [{"a": 1}]}
    options |= {"h": '🦊\n"quoted"', "i": float("inf"), "j": date(2026, 11, 26)}
    words, tree = settings(options), {}
    assert words[:4] == ["-s", "a=1", "-s", 'b="x=y z"']
    config.override(tree, words[1::2])
    assert tree == options
