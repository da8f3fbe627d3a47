"""A training run in progress: prompts, rollout, score, cut, update, checkpoint, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dagflow.alarms import Alarm
from dagflow.collect import Epoch, collect
from dagflow.engine import checkpoint as checkpoints
from dagflow.engine.checkpoint import Restored
from dagflow.engine.learner import set_rates
from dagflow.engine.levels import first_levels, zero_levels
from dagflow.engine.metrics import Clock, JsonLines
from dagflow.engine.normalise import (
    SMALLEST,
    Statistics,
    first_steady,
    mean_and_deviation,
    moments,
    summary,
)
from dagflow.engine.potentials import CurrentPotentials
from dagflow.engine.replay import Buffer
from dagflow.engine.temperature import (
    base_log_weights,
    beta_for_divergence,
    log_weights,
    temperature,
)
from dagflow.engine.transitions import cut
from dagflow.engine.update import update, warm_up
from dagflow.engine.window import Window
from dagflow.errors import NotFinite, RunError
from dagflow.folder import choose, go_on_from
from dagflow.outcome import Evaluation, Stopped, beta_in_nats, evaluate
from dagflow.prepare import Run
from dagflow.trouble import keep_batch, smaller
from dagflow.watch import Watch

T = TypeVar("T")


class Session:
    """A run in progress: the chain of stages, and its position. The same in all processes."""

    def __init__(self, run: Run, restored: Restored) -> None:
        self.run, self.config, self.position = run, run.config, restored.position
        position, replay = restored.position, run.config.replay
        if position.beta is not None:
            self.config = run.config.with_beta(position.beta)
        self._watch = Watch(run)
        self._rollout_weights = restored.rollout_weights  # from the beginning of the epoch
        empty = Buffer(replay.capacity, replay.per_prompt)
        self._buffer = empty.restored(restored.replay, run.prompts)  # from before the epoch
        metrics, timings = run.folder / "metrics.jsonl", run.folder / "timings.jsonl"
        here = run.processes.is_main
        tell, length = run.trackers.record, position.metrics_bytes
        self._metrics = JsonLines(metrics if here else None, length, tell)
        self._timings = JsonLines(timings if here else None, position.timings_bytes)

    def train(self) -> Stopped | None:
        """Train for all remaining epochs; returns why the run stopped, if it stopped early."""
        if self.position.is_beginning:
            self._metrics.write({"epoch": 0, **self._look(0, {})[0]})
        for epoch in range(self.position.epoch, self.config.epochs):
            clock = Clock()
            data = self._fitting(partial(self._collect, epoch, clock))
            self._find_beta(data)
            gain = self._gain(epoch, data.final)
            if not self.position.window and 0 < self.config.stop_at_gain <= gain:
                self.save_together()
                self._keep_best(gain)
                return Stopped(epoch, gain)
            if self.position.update == 0:
                begin = self._fitting(partial(self._with_all_potentials, data))
                self._find_levels(begin)
                self._warm_up(begin)
                clock.lap("warm_up")
            self._update(data)
            clock.lap("update")
            alarms = self._end_epoch(data, gain, clock)
            if alarms and self.config.alarms.action in ("stop", "roll-back"):
                return Stopped(epoch + 1, gain, alarms, self._went_back())
        return None

    def evaluate(self) -> Evaluation:
        """Compare base and trained model at the end."""
        return self._fitting(lambda: evaluate(self.run, self.config, self.position, True))

    def save(self) -> Path:
        """Write a checkpoint, unless this position has one or another process writes it."""
        folder, keep = self.run.folder / "checkpoints", self.config.checkpoint.keep
        if not self.run.processes.is_main:
            return folder / self.position.name
        here = replace(
            self.position,
            metrics_bytes=self._metrics.length(),
            timings_bytes=self._timings.length(),
        )
        replay = self._buffer.tensors(self.run.prompts)
        return checkpoints.save(folder, self.run.learner, here, self._rollout_weights, replay, keep)

    def save_together(self) -> Path:
        """The same, but every process waits for it."""
        return self.run.processes.from_main(self.save)

    def _fitting(self, work: Callable[[], T]) -> T:
        """What `work` returns; when the device is out of memory, retry with smaller batches."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                self.run.learner.optimizer.zero_grad(set_to_none=True)
                run = smaller(self.run)
                if not run:
                    raise RunError(
                        "the device is out of memory, even with one trajectory and one transition "
                        "at a time: set machine.gradient_checkpointing or machine.vae_slicing, or "
                        "use a smaller model"
                    ) from error
                self.run = run

    def _collect(self, epoch: int, clock: Clock) -> Epoch:
        before = self.position.statistics
        return collect(self.run, epoch, before, self._rollout_weights, self._buffer, clock)

    def _find_beta(self, data: Epoch) -> None:
        """If beta is a divergence from the base model, find its value from that model's images."""
        divergence = self.config.objective.divergence
        if divergence is None:
            return
        beta = beta_for_divergence(data.final, data.prompts, divergence)
        if self.run.learner.density == "mean":
            beta /= self._values
        self.position = replace(self.position, beta=beta)
        self.config = self.config.with_beta(beta)

    def _find_levels(self, data: Epoch) -> None:
        """Set the levels of log F and log Z from the base model's trajectories."""
        needs, sampled = self.run.learner.objective.needs, data.sampled
        learned = needs.log_flow or needs.log_z
        if self.position.levels or not learned or not self.config.update.flow_from_data:
            return
        potentials = data.potentials[: len(sampled.prompts)]
        levels = first_levels(self.run.learner, self.run.path, sampled, potentials)
        self.position = replace(self.position, levels=levels)

    def _with_all_potentials(self, data: Epoch) -> Epoch:
        """The same data with the current network's potentials; that network also sampled it.

        Only the levels and the warm-up need them; when both are done the data are unchanged.
        """
        update, position = self.config.update, self.position
        found = position.levels or not update.flow_from_data
        if found and position.warm_up >= update.flow_warmup:
            return data
        return self.run.processes.together(lambda: self._all_potentials(data))

    def _all_potentials(self, data: Epoch) -> Epoch:
        count, steps = data.trajectories.log_pf.shape
        values = data.potentials.clone()
        parts = torch.arange(count).split(self.run.config.rollout.batch_size)
        for part in parts:
            rows = torch.cartesian_prod(part, torch.arange(steps))
            device = self.run.policy.device
            current = self._current(data, self._window(data, rows, 0.0, None).on(device))
            if not current:
                return data
            if part is parts[0]:
                self.run.watcher.phase("previews", count, 1)
            current.complete(current.window)
            values[part] = current.window.potentials
            self.run.advance(len(part))
        return replace(data, potentials=values)

    def _asked_to_begin(self) -> int:
        """How many images rewards score for all potentials of the first epoch."""
        if not (self.config.update.flow_from_data or self.config.update.flow_warmup):
            return 0
        samples, steps = self.config.rollout.samples_per_epoch, self.run.path.steps
        return self._asked_anew(torch.cartesian_prod(torch.arange(samples), torch.arange(steps)))

    def _asked_anew(self, rows: Tensor) -> int:
        """How many images rewards score for a window, besides those of the epoch's data.

        Rows refer to trajectories by their numbers in the epoch, so all processes agree.
        """
        if self.config.rollout.potential != "current":
            return 0
        states = torch.cat([rows, rows + torch.tensor([0, 1])]).unique(dim=0)[:, 1]
        return int(torch.isin(states, torch.tensor(list(self.run.potential_states))).sum())

    @property
    def _values(self) -> int:
        """D."""
        return prod(self.run.policy.latent_shape)

    def _gain(self, epoch: int, rewards: Tensor) -> float:
        """The rise of the mean reward since the first steady epoch, in deviations of that epoch.

        Zero before that epoch.
        """
        if epoch < first_steady(self.run.rewards):
            return 0.0
        mean, deviation = self.position.gain_baseline or moments(rewards)
        self.position = replace(self.position, gain_baseline=(mean, deviation))
        return (float(rewards.mean()) - mean) / deviation if deviation > SMALLEST else 0.0

    def _warm_up(self, data: Epoch) -> None:
        """Train only the objective's own parameters, at the first beta above zero."""
        config, done = self.config, self.position.warm_up
        count = config.update.flow_warmup if self.run.learner.objective_parameters else 0
        windows = self._windows(0)
        beta = config.beta(0, len(windows)) or config.beta(1, len(windows))
        self.run.watcher.phase("warm-up", count - done, 1)
        for k in range(done, count):
            self.run.meet()
            window = self._own_window(data, windows[k % len(windows)], beta)
            numbers = self._step(window, lambda w: warm_up(self.run.learner, w))
            self.position = replace(self.position, warm_up=k + 1)
            self._metrics.write({"warm_up": k + 1, **numbers})
            self.run.watcher.advance(1)

    def _update(self, data: Epoch) -> None:
        """The epoch's optimizer steps."""
        windows = self._windows(self.position.epoch)
        done = self.position.window
        self.run.watcher.phase("update", len(windows) - done, self.position.epoch + 1)

        def step(window: Window) -> dict[str, float]:
            return update(self.run.learner, self._current(data, window) or window)

        for rows in windows[done:]:
            self.run.meet()
            beta = self.config.beta(self.position.update, len(windows))
            set_rates(self.run.learner, self.config.rate(self.position.update, len(windows)))
            numbers = self._step(self._own_window(data, rows, beta), step)
            window, count = self.position.window + 1, self.position.update + 1
            calls = self.position.reward_calls + self._asked_anew(rows)
            self.position = replace(self.position, window=window, update=count, reward_calls=calls)
            record = {"epoch": self.position.epoch + 1, "update": count, "beta": beta}
            self._metrics.write({**record, **numbers})
            self.run.watcher.show(numbers)
            self.run.watcher.advance(1)

    def _step(self, window: Window, work: Callable[[Window], dict[str, float]]) -> dict[str, float]:
        """Take one step; skip it if it is not finite, up to `update.skip_limit` times in a row."""
        try:
            numbers = self._fitting(lambda: work(window))
        except NotFinite as error:
            self.run.learner.optimizer.zero_grad(set_to_none=True)
            skipped, limit = self.position.skipped + 1, self.config.update.skip_limit
            if skipped > limit:
                file = keep_batch(self.run, window, self.position)
                message = f"{error}, nor were {limit} before it; its batch is kept in {file}. "
                message += "Resume from an earlier epoch with --resume RUN@EPOCH"
                raise RunError(message) from error
            self.run.watcher.say(f"Skipped: {error} ({skipped} of {limit} in a row).")
            self.position = replace(self.position, skipped=skipped)
            return {"skipped": skipped}
        if self.position.skipped:
            self.position = replace(self.position, skipped=0)
        return numbers

    def _temperature(self, data: Epoch) -> dict[str, float]:
        """How close the sampled trajectories are to the target of the final beta."""
        sampled, density = data.sampled, self.run.learner.density
        weights = (
            base_log_weights(sampled, density)
            if self.run.learner.keeps_base
            else log_weights(sampled, self.run.path, density)
        )
        weights = self.run.processes.gathered(weights, sampled.index.tolist())
        found = temperature(weights, data.final, data.prompts, beta_in_nats(self.run, self.config))
        return {f"temperature.{name}": value for name, value in found.items()}

    def _windows(self, epoch: int) -> list[Tensor]:
        return cut(self.config, epoch, self.run.path.steps, self.run.learner.objective.needs)

    def _own_window(self, data: Epoch, rows: Tensor, beta: float) -> Window:
        """This process's part of a window; rows have trajectories' numbers in the epoch."""
        return self._window(data, data.own(rows), beta, len(rows))

    def _window(self, data: Epoch, rows: Tensor, beta: float, everywhere: int | None) -> Window:
        """A window; rows refer to trajectories by their places in this process."""
        run, final_beta = self.run, self.config.final_beta
        levels = self.position.levels or zero_levels(run.path.steps)
        here, potentials = data.trajectories, data.potentials
        window = Window(here, potentials, run.path, rows, beta, final_beta, levels, everywhere)
        return window.on(run.policy.device) if self.config.machine.offload else window

    def _current(self, data: Epoch, window: Window) -> CurrentPotentials | None:
        """Potentials of the current network, to be filled in, if the run uses them."""
        if self.config.rollout.potential != "current" or not self.run.potential_states:
            return None
        states = self.run.potential_states
        return CurrentPotentials(self.run.learner, window, data.rewards, states)

    def _end_epoch(self, data: Epoch, gain: float, clock: Clock) -> tuple[Alarm, ...]:
        """Log, draw and save; returns the alarms."""
        epoch, config, buffer = self.position.epoch + 1, self.config, self._buffer
        alarms: tuple[Alarm, ...] = ()
        replays = config.replay.share or (config.replay.backward and not self.run.given)
        if replays and self.position.epoch >= first_steady(self.run.rewards):
            here, processes = data.sampled, self.run.processes
            buffer = buffer.with_more(data.prompts, data.final, here, processes)
        numbers = mean_and_deviation("reward", data.final, "_")
        beta = config.beta(self.position.update - 1, len(self._windows(0)))
        numbers |= summary(data.rewards, data.raw, beta)
        for item, values in zip(self.run.measured, data.measured, strict=True):
            numbers |= mean_and_deviation(f"eval_rewards.{item.label}", values)
        numbers |= self._temperature(data)
        if epoch % config.evaluate.every == 0 or epoch == config.epochs:
            seen, alarms = self._look(epoch, data.statistics)
            numbers |= seen
            clock.lap("watch")
        calls = self.position.reward_calls + data.reward_calls
        if not self.position.epoch:
            calls += self._asked_to_begin()
        self._keep_best(gain)  # from here on no process waits, until the state is consistent again
        self.position = replace(
            self.position,
            epoch=epoch,
            window=0,
            statistics=data.statistics,
            reward_calls=calls,
        )
        self._rollout_weights, self._buffer = self.run.policy.weights(), buffer
        self._metrics.write({"epoch": epoch, **numbers, "gain": gain})
        for alarm in alarms:
            said = asdict(alarm)
            self._metrics.write({"epoch": epoch, "alarm": said.pop("statistic"), **said})
        self._timings.write({"epoch": epoch, **clock.laps})
        if epoch % config.checkpoint.every == 0 or epoch == config.epochs:
            self.save_together()
        self.run.watcher.epoch_done(epoch, config.epochs)
        for alarm in alarms:
            self.run.watcher.say(f"ALARM: {alarm}.")
        return alarms

    def _went_back(self) -> bool:
        """If alarms roll back, return to the last checkpoint up to the previous look, if any."""
        run, main = self.run, self.run.processes.from_main
        known = main(lambda: checkpoints.checkpoints(run.folder / "checkpoints"))
        cleared = max(0, self.position.epoch - self.config.evaluate.every)  # by the previous look
        earlier = [path for path in known if checkpoints.moment(path)[0] <= cleared]
        if self.config.alarms.action != "roll-back" or not earlier:
            return False
        saved = main(lambda: choose(run.folder, earlier[-1].name, run.policy, run.watcher.say))
        assert saved
        main(lambda: go_on_from(saved.place, run.watcher.say))
        restored = run.processes.together(lambda: checkpoints.restore(saved, run.learner))
        self.position, self._rollout_weights = restored.position, restored.rollout_weights
        return True

    def _look(
        self, epoch: int, statistics: Mapping[str, Statistics]
    ) -> tuple[dict[str, float], tuple[Alarm, ...]]:
        """Numbers about what the model draws after an epoch; none if nothing is measured."""
        watched = self._fitting(lambda: self._watch.look(self.run, epoch, statistics))
        if not watched:
            return {}, ()
        self.run.watcher.show(watched.numbers)
        return watched.numbers, watched.alarms

    def _keep_best(self, gain: float) -> None:
        """Remember the checkpoint that the epoch began from, if its images gained most so far."""
        began = replace(self.position, window=0)
        checkpoint = self.run.folder / "checkpoints" / began.name
        best = self.position.best_gain
        if not self.config.checkpoint.keep_best or not self.run.processes.is_main:
            return
        if began.epoch < first_steady(self.run.rewards):
            return  # gains cannot be compared yet
        if checkpoint.is_dir() and (best is None or gain > best):
            checkpoints.point(checkpoint.with_name(checkpoints.BEST), checkpoint)
            self.position = replace(self.position, best_gain=gain)
