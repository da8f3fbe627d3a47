from __future__ import annotations

import json
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import torch

from dagflow import __version__, provenance, train


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "sessions.jsonl").read_text().splitlines()]


def test_each_start_and_resume_leaves_a_line(make_run, tmp_path: Path) -> None:
    train.start(make_run(epochs=1))
    [first] = lines(tmp_path / "run")
    assert first["dagflow"] == __version__
    assert first["python"] == platform.python_version()
    assert first["versions"]["torch"] in torch.__version__  # perhaps with +cpu
    assert first["processes"] == 1
    assert first["cores"] >= 1
    assert first["command"].startswith("dagflow")
    assert socket.gethostname() not in json.dumps({**first, "command": ""})
    train.resume(make_run(epochs=2))
    assert len(lines(tmp_path / "run")) == 2


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert provenance._commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert provenance._commit(tmp_path) == head
    (tmp_path / "other").write_text("not tracked")
    assert provenance._commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert provenance._commit(tmp_path) == f"{head}-dirty"
