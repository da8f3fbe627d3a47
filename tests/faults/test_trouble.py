"""Devices that are too small, numbers that are not finite, rewards that hang, files that change."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from dagflow import PluginError, RunError, UserError
from dagflow.config import RewardTable
from dagflow.engine.checkpoint import BEST, SUMS, checkpoints, damage, point
from dagflow.engine.scoring import Background, WeightedReward
from dagflow.prepare import weighted
from dagflow.remote.client import RemoteReward
from dagflow.remote.environment import IsolatedReward
from dagflow.train import resume, start
from dagflow_rewards.jpeg import JpegSize
from tests.conftest import Silent, run_dagflow


class Loud(Silent):
    """Remembers what it was told to say."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def losing(run: Any, wrong: set[int]) -> Any:
    """The run with a loss that is not a number in these calls of the objective, from 1."""
    objective, calls = run.learner.objective, []
    forward = objective.forward

    def counted(batch: Any) -> Any:
        calls.append(1)
        loss, metrics = forward(batch)
        return (loss * float("nan") if len(calls) in wrong else loss), metrics

    objective.forward = counted
    return replace(run, watcher=Loud())


QUIET = {"evaluate": {"images": 0, "grid": 0}}
SINGLE = {"update": {"microbatch_size": 8, "flow_warmup": 0}, "objective": {"returns": 0}}


def test_a_step_that_is_not_finite_is_skipped_and_counted(make_run, tmp_path: Path) -> None:
    run = losing(make_run(epochs=2, **QUIET, **SINGLE), {2})
    start(run)
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "update" in line]
    assert [line.get("skipped") for line in steps] == [None, 1, None, None]
    assert run.watcher.said == [
        "Skipped: the loss is not finite; the step was not taken (1 of 3 in a row)."
    ]


def test_too_many_such_steps_stop_the_run_and_keep_the_batch(make_run, tmp_path: Path) -> None:
    run = losing(make_run(epochs=3, **QUIET, **SINGLE), set(range(2, 99)))
    before = [p.clone() for p in run.policy.parameters()]
    with pytest.raises(RunError, match="nor were 3 before it; its batch is kept in") as caught:
        start(run)
    [found] = re.findall(r"kept in (\S+\.safetensors)", str(caught.value))
    file = Path(found)
    with safe_open(file, "pt") as kept:
        assert kept.get_tensor("latents").shape[0] == kept.get_tensor("step").shape[0] == 8
        assert any(name.startswith("prompt.") for name in kept.metadata())
    assert all(p.isfinite().all() for p in run.policy.parameters())
    assert any((p != q).any() for p, q in zip(run.policy.parameters(), before, strict=True))
    assert checkpoints(tmp_path / "run" / "checkpoints")


def test_a_small_device_gets_smaller_batches_of_the_same_numbers(make_run, tmp_path: Path) -> None:
    changes = {**QUIET, "objective": {"name": "db"}}
    start(make_run(**changes, output=str(tmp_path / "large")))
    run = make_run(**changes, output=str(tmp_path / "small"))
    predict = run.policy.predict

    def small(latents: Any, timesteps: Any, embeds: Any) -> Any:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return predict(latents, timesteps, embeds)

    run.policy.predict = small
    run = replace(run, watcher=Loud())
    start(run)
    assert [text.partition(":")[0] for text in run.watcher.said] == ["Out of memory"]
    assert "rollout.batch_size = 2 and update.microbatch_size = 2" in run.watcher.said[0]
    large, small_one = (
        [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("large", "small")
    )
    assert [line.keys() for line in large] == [line.keys() for line in small_one]
    first = next(k for k, line in enumerate(large) if "update" in line)
    for name, value in large[first].items():
        assert small_one[first][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_a_device_too_small_for_one_says_what_to_set(make_run) -> None:
    run = make_run(**QUIET)

    def none(*_: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate too much")

    run.policy.predict = none
    with pytest.raises(RunError, match="one trajectory and one transition at a time: set"):
        start(run)


def test_all_rewards_have_a_timeout_but_those_with_their_own() -> None:
    def own(images: Any, prompts: Any) -> Any: ...

    own.own_timeout = True  # type: ignore[attr-defined]
    table = RewardTable(timeout=5.0)
    files = weighted("x", JpegSize(95, -1), table)
    assert (files.overlaps, files.timeout) == (True, 5.0)
    assert weighted("x", own, table).timeout is None
    assert RemoteReward.own_timeout
    assert IsolatedReward.own_timeout


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_reward_that_hangs_is_given_up(make_run, tmp_path: Path, overlaps: bool) -> None:
    never = threading.Event()

    def hangs(images: Any, prompts: Any) -> Any:
        never.wait(60)
        return images.mean((1, 2, 3))

    item = WeightedReward(
        "sleepy", hangs, 1.0, background=Background(1), overlaps=overlaps, timeout=0.5
    )
    run = replace(make_run(**QUIET), rewards=(item,))
    began = time.monotonic()
    with pytest.raises(PluginError, match=r"'sleepy' did not answer within 0.5 seconds"):
        start(run)
    assert time.monotonic() - began < 30
    never.set()
    assert checkpoints(tmp_path / "run" / "checkpoints")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dagflow.plugins import load_plugins
    from dagflow.prepare import prepare
    from tests.conftest import short_config

    folder = tmp_path_factory.mktemp("flips")
    replay = {"share": 0.25}
    settings = short_config(
        epochs=1, **QUIET, objective={"name": "db"}, replay=replay, output=str(folder / "run")
    )
    start(prepare(settings, load_plugins(), Silent()))
    return checkpoints(folder / "run" / "checkpoints")[-1]


def test_every_flipped_bit_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    """In each file, the checksums' own included, at both ends and in 60 places between."""
    source = random.Random(0)
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    assert damage(copy) is None
    for file in sorted(copy.iterdir()):
        content = file.read_bytes()
        places = {0, len(content) - 1, *(source.randrange(len(content)) for _ in range(60))}
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 1 << source.randrange(8)
            file.write_bytes(changed)
            assert damage(copy), f"{file.name}, byte {place}"
        file.write_bytes(content[:-1])
        assert str(file if file.name != SUMS else copy) in (damage(copy) or "")
        file.unlink()
        assert damage(copy), file.name
        file.write_bytes(content)
    assert damage(copy) is None


def test_a_damaged_checkpoint_gives_way_to_the_one_before(make_run, tmp_path: Path) -> None:
    start(make_run(epochs=3, **QUIET))
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    folder = tmp_path / "run" / "checkpoints"
    flip(folder / "epoch-0003" / "training_state.safetensors")
    run = replace(make_run(epochs=3, **QUIET), watcher=Loud())
    resume(run)
    assert run.watcher.said[0].startswith("DAMAGED: ")
    assert "epoch-0003/training_state.safetensors is not what was written" in run.watcher.said[0]
    assert run.watcher.said[1] == "Resuming from epoch-0002; set aside: epoch-0003."
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    assert (folder / "aside-epoch-0003").is_dir()
    assert (folder / "latest").resolve().name == "epoch-0003"


@pytest.mark.parametrize("place", ["1", "best"])
def test_a_run_goes_on_from_an_epoch_of_choice(make_run, tmp_path: Path, place: str) -> None:
    settings = {**QUIET, "checkpoint": {"keep": 4}}
    start(make_run(epochs=3, **settings))
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"no checkpoint 'epoch-0007'. There are: epoch-0001,"):
        resume(make_run(epochs=3, **settings), "7")
    folder = tmp_path / "run" / "checkpoints"
    point(folder / BEST, folder / "epoch-0001")
    resume(make_run(epochs=3, **settings), place)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics
    assert {path.name for path in folder.glob("aside-*")} == {
        "aside-epoch-0002",
        "aside-epoch-0003",
    }
    flip(folder / "epoch-0002" / "state.json")
    with pytest.raises(UserError, match=r"no undamaged checkpoint to resume from: .*state.json"):
        resume(make_run(epochs=3, **settings), "2")


def test_a_checkpoint_of_a_later_dagflow_says_which(make_run, tmp_path: Path) -> None:
    from dagflow.engine.checkpoint import _sums

    start(make_run(epochs=1, **QUIET))
    newest = tmp_path / "run" / "checkpoints" / "epoch-0001"
    state = json.loads((newest / "state.json").read_text())
    state |= {"format": 99, "version": "7.1", "new": 1}
    (newest / "state.json").write_text(json.dumps(state))
    (newest / SUMS).write_text(_sums(newest))
    with pytest.raises(
        UserError, match=r"dagflow 7.1 wrote it in format 99.*resume with dagflow 7"
    ):
        resume(make_run(epochs=2, **QUIET))


def test_a_checkpoint_without_checksums_is_still_read(make_run, tmp_path: Path) -> None:
    start(make_run(epochs=1, **QUIET))
    newest = tmp_path / "run" / "checkpoints" / "epoch-0001"
    (newest / SUMS).unlink()
    state = json.loads((newest / "state.json").read_text())
    for name in ("format", "skipped", "best_gain"):
        del state[name]
    (newest / "state.json").write_text(json.dumps(state))
    resume(make_run(epochs=2, **QUIET))
    assert damage(tmp_path / "run" / "checkpoints" / "epoch-0002") is None


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def test_what_is_no_part_of_a_checkpoint_is_no_damage(checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    (copy / ".DS_Store").write_bytes(b"a file manager was here")
    assert damage(copy) is None
    (copy / "more.safetensors").write_bytes(b"")
    assert "does not list more.safetensors" in (damage(copy) or "")


def test_what_is_left_of_a_checkpoint_is_replaced(make_run, tmp_path: Path) -> None:
    start(make_run(epochs=2, **QUIET))
    folder = tmp_path / "run" / "checkpoints"
    (folder / "epoch-0002" / "state.json").unlink()
    (folder / ".epoch-0007.partial").mkdir()
    run = replace(make_run(epochs=2, **QUIET), watcher=Loud())
    resume(run)
    assert run.watcher.said[0].startswith("DAMAGED: ")
    assert damage(folder / "epoch-0002") is None
    assert (folder / "latest").resolve().name == "epoch-0002"
    assert not list(folder.glob(".*"))


def test_a_copy_that_followed_links_goes_on(make_run, tmp_path: Path) -> None:
    start(make_run(epochs=2, **QUIET, output=str(tmp_path / "first")))
    shutil.copytree(tmp_path / "first", tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "latest").is_symlink()
    resume(make_run(epochs=3, **QUIET))
    assert damage(tmp_path / "run" / "checkpoints" / "epoch-0003") is None


def test_nothing_is_set_aside_for_a_run_that_is_refused(make_run, tmp_path: Path) -> None:
    start(make_run(epochs=3, **QUIET, checkpoint={"keep": 3}))
    folder = tmp_path / "run" / "checkpoints"
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match="is already past epochs = 1"):
        resume(make_run(epochs=1, **QUIET), "2")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_checkpoints_stand_in_the_order_of_time(tmp_path: Path) -> None:
    names = ["epoch-0002", "epoch-0002-update-0001", "epoch-9999", "epoch-10000", "epoch-100000"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / "epoch-of-mine").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == names


@pytest.mark.parametrize("evaluate", [{"images": 0}, {"images": 4, "watched": 0, "grid": 0}])
def test_a_model_that_has_diverged_is_said_to_have(make_run, evaluate: dict[str, int]) -> None:
    """No reward is blamed, and no library is given such pictures."""
    run = make_run(epochs=1, evaluate=evaluate, update={"learning_rate": 1e30})
    with pytest.raises(RunError, match=r"pictures that are not finite: .* --resume RUN@EPOCH"):
        start(run)


def test_a_total_that_is_not_finite_ends_the_run(make_run) -> None:
    rewards = {"jpeg-compressibility": {"weight": 1e300}}
    with pytest.raises(RunError, match=r"total reward is not finite, .* jpeg-compressibility 1e"):
        start(make_run(rewards=rewards, **QUIET))


def test_a_run_goes_on_with_the_prompts_that_it_began_with(make_run, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    prompts = {"name": "file", "path": str(file)}
    file.write_text("a cat\na dog\n")
    start(make_run(epochs=1, prompts=prompts, **QUIET))
    file.write_text("a cat\na dog\na horse\n")
    with pytest.raises(UserError, match="prompts 'file' have changed since the run began"):
        resume(make_run(epochs=2, prompts=prompts, **QUIET))
    file.write_text("a cat\na dog\n")
    resume(make_run(epochs=2, prompts=prompts, **QUIET))


@pytest.mark.parametrize("words", [("export",), ("export", "--fuse"), ("report",)])
def test_a_full_disk_is_named_and_keeps_no_fragment(make_run, small_disk: Path, words) -> None:
    run = make_run(epochs=1, evaluate={"images": 0, "grid": 2, "watched": 0})
    start(run)
    free = os.statvfs(small_disk)
    (small_disk / "others").write_bytes(bytes(free.f_bavail * free.f_bsize - 20_000))
    output = small_disk / ("page.html" if words[0] == "report" else "exported")
    done = run_dagflow(small_disk, *words, str(run.folder), "--output", str(output))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(small_disk) in "".join(done.stderr.split())
    assert "Failed" in done.stderr
    assert [path.name for path in small_disk.iterdir()] == ["others"]
