"""What a run's report says of a run that has ended, goes on, or is looked at in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dagflow import UserError, report, train
from dagflow.errors import Interrupted
from dagflow.outcome import evaluate_checkpoint
from dagflow.page.read import read


def ended(folder: Path) -> bool:
    assert json.loads((folder / report.NAME).read_text())["ended"] is report.has_ended(folder)
    return report.has_ended(folder)


def test_a_report_knows_whether_its_run_has_ended(make_run) -> None:
    asked: list[bool] = []
    run = make_run(lambda: bool(asked), epochs=3)
    run.watcher.epoch_done = lambda epoch, epochs: asked.append(True)  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        train.start(run)
    assert not report.has_ended(run.folder)
    evaluate_checkpoint(make_run(epochs=3))
    assert not ended(run.folder)
    assert read([run.folder])[0].state == "not finished"
    train.resume(make_run(epochs=3))
    assert ended(run.folder)
    evaluate_checkpoint(make_run(epochs=3), "2")
    assert ended(run.folder)
    assert json.loads((run.folder / report.NAME).read_text())["checkpoint"] == "epoch-0002"


def test_a_run_that_goes_on_has_no_report_until_it_ends(make_run) -> None:
    train.start(make_run(epochs=1))
    run = make_run(lambda: True, epochs=2)
    with pytest.raises(Interrupted):
        train.resume(run)
    assert not (run.folder / report.NAME).exists()


@pytest.mark.parametrize("normalise_epochs", [0, 1])
def test_a_normalised_reward_has_another_target_than_the_world_s_own(
    make_run, normalise_epochs: int
) -> None:
    truth = {"name": "world-density", "world": "gaussians-1d", "normalise_epochs": normalise_epochs}
    run = make_run(
        model="world:gaussians-1d",
        epochs=1,
        rewards={"jpeg-compressibility": truth},
        objective={"name": "tb", "beta": 1.0, "log_density": "sum"},
        evaluate={"images": 100},
    )
    assert (train.start(run).evaluation.truth is None) == bool(normalise_epochs)


def test_a_place_that_is_not_there(make_run) -> None:
    train.start(make_run(epochs=1))
    with pytest.raises(UserError, match="has no checkpoint 'epoch-0007'"):
        evaluate_checkpoint(make_run(epochs=1), "7")
