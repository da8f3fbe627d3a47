from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dagflow import UserError
from dagflow.engine.checkpoint import Position, checkpoints
from dagflow.errors import Interrupted, NotSaved
from dagflow.train import resume, start
from tests.conftest import Silent


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints(folder / "checkpoints")[-1]
    tensors = load_file(newest / "training_state.safetensors")
    return tensors | load_file(newest / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize("objective", ["db", "kl"])
@pytest.mark.parametrize("moment", ["rollout", "warm-up", "update"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_run, tmp_path: Path, objective: str, moment: str
) -> None:
    changes = {"objective": {"name": objective}, "evaluate": {"images": 0}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start(make_run(**changes, output=str(whole)))

    seen = {"moment": "", "count": 0}

    def stop() -> bool:
        if seen["moment"] != moment:
            return False
        seen["count"] += 1
        return seen["count"] == 2  # in the middle of it

    run = make_run(stop, **changes, output=str(parts))
    run.watcher.phase = lambda name, total, epoch: seen.update(moment=name)  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        start(run)
    resume(make_run(**changes, output=str(parts)))

    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    expected, found = weights(whole), weights(parts)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    for name in ("epoch-0000.png", "epoch-0002.png"):
        assert (whole / "samples" / name).read_bytes() == (parts / "samples" / name).read_bytes()


def test_a_run_that_died_before_its_first_checkpoint_begins_again(make_run, tmp_path: Path) -> None:
    start(make_run(output=str(tmp_path / "whole")))
    run = make_run(output=str(tmp_path / "died"))
    run.watcher.show = lambda metrics: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        start(run)
    shutil.rmtree(tmp_path / "died" / "checkpoints")
    resume(make_run(output=str(tmp_path / "died")))
    whole, died = (tmp_path / name / "metrics.jsonl" for name in ("whole", "died"))
    assert whole.read_bytes() == died.read_bytes()


def test_a_full_disk_leaves_no_partial_checkpoint(make_run, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("dagflow.engine.checkpoint.save_file", full)
    with pytest.raises(NotSaved, match="epoch-0001 cannot be written: I/O error: No space left"):
        start(make_run())
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_two_equal_runs_write_equal_metrics(make_run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        start(make_run(output=str(tmp_path / name)))
    one, two = (tmp_path / name / "metrics.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert b"seconds" not in one.read_bytes()


def test_metrics_after_the_checkpoint_are_forgotten_on_resume(make_run, tmp_path: Path) -> None:
    start(make_run())
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = metrics.read_bytes()
    with metrics.open("a") as file:
        file.write('{"epoch": 3, "update": 99}\n')
    resume(make_run(epochs=3))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert metrics.read_bytes().startswith(before)
    assert not any(line.get("update") == 99 for line in lines)
    assert [line["epoch"] for line in lines if "reward_mean" in line] == [1, 2, 3]


def test_old_checkpoints_go_and_nothing_partial_stays(make_run, tmp_path: Path) -> None:
    start(make_run(epochs=4, checkpoint={"keep": 2, "keep_best": False}))
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-0003", "epoch-0004", "latest"]
    assert (folder / "latest").resolve() == folder / "epoch-0004"


def test_the_checkpoint_whose_images_were_best_stays(make_run, tmp_path: Path) -> None:
    start(make_run(epochs=5, checkpoint={"keep": 1}))
    folder = tmp_path / "run" / "checkpoints"
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    gains = {line["epoch"] - 1: line["gain"] for line in lines if "gain" in line}
    del gains[0]  # sampled by the base model
    best = max(gains, key=gains.__getitem__)
    assert (folder / "best").resolve().name == f"epoch-{best:04d}"
    names = {path.name for path in folder.iterdir()}
    assert names == {"best", "latest", "epoch-0005", f"epoch-{best:04d}"}


def test_names_of_checkpoints_sort_in_the_order_of_time() -> None:
    order = [
        Position(),
        Position(warm_up=1),
        Position(warm_up=12),
        Position(warm_up=12, update=1, window=1),
        Position(warm_up=12, update=2, window=2),
        Position(warm_up=12, update=6, epoch=1),
        Position(warm_up=12, update=7, epoch=1, window=1),
    ]
    names = [position.name for position in order]
    assert names == sorted(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("file", ["training_state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(make_run, tmp_path: Path, file: str) -> None:
    start(make_run(epochs=1))
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"to resume from: .*epoch-0001/{file} is not what was"):
        resume(make_run(epochs=2))


def test_a_raising_reward_stops_the_run_with_everything_saved(make_run, tmp_path: Path) -> None:
    from dataclasses import replace

    from dagflow import PluginError
    from dagflow.engine.scoring import WeightedReward

    calls = []

    def fragile(images, prompts):
        calls.append(1)
        if len(calls) > 2:
            raise OSError("the scorer went away")
        return images.mean((1, 2, 3))

    run = make_run(evaluate={"images": 0, "grid": 0})
    run = replace(run, rewards=(WeightedReward("fragile", fragile, 1.0),), watcher=Silent())
    with pytest.raises(PluginError, match="reward 'fragile' raised OSError: the scorer went away"):
        start(run)
    assert checkpoints(tmp_path / "run" / "checkpoints")
