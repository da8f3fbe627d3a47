"""Load and check everything that a run consists of, writing nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor

from dagflow.config import Config, OpenTable, RewardTable
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.learner import Learner, make_learner
from dagflow.engine.machine import prepare_device, prepare_learner, prepare_policy
from dagflow.engine.processes import ALONE, Processes
from dagflow.engine.prompts import as_prompts, digest, draw_prompts, heldout_prompts
from dagflow.engine.replay import Kept, given_images, off_policy
from dagflow.engine.scoring import Background, WeightedReward, place
from dagflow.errors import Interrupted, PluginError, UserError
from dagflow.measures.features import Features, load_features
from dagflow.plugins import Kind, Registry
from dagflow.policies.loading import default_device, load_policy
from dagflow.policies.policy import Policy
from dagflow.policies.world import WorldPolicy
from dagflow.tracking import Trackers, require
from dagflow.types import Needs, Prompt, PromptSource, Reward
from dagflow.worlds.rewards import Density


class Watcher(Protocol):
    """Whoever shows a run to a person."""

    def phase(self, name: str, total: int, epoch: int) -> None:
        """A stage of `total` units begins; epochs count from 1."""

    def advance(self, units: int) -> None:
        """That many more units of the stage are done."""

    def show(self, metrics: Mapping[str, float]) -> None:
        """New numbers."""

    def say(self, text: str) -> None:
        """A message for the user; one that begins with "alarm", in any case, is shown as one."""

    def pictures(self, images: Tensor, epoch: int) -> None:
        """The grid (B, 3, height, width) of an epoch; 0 is the base model."""

    def epoch_done(self, epoch: int, epochs: int) -> None:
        """An epoch is over and saved."""


@dataclass(frozen=True)
class Run:
    """Everything that a run consists of, checked and loaded."""

    config: Config
    folder: Path
    learner: Learner
    path: GaussianPath
    rewards: tuple[WeightedReward, ...]
    measured: tuple[WeightedReward, ...]  # rewards that are never trained on
    prompts: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    given: tuple[Kept, ...]  # pictures from which backward trajectories start
    features: Features  # in which images are compared
    watcher: Watcher
    stop_asked: Callable[[], bool]
    trackers: Trackers

    @property
    def policy(self) -> Policy:
        return self.learner.policy

    @property
    def processes(self) -> Processes:
        return self.learner.processes

    @property
    def potential_states(self) -> tuple[int, ...]:
        """The states before the last that have a potential."""
        if not self.learner.objective.needs.potentials:
            return ()
        return self.config.rollout.potential_states(self.path.steps)

    def advance(self, units: int) -> None:
        """That many more units of the current stage are done; raises as `stop_if_asked` does."""
        self.watcher.advance(units)
        if not self.processes.lockstep:
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raise Interrupted if the user has asked the run to stop."""
        if self.stop_asked():
            raise Interrupted

    def meet(self) -> None:
        """Between two steps, in all processes together; raises as `stop_if_asked` does."""
        self.processes.together(self.stop_if_asked)

    def close(self) -> None:
        """Stop asking rewards."""
        for item in (*self.rewards, *self.measured):
            if item.background:
                item.background.close()


def prepare(
    config: Config,
    registry: Registry,
    watcher: Watcher,
    stop_asked: Callable[[], bool] = lambda: False,
    processes: Processes = ALONE,
) -> Run:
    """Load model, rewards, prompts and objective, writing nothing.

    Raises UserError for anything in the configuration that is not possible or not available.
    """
    if not config.rewards:
        known = ", ".join(registry.names("reward"))
        raise UserError(f"a run needs a reward: --reward NAME. Installed: {known}.")
    require(config.tracking.trackers)
    make_rewards = _reward_makers(config.rewards, registry)
    make_measured = _reward_makers(config.evaluate.rewards, registry)
    if twice := sorted(config.rewards.keys() & config.evaluate.rewards.keys()):
        raise UserError(f"'{twice[0]}' is trained on; give the measured one another label.")
    make_objective = maker_of(registry, "objective", config.objective.name, config.objective)
    source, prompts = load_prompts(config, registry)

    device = default_device()
    prepare_device(device, config.machine)
    rollout = config.rollout
    policy = load_policy(
        config.model,
        config.dtype,
        device,
        rollout.guidance_scale,
        rollout.preview_decoder,
        whole=not config.machine.shard,
    )
    path = policy.path(rollout.num_inference_steps).on(policy.device)
    policy.add_weights(config.lora, config.seed)
    prepare_policy(policy, config.machine, processes)
    rewards = _build(config.rewards, make_rewards, device)
    measured = _build(config.evaluate.rewards, make_measured, device)
    _check_worlds(policy, (*rewards, *measured))
    with torch.random.fork_rng(devices=[]), _unchanged():
        torch.manual_seed(config.seed)
        objective = make_objective(policy.spec)
    _check_objective(config.objective.name, objective)
    check_needs(config, objective.needs, prompts)
    _check_processes(config, processes)
    config = _within_budget(config, objective.needs, path.steps)
    learner = make_learner(
        policy, objective, config.update, config.objective.log_density, processes
    )
    prepare_learner(learner, config.machine)
    replay = config.replay
    return Run(
        config=config,
        folder=Path(config.output),
        learner=learner,
        path=path,
        rewards=rewards,
        measured=measured,
        prompts=prompts,
        heldout=heldout_prompts(config.prompts.name, source, prompts),
        given=given_images(Path(replay.images), policy) if replay.images else (),
        features=load_features(config.evaluate.features, device),
        watcher=watcher,
        stop_asked=stop_asked,
        trackers=Trackers(config, watcher.say),
    )


def _check_worlds(policy: Policy, rewards: Sequence[WeightedReward]) -> None:
    """Raise UserError for a reward of a world other than the model's."""
    own = policy.world.name if isinstance(policy, WorldPolicy) else None
    for item in rewards:
        if isinstance(item.reward, Density) and item.reward.world.name != own:
            other = item.reward.world.name
            raise UserError(
                f"reward '{item.label}' belongs to the world '{other}': use it with "
                f"--model world:{other}, or give its option world."
            )


def _within_budget(config: Config, needs: Needs, steps: int) -> Config:
    """The configuration with as many epochs as `reward_budget` allows."""
    budget, rollout = config.reward_budget, config.rollout
    states = len(rollout.potential_states(steps)) if needs.potentials else 0
    each = rollout.samples_per_epoch * (1 + states)
    if not budget:
        return config
    if rollout.potential == "current" and needs.potentials:
        raise UserError(
            "reward_budget cannot count potential = 'current', which asks the rewards again in "
            "each update: use 'rollout' or 'none'."
        )
    if budget < each:
        raise UserError(
            f"reward_budget = {budget} is less than the {each} images that the rewards score in "
            f"one epoch with objective '{config.objective.name}'."
        )
    return config.model_copy(update={"epochs": budget // each})


def check_needs(config: Config, needs: Needs, prompts: Sequence[Prompt]) -> None:
    """Raise UserError if the objective cannot work with the data that it would get."""
    name, replay = config.objective.name, config.replay
    if needs.on_policy and (replay.share or replay.backward):
        raise UserError(
            f"objective '{name}' is wrong for trajectories that the policy did not just sample: "
            f"set replay.share and replay.backward to 0, or use an objective that learns from any "
            f"trajectory (db, tb, subtb, rtb, ...)."
        )
    rollout, batch = config.rollout, config.update.batch_size
    if batch > config.transitions_per_epoch and not needs.trajectories:
        raise UserError(
            f"update.batch_size = {batch} is more than the {config.transitions_per_epoch} "
            f"transitions that update.timestep_fraction leaves of an epoch (samples_per_epoch = "
            f"{rollout.samples_per_epoch} x {config.steps_per_trajectory} steps)."
        )
    if (replay.share or replay.backward) and rollout.images_per_prompt == rollout.samples_per_epoch:
        raise UserError(
            f"rollout.images_per_prompt = {rollout.images_per_prompt} makes the whole epoch one "
            f"group, which leaves no room for replayed trajectories: lower it."
        )
    if needs.groups and rollout.images_per_prompt < 2:
        raise UserError(
            f"objective '{name}' compares images of one prompt: set rollout.images_per_prompt to "
            f"2 or more, such as -s rollout.images_per_prompt=4."
        )
    if config.objective.divergence is not None and not needs.log_p_base:
        raise UserError(
            f"objective.beta = {config.objective.beta!r} is a divergence from the base model, "
            f"which objective '{name}' does not keep as its prior: set it to a number, or use rtb "
            f"or residual-db."
        )
    if config.objective.divergence is not None:
        _check_divergence(config, config.objective.divergence, needs, prompts)


def _check_divergence(
    config: Config, divergence: float, needs: Needs, prompts: Sequence[Prompt]
) -> None:
    """Raise UserError if the first epoch's images cannot show so large a divergence."""
    rollout, beta = config.rollout, config.objective.beta
    if rollout.images_per_prompt < 2 and len(prompts) > 1:
        raise UserError(
            f"objective.beta = {beta!r} is found from several images of each prompt: set "
            f"rollout.images_per_prompt to 8 or more."
        )
    others = sum(off_policy(config, False, bool(config.replay.images), needs.groups))
    count, together = rollout.samples_per_epoch - others, rollout.images_per_prompt
    drawn = Counter(p.text for p in draw_prompts(prompts, config.seed, 0, count, together))
    most = fmean(math.log(images) for images in drawn.values())
    if divergence >= most:
        raise UserError(
            f"objective.beta = {beta!r}: the first epoch's {count} images of {len(drawn)} "
            f"prompt{'s' * (len(drawn) > 1)} can show {most:.2f} nats at most; ask for less, or "
            f"raise rollout.images_per_prompt or, with one prompt, rollout.samples_per_epoch."
        )


def _check_processes(config: Config, processes: Processes) -> None:
    """Raise UserError if some process would have no trajectory."""
    samples = config.rollout.samples_per_epoch
    if samples < processes.size:
        raise UserError(
            f"rollout.samples_per_epoch = {samples} leaves nothing to do for "
            f"{processes.size - samples} of {processes.size} processes."
        )
    if config.machine.shard and config.rollout.potential == "current":
        raise UserError(
            "machine.shard: with potential = 'current' each process runs the model when it needs "
            "to, but all processes must run a sharded model together: use 'rollout' or 'none'."
        )


def require_same_prompts(run: Run) -> None:
    """Raise UserError in all processes if they hold different prompts."""
    found = run.processes.share(lambda: (digest(run.prompts), digest(run.heldout)))
    if len(set(found)) > 1:
        raise UserError(
            f"prompts '{run.config.prompts.name}': the processes of this run got different "
            f"prompts, or the same in another order. The source must sort what comes from a set "
            f"or a folder, and draw at random only from a seed that is an option."
        )


@contextmanager
def _unchanged() -> Iterator[None]:
    """Restore torch's global state, whatever a plugin does to it inside this context."""
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)


def _check_objective(name: str, objective: object) -> None:
    """Raise PluginError for an object that is not an objective."""
    needs = getattr(objective, "needs", None)
    if not isinstance(needs, Needs):
        raise PluginError(f"objective '{name}' has no `needs`; expected a dagflow.Needs")
    if not callable(objective):
        kind = type(objective).__name__
        raise PluginError(f"objective '{name}' is {kind}, which is not callable")
    for module, is_due in (("flow", needs.log_flow), ("log_z", needs.log_z)):
        if is_due and not hasattr(objective, module):
            raise PluginError(f"objective '{name}' needs {module} but has no module `{module}`")


def _reward_makers(
    tables: Mapping[str, RewardTable], registry: Registry
) -> dict[str, Callable[[], Any]]:
    return {
        label: maker_of(registry, "reward", table.name or label, table)
        for label, table in tables.items()
    }


def _build(
    tables: Mapping[str, RewardTable], makers: Mapping[str, Callable[[], Any]], device: torch.device
) -> tuple[WeightedReward, ...]:
    built = {}
    for label in tables:
        with _unchanged():
            reward = makers[label]()
            if not callable(reward):
                raise PluginError(
                    f"reward '{label}': its factory returned {type(reward).__name__}; expected "
                    f"something to call with images and prompts"
                )
            built[label] = place(reward, device)
    return tuple(weighted(label, built[label], table) for label, table in tables.items())


def weighted(label: str, reward: Reward, table: RewardTable) -> WeightedReward:
    return WeightedReward(
        label,
        reward,
        table.weight,
        normalise_epochs=table.normalise_epochs,
        background=_background(label, reward),
        overlaps=hasattr(reward, "concurrency"),
        timeout=None if getattr(reward, "own_timeout", False) else table.timeout,
    )


def _background(label: str, reward: Reward) -> Background:
    """The threads that call the reward: one, unless it says otherwise."""
    concurrency = getattr(reward, "concurrency", 1)
    if type(concurrency) is not int or concurrency < 1:
        raise PluginError(
            f"reward '{label}' has concurrency = {concurrency!r}; expected a whole number from 1"
        )
    return Background(concurrency)


def load_prompts(config: Config, registry: Registry) -> tuple[PromptSource, tuple[Prompt, ...]]:
    """The prompt source of a run, and its training prompts."""
    table = config.prompts
    name, colon, path = table.name.partition(":")
    if colon:
        table = table.model_copy(update={"path": path})
    source: PromptSource = maker_of(registry, "prompts", name, table)()
    return source, as_prompts(name, source)


def maker_of(registry: Registry, kind: Kind, name: str, table: OpenTable) -> Callable[..., Any]:
    """`Registry.maker` for what a table of the configuration names, with the options there."""
    return registry.maker(kind, name, table.options, beside=type(table).model_fields)
