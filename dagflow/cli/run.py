"""Run a configuration, in one process or several, and print the result."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dagflow import RunError, UserError
from dagflow.cli.console import err, fact, out
from dagflow.cli.evaluate import print_evaluation
from dagflow.cli.launch import INTERRUPTED, Machines, as_launched, is_launched, launch
from dagflow.cli.report import write_page
from dagflow.plugins import load_plugins

if TYPE_CHECKING:
    from dagflow.config import Config
    from dagflow.engine.processes import Processes
    from dagflow.outcome import Outcome, Stopped
    from dagflow.prepare import Run

REQUESTS = ("SIGINT", "SIGTERM", "SIGUSR1")  # to save and end; schedulers send the last two


@dataclass(frozen=True)
class Resumed:
    """A run to resume, and the checkpoint to resume from; by default the newest."""

    folder: Path
    place: str = ""

    @classmethod
    def named(cls, text: str) -> Resumed:
        """RUN or RUN@EPOCH."""
        folder, at, place = text.rpartition("@")
        if at and not Path(text).exists():
            if not place:
                raise UserError(f"'{text}': an epoch's number must follow the @.")
            return cls(Path(folder), place)
        return cls(Path(text))


def run(
    resolve: Callable[[], Config],
    machines: Machines,
    profile: bool,
    resumed: Resumed | None = None,
    pictures: bool | None = None,
) -> None:
    """Train. Only the main process resolves the configuration and prints."""
    with ExitStack() as stack:
        if is_launched():
            from dagflow.engine.processes import processes

            group = stack.enter_context(processes())
            signal.signal(signal.SIGINT, signal.default_int_handler)  # see __main__.py
            resolved = group.from_main(
                lambda: stack.enter_context(_with_folder(as_launched(resolve())))
            )
            group.wait_at_most(resolved.machine.patience)
            _train(resolved, group, profile, resumed, pictures)
        elif machines.processes * machines.nodes > 1:
            resolved = resolve()
            if resolved.output or machines.node:
                raise typer.Exit(launch(machines, [], partial(_if_saved, resolved.output)))
            folder = stack.enter_context(_with_folder(resolved)).output
            raise typer.Exit(launch(machines, ["--output", folder], partial(_if_saved, folder)))
        else:
            from dagflow.engine.processes import ALONE

            resolved = stack.enter_context(_with_folder(resolve()))
            _train(resolved, ALONE, profile, resumed, pictures)


@contextmanager
def _with_folder(resolved: Config) -> Iterator[Config]:
    """The configuration, with a new run directory if none was given."""
    if resolved.output:
        yield resolved
        return
    from dagflow.folder import claimed

    with claimed(f"{'+'.join(resolved.rewards) or 'run'}-{resolved.objective.name}") as folder:
        yield resolved.model_copy(update={"output": str(folder)})


def _train(
    resolved: Config,
    group: Processes,
    profile: bool,
    resumed: Resumed | None,
    pictures: bool | None,
) -> None:
    import torch

    from dagflow import train
    from dagflow.cli.display import Display, Silent, profile_table
    from dagflow.engine import checkpoint
    from dagflow.errors import Interrupted
    from dagflow.prepare import prepare, require_same_prompts
    from dagflow.profiling import profiled

    display = Display(err, resolved.stop_at_gain > 0, pictures) if group.is_main else None
    profiles = None
    with ExitStack() as stack:
        stack.enter_context(display or nullcontext())
        stack.enter_context(redirect_stdout(sys.stderr))  # plugins print above the display
        stop_asked = stack.enter_context(_stoppable(group.is_main))
        registry, watcher = load_plugins(), display or Silent()
        prepared = group.together(lambda: prepare(resolved, registry, watcher, stop_asked, group))
        require_same_prompts(prepared)
        watch = profiled(prepared.folder / "profile") if profile and group.is_main else None
        try:
            with watch or nullcontext() as profiles:
                outcome = (
                    train.resume(prepared, resumed.place) if resumed else train.start(prepared)
                )
        except Interrupted:
            if display:
                display.stop()
                err.print(f"Interrupted and saved. {_way_on(resolved.output)}", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        except torch.OutOfMemoryError as error:
            raise RunError(f"the device is out of memory: {error}") from error
        except (RunError, OSError) as error:
            if not checkpoint.folders(prepared.folder / "checkpoints"):
                raise
            hint = f"Earlier progress is saved. {_way_on(resolved.output)}"
            raise RunError(f"{error}\n{hint}") from error
    if not group.is_main:
        return
    _summarise(prepared, outcome)
    if profiles:
        fact("profile", profiles.folder)
        out.print(profile_table(profiles))


def _if_saved(folder: str) -> str:
    """How to resume, if there is anything; only machine 0 of several knows a new run's folder."""
    from dagflow.engine import checkpoint

    if folder and not checkpoint.folders(Path(folder) / "checkpoints"):
        return "Nothing was saved yet."
    return _way_on(folder or "RUN")


def _way_on(folder: str) -> str:
    return f"Resume with: dagflow train --resume {shlex.quote(folder)}"


@contextmanager
def _stoppable(prints: bool) -> Iterator[Callable[[], bool]]:
    """Make a signal a request to stop; a second Ctrl-C stops at once.

    If the process that started this one, such as a launcher, ends, that is a request too.
    """
    asked: list[int] = []
    parent = os.getppid()

    def handler(number: int, *_: object) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        if prints and not asked:
            again = "" if is_launched() else " (Ctrl-C again to stop at once)"
            err.print(f"Stopping after this step{again} ...")
        asked.append(number)

    known = [getattr(signal, name) for name in REQUESTS if hasattr(signal, name)]
    previous = {number: signal.signal(number, handler) for number in known}
    try:
        yield lambda: bool(asked) or (is_launched() and os.getppid() != parent)
    finally:
        if not is_launched():  # otherwise this process is about to end, and must still say why
            for number, before in previous.items():
                signal.signal(number, before)


def _summarise(run: Run, outcome: Outcome) -> None:
    page = write_page(run.folder)  # first: printing fails if the reader has gone
    stopped, epochs = outcome.stopped, run.config.epochs
    if stopped is not None:
        fact("stopped", f"after epoch {stopped.epochs} of {epochs}: {_why(run, stopped)}")
    if (run.folder / "samples").exists():
        fact("pictures", run.folder / "samples")
    fact("metrics", run.folder / "metrics.jsonl")
    fact("LoRA" if "lora" in run.policy.WEIGHTS_FILE else "weights", outcome.checkpoint)
    if run.config.objective.divergence is not None:
        fact("beta", f"{outcome.beta:.4g} (found for {run.config.objective.beta})")
    if outcome.evaluation is not None:
        fact("report", run.folder / "report.json")
    if page:
        fact("page", page)
    if outcome.evaluation is not None:
        print_evaluation(outcome.evaluation)


def _why(run: Run, stopped: Stopped) -> str:
    if not stopped.alarms:
        gained = f"the reward rose by {stopped.gain:.2f} deviations"
        return f"{gained} (stop_at_gain = {run.config.stop_at_gain:g})"
    action, back = run.config.alarms.action, ""
    if action == "roll-back":
        went = "the run went back to the checkpoint before it"
        back = f"; {went}" if stopped.went_back else "; there was no checkpoint before it"
    return f"{stopped.alarms[0]} (alarms.action = {action}){back}"
