"""Trackers hold what metrics.jsonl holds, and never end a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from dagflow import RunError, UserError, tracking, train
from dagflow.errors import Interrupted
from dagflow.prepare import Run
from tests.conftest import SHORT_OPTIONS

ROOT = Path(__file__).parents[1]


def needs(name: str) -> pytest.MarkDecorator:
    """Skip where the tracker's package is not there."""
    try:
        tracking.require((name,))
        reason = ""
    except UserError as error:
        reason = str(error)
    return pytest.mark.skipif(bool(reason), reason=reason)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def expected(folder: Path) -> dict[str, dict[int, list[float]]]:
    """Every number of metrics.jsonl by its name and place: a warm-up step or an update."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    update = 0
    for record in records(folder):
        update = record.get("update", update)
        step, prefix = (record.pop("warm_up"), "warm_up.") if "warm_up" in record else (update, "")
        for key, value in record.items():
            values[f"{prefix}{key}"][step].append(value)
    return values


def tensorboard(folder: Path, writer: str = "") -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "images": 0, "tensors": 0}
    found = EventAccumulator(str(folder / "tracking" / "tensorboard" / writer), everything)
    return found.Reload()


def scalars(folder: Path) -> dict[str, dict[int, list[float]]]:
    """What TensorBoard shows of a run, by name and step."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for writer in ("", "warm-up"):
        if not (folder / "tracking" / "tensorboard" / writer).is_dir():
            continue
        found = tensorboard(folder, writer)
        for tag in found.Tags()["scalars"]:
            for event in found.Scalars(tag):
                values[tag][event.step].append(event.value)
    return values


def near(values: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """Up to the rounding of event files, which hold float32."""
    return {key: pytest.approx(dict(steps), rel=1e-6) for key, steps in flattened(values).items()}


def flattened(values: dict[str, dict[int, list[float]]]) -> dict[str, dict[str, float]]:
    return {
        key: {f"{step}.{k}": x for step, found in steps.items() for k, x in enumerate(found)}
        for key, steps in values.items()
    }


def tracked(make_run: Callable[..., Run], *names: str, **changes: Any) -> Run:
    return make_run(tracking={"trackers": list(names)}, **changes)


def listen(run: Run) -> list[str]:
    """What the run says to a person."""
    said: list[str] = []
    run.watcher.say = said.append  # type: ignore[method-assign]
    run.trackers._say = said.append
    return said


@needs("tensorboard")
def test_tensorboard_holds_every_number_and_picture_once(make_run: Callable[..., Run]) -> None:
    run = tracked(make_run, "tensorboard")
    said = listen(run)
    train.start(run)
    assert said == [f"Tracking: tensorboard --logdir {run.folder / 'tracking'}"]
    assert flattened(scalars(run.folder)) == near(expected(run.folder))
    found = tensorboard(run.folder)
    updates = run.config.updates_per_epoch
    assert [event.step for event in found.Images("samples")] == [0, updates, 2 * updates]
    assert [event.step for event in found.Images("before-after")] == [2 * updates]
    assert found.Images("before-after")[0].height > 100

    train.resume(tracked(make_run, "tensorboard"), "1")
    assert flattened(scalars(run.folder)) == near(expected(run.folder))
    [hparams] = (run.folder / "tracking" / "tensorboard").rglob("hparams.yml")
    text = hparams.read_text()
    assert "update.learning_rate: 0.001" in text
    assert "objective.name: kl" in text


@needs("tensorboard")
def test_a_warm_up_that_was_interrupted_goes_on(make_run: Callable[..., Run]) -> None:
    run = tracked(make_run, "tensorboard")
    folder = run.folder

    def asked() -> bool:
        file = folder / "metrics.jsonl"
        return file.exists() and "warm_up" in file.read_text()

    stopped = make_run(stop_asked=asked, tracking={"trackers": ["tensorboard"]})
    with pytest.raises(Interrupted):
        train.start(stopped)
    assert [record for record in records(folder) if "update" in record] == []
    train.resume(run)
    assert flattened(scalars(folder)) == near(expected(folder))


def test_alarms_are_texts(make_run: Callable[..., Run]) -> None:
    trackers = make_run().trackers
    trackers.record({"epoch": 7, "update": 20, "loss": 1.0})
    alarm = {"epoch": 7, "alarm": "edge_density", "shift": -1.83, "limit": 1.0, "gain": 0.92}
    step, counts, values = trackers._placed(alarm)
    assert (step, counts) == (20, "update")
    text = "epoch 7, alarm edge_density, shift -1.83, limit 1.0, gain 0.92"
    assert values == {"alarm": text}


@needs("tensorboard")
@needs("wandb")
def test_two_trackers_at_once(make_run: Callable[..., Run]) -> None:
    run = tracked(make_run, "wandb", "tensorboard")
    said = listen(run)
    train.start(run)
    assert flattened(scalars(run.folder)) == near(expected(run.folder))
    [folder] = (run.folder / "tracking" / "wandb").glob("offline-run-*")
    key = (run.folder / "tracking" / "wandb-key").read_text()
    assert said[0] == f"Tracking: wandb sync {folder}"
    log = (folder / f"run-{key}.wandb").read_bytes()
    for name in ("reward_mean", "warm_up.loss", "update.learning_rate", "policy_grad_norm"):
        assert name.encode() in log, name
    pictures = sorted(path.name for path in (folder / "files" / "media" / "images").iterdir())
    assert [name.partition("_")[0] for name in pictures] == ["before-after", *["samples"] * 3]

    train.resume(tracked(make_run, "wandb", "tensorboard", epochs=3))
    both = list((run.folder / "tracking" / "wandb").glob(f"offline-run-*/run-{key}.wandb"))
    assert len(both) == 2
    assert flattened(scalars(run.folder)) == near(expected(run.folder))


@needs("trackio")
def test_trackio_holds_every_number_and_goes_on(dagflow: Any, tmp_path: Path) -> None:
    variables = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    words = ("--output", "run", "--tracker", "trackio", "-s", "tracking.project=mine")
    done = dagflow("train", *words, *SHORT_OPTIONS, **variables)
    assert done.returncode == 0, done.stderr
    assert "rackio" not in done.stdout
    assert 'Tracking: trackio show --project "mine"' in done.stderr
    done = dagflow("train", "--resume", "run", "-s", "epochs=3", **variables)
    assert done.returncode == 0, done.stderr

    name = "run-" + (tmp_path / "run" / "tracking" / "trackio-key").read_text()
    program = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage; "
        "asked = SQLiteStorage.get_logs, SQLiteStorage.get_run_config; "
        "print(json.dumps([ask('mine', sys.argv[1]) for ask in asked]))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, name],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    logs, config = json.loads(shown.stdout)
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    pictures = []
    for log in logs:
        step = log.pop("step")
        del log["timestamp"]
        for key, value in log.items():
            if isinstance(value, dict):
                pictures.append((step, key))
            else:
                values[key][step].append(value)
    assert flattened(values) == flattened(expected(tmp_path / "run"))
    updates = max(record.get("update", 0) for record in records(tmp_path / "run")) // 3
    assert [(k * updates, "samples") for k in range(4)] == [p for p in pictures if p[1][0] == "s"]
    assert (2 * updates, "before-after") in pictures
    assert config["objective.name"] == "kl"
    assert config["epochs"] == 3
    assert "allow_val_change" not in config


def test_a_package_that_is_missing_or_old_is_said_before_anything_is_loaded(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dagflow.prepare.load_policy", lambda *_: 1 / 0)
    version = importlib.metadata.version

    def absent(name: str) -> str:
        if name == "wandb":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.0.6" if name == "trackio" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(UserError, match=r"wandb is not installed: .*'dagflow-align\[wandb\]'"):
        tracked(make_run, "wandb")
    with pytest.raises(UserError, match=r"trackio 0.0.6 is older than .*\[trackio\]'"):
        tracked(make_run, "trackio")
    assert not (tmp_path / "run").exists()


@needs("tensorboard")
def test_a_tracker_that_fails_is_left_out_with_one_warning(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import TensorBoardTracker

    log = TensorBoardTracker.log

    def failing(self: Any, values: Any, step: int | None = None) -> None:
        if "update" in values and values["update"] == 2:
            raise ConnectionError("the network is gone")
        log(self, values, step=step)

    monkeypatch.setattr(TensorBoardTracker, "log", failing)
    run = tracked(make_run, "tensorboard")
    said = listen(run)
    train.start(run)
    left_out = "Tracker 'tensorboard' is dropped from here on"
    assert said[1:] == [f"{left_out}: ConnectionError: the network is gone."]
    assert records(run.folder)[-1]["epoch"] == 2
    assert list(scalars(run.folder)["loss"]) == [1]


@needs("tensorboard")
def test_one_that_cannot_begin_ends_a_new_run_and_no_other(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import TensorBoardTracker

    train.start(tracked(make_run, "tensorboard", epochs=1))

    def refuses(self: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(TensorBoardTracker, "start", refuses)
    again = tracked(make_run, "tensorboard")
    said = listen(again)
    train.resume(again)
    assert said == ["Tracker 'tensorboard' is dropped from here on: OSError: no room."]
    other = tracked(make_run, "tensorboard", output=str(again.folder.with_name("other")))
    with pytest.raises(RunError, match="tracker 'tensorboard' cannot begin: OSError: no room"):
        train.start(other)


def test_trackers_are_named_on_the_command_line(dagflow: Any, tmp_path: Path) -> None:
    done = dagflow("train", "--tracker", "tensorbord", *SHORT_OPTIONS)
    assert done.returncode == 2
    assert "'tensorbord': input should be 'tensorboard', 'trackio' or 'wandb'" in done.stderr
    done = dagflow("train", "--tracker", "none", "--tracker", "wandb", *SHORT_OPTIONS)
    error = "Error: --tracker none cannot be combined with other trackers.\n"
    assert (done.returncode, done.stderr) == (2, error)
    assert not (tmp_path / "runs").exists()


@needs("tensorboard")
def test_a_resume_may_take_up_a_tracker_and_leave_it(dagflow: Any, tmp_path: Path) -> None:
    assert dagflow("train", "--output", "run", *SHORT_OPTIONS).returncode == 0
    assert not (tmp_path / "run" / "tracking").exists()
    words = ("train", "--resume", "run", "-s")
    assert dagflow(*words, "epochs=3", "--tracker", "tensorboard").returncode == 0
    found = scalars(tmp_path / "run")["reward_mean"]
    assert dagflow(*words, "epochs=4", "--tracker", "none").returncode == 0
    assert scalars(tmp_path / "run")["reward_mean"] == found
    assert len(found) == 1


def test_the_extras_ask_for_the_versions_that_will_do() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, least in tracking.LEAST.items():
        [text] = project["optional-dependencies"][name]
        requirement = Requirement(text)
        assert requirement.name == name
        assert str(requirement.specifier) == f">={least}"
