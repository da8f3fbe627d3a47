"""What happens where processes meet, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from dagflow.engine.processes import ALONE, Processes
from dagflow.engine.transitions import cut, shares
from dagflow.types import Needs
from tests.conftest import short_config

PROGRAM = """
import json, sys
import torch
from torch import nn
from dagflow.engine.processes import processes
from dagflow.errors import PluginError, UserError

def outcome(work):
    try:
        return work()
    except Exception as error:
        return [type(error).__name__, str(error)]

with processes() as group:
    def fails(kind, rank):
        def work():
            if group.rank == rank:
                raise kind("of my own")
        return work
    def nested():
        return group.share(fails(UserError, 1))
    own = (UserError, PluginError)[group.rank]
    rows = torch.arange(3.0) + 10 * group.rank
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    p.grad = torch.full((2,), 1.0 + group.rank)
    group.sum_gradients([p, q])
    told = {
        "share": group.share(lambda: group.rank),
        "plugin": outcome(lambda: group.share(fails(PluginError, 1))),
        "nested": outcome(lambda: group.share(nested)),
        "memory": outcome(lambda: group.together(fails(torch.OutOfMemoryError, 0))),
        "bug": outcome(lambda: group.together(fails(ZeroDivisionError, 0))),
        "gravest": outcome(lambda: group.share(fails(own, group.rank))),
        "main": outcome(lambda: group.from_main(lambda: group.rank)),
        "gathered": group.gathered(rows, [4, 0, 2] if group.rank else [1, 3, 5]).tolist(),
        "own": list(group.own(5)),
        "gradient": [p.grad.tolist(), q.grad.tolist()],
    }
    line = json.dumps({"rank": group.rank, **told})
    sys.stdout.write(line + chr(10))  # at once: two processes write here
    sys.stdout.flush()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes says."""
    program = tmp_path_factory.mktemp("meetings") / "program.py"
    program.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", str(program)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted(lines, key=lambda line: line["rank"])


def test_all_learn_what_each_found(told: list[dict[str, Any]]) -> None:
    for line in told:
        assert line["share"] == [0, 1]
        assert line["main"] == 0
        assert line["gathered"] == [11, 0, 12, 1, 10, 2]
        assert line["gradient"] == [[3, 3], [0]]
    assert [line["own"] for line in told] == [[0, 1], [2, 3, 4]]


def test_all_fail_if_one_does_and_know_which(told: list[dict[str, Any]]) -> None:
    main, other = told
    assert other["plugin"] == ["PluginError", "of my own"]
    assert main["plugin"] == ["PluginError", "process 1: of my own"]
    assert main["nested"] == ["UserError", "process 1: of my own"]
    assert other["nested"] == ["UserError", "of my own"]
    assert other["memory"] == ["OutOfMemoryError", "process 0: of my own"]
    assert other["bug"] == ["RunError", "process 0: ZeroDivisionError: of my own"]
    assert main["gravest"] == ["PluginError", "process 1: of my own"]


def test_one_alone_meets_nobody() -> None:
    assert ALONE.share(lambda: 3) == [3]
    assert ALONE.together(lambda: 4) == ALONE.from_main(lambda: 4) == 4
    with pytest.raises(ZeroDivisionError):
        ALONE.share(lambda: 1 // 0)
    assert ALONE.gathered(torch.arange(3), [2, 0, 1]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_places_are_divided_evenly_and_in_order(size: int, count: int) -> None:
    class One(Processes):
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, size

    parts = [One(rank).own(count) for rank in range(size)]
    assert [k for part in parts for k in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_all_processes_have_something_to_sample() -> None:
    config = short_config(rollout={"samples_per_epoch": 12}, update={"batch_size": 24})
    for epoch in range(20):
        dealt = shares(cut(config, epoch, 4, Needs(log_flow=True)), 4, sampled=4)
        assert [sum(k < 4 for k in own) for own in dealt] == [1, 1, 1, 1]


@pytest.mark.parametrize("needs", [Needs(log_flow=True), Needs(trajectories=True), Needs()])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_window_is_dealt_out_evenly(needs: Needs, size: int) -> None:
    config = short_config(rollout={"samples_per_epoch": 24}, update={"batch_size": 32})
    windows = cut(config, 3, 4, needs)
    dealt = shares(windows, size)
    assert sorted(k for own in dealt for k in own) == list(range(24))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    if needs.log_flow or needs.trajectories:
        for rows in windows:
            met = set(rows[:, 0].tolist())
            counts = [len(met & set(own)) for own in dealt]
            assert max(counts) - min(counts) <= 1
