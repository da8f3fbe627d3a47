"""Begin a training run, or resume one."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import replace

from dagflow import provenance, report
from dagflow.engine import checkpoint as checkpoints
from dagflow.engine.checkpoint import Position, Restored
from dagflow.engine.prompts import digest
from dagflow.errors import NotSaved, UserError, blaming
from dagflow.folder import choose, go_on_from, owned, require_free, write_config
from dagflow.outcome import Outcome
from dagflow.prepare import Run
from dagflow.session import Session


def start(run: Run) -> Outcome:
    """Begin in a directory that does not exist or is empty, and train to the end."""
    main = run.processes.from_main
    main(lambda: require_free(run.folder))
    with closing(run), ExitStack() as stack:
        main(lambda: stack.enter_context(owned(run.folder)))
        main(lambda: write_config(run.config, run.folder))
        main(lambda: stack.enter_context(run.trackers.begun(run.folder, update=0, warm_up=0)))
        begin = Position(prompts=digest(run.prompts))
        return _train(run, Restored(begin, run.policy.weights(), {}))


def resume(run: Run, place: str = "") -> Outcome:
    """Resume from the newest intact checkpoint of the directory, or from `place`.

    The result is the same as without the interruption. A run that stopped before its first
    checkpoint starts again. `place`: a checkpoint's name, or the number of an epoch.
    """
    main = run.processes.from_main
    with closing(run), ExitStack() as stack:
        main(lambda: stack.enter_context(owned(run.folder)))
        saved = main(lambda: choose(run.folder, place, run.policy, run.watcher.say))
        restored = Restored(Position(prompts=digest(run.prompts)), run.policy.weights(), {})
        if saved:
            run.processes.together(lambda: _check_prompts(run, saved.position))
            restored = run.processes.together(lambda: checkpoints.restore(saved, run.learner))
        if (restored.position.epoch, restored.position.window) > (run.config.epochs, 0):
            raise UserError(f"the run is already past epochs = {run.config.epochs}.")
        if saved and not main(lambda: go_on_from(saved.place, run.watcher.say)):
            restored = replace(restored, position=replace(restored.position, best_gain=None))
        main(lambda: write_config(run.config, run.folder))
        main(lambda: (run.folder / report.NAME).unlink(missing_ok=True))  # the run has not ended
        update, warm_up = restored.position.update, restored.position.warm_up
        main(lambda: stack.enter_context(run.trackers.begun(run.folder, update, warm_up)))
        return _train(run, restored)


def _check_prompts(run: Run, begun: Position) -> None:
    """Raise UserError if the prompts are not those that the run began with.

    Older checkpoints do not record them, and pass.
    """
    if begun.prompts not in ("", digest(run.prompts)):
        raise UserError(
            f"the prompts '{run.config.prompts.name}' have changed since the run began: put them "
            f"back, or begin a new run."
        )


def _train(run: Run, restored: Restored) -> Outcome:
    run.processes.from_main(lambda: _open_logs(run))
    run.processes.from_main(lambda: provenance.record(run.folder, run.processes.size))
    session = run.processes.together(lambda: Session(run, restored))
    try:
        stopped = session.train()
    except NotSaved:
        raise
    except Exception:
        session.save()
        raise
    checkpoint = session.save_together()
    evaluation = session.evaluate() if run.config.evaluate.images else None
    return Outcome(checkpoint, evaluation, session.config.final_beta, stopped)


def _open_logs(run: Run) -> None:
    """Tell rewards that keep a log (those with `open_log`) the run's directory."""
    for item in (*run.rewards, *run.measured):
        open_log = getattr(item.reward, "open_log", None)
        if callable(open_log):
            with blaming(f"reward '{item.label}'", OSError):  # an OSError is about the run's folder
                open_log(run.folder)
