"""The values that a run passes from stage to stage, and the three things a plugin can provide.

Records are frozen and have no logic. Shapes: B trajectories or transitions, T steps, C x H x W
latents, D = C * H * W latent values, L tokens of width E.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

LogDensity = Literal["mean", "sum"]
RESERVED_METRICS = frozenset({
    "alarm", "beta", "epoch", "flow_grad_norm", "gain", "log_ratio", "loss", "policy_grad_norm",
    "regulariser", "reward_calls", "reward_mean", "reward_std", "skipped", "update", "warm_up",
})  # fmt: skip
"""Names that the engine logs itself; no metric of an objective may have one."""
Potential = Literal["rollout", "current", "none"]


@dataclass(frozen=True)
class Prompt:
    """A text to draw, and what its source knows about it (a reward may read `metadata`)."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicySpec:
    """What an objective may know about the policy before it builds its own networks."""

    latent_channels: int  # C
    cross_attention_dim: int  # E, the width of prompt_embeds
    latent_size: tuple[int, int] = (64, 64)  # (H, W)


@dataclass(frozen=True)
class Needs:
    """What an objective asks the engine to compute; the engine computes that and nothing else."""

    log_flow: bool = False  # log F at both ends; the objective then has a module `flow`
    log_pb: bool = False  # log q(x_t | x_s), the noising process
    potentials: bool = False  # rewards of intermediate states (forward-looking flow)
    rewards: bool = False  # the reward and the number of each transition's trajectory
    window: bool = False  # the numbers of the whole accumulation window, in `Transitions.window`
    log_p_base: bool = False  # log p(x_next | x) of the frozen base model
    trajectories: bool = False  # whole trajectories, a window's all at once, and log_p0
    log_z: bool = False  # log Z of each trajectory's prompt; the objective has a module `log_z`
    groups: bool = False  # several trajectories for each prompt
    on_policy: bool = False  # wrong for trajectories that the policy did not just sample


@dataclass(frozen=True)
class Trajectories:
    """The result of a rollout, float32; noise_pred and prompt_embeds in the network's dtype.

    It is on the policy's device, or in main memory with `machine.offload`.
    """

    prompts: tuple[Prompt, ...]  # B
    latents: Tensor  # (B, T+1, C, H, W), from noise to the terminal state
    log_pf: Tensor  # (B, T), log p(x_next | x) under the sampling network
    noise_pred: Tensor  # (B, T, C, H, W), that network's guided prediction
    prompt_embeds: Tensor  # (B, L, E)
    images: Tensor  # (B, 3, height, width) in [0, 1], decoded from the terminal state
    index: Tensor  # (B,) int64, each one's number in its epoch, unique across processes
    log_p_base: Tensor | None = None  # (B, T), log p(x_next | x) under the base, if needed


@dataclass(frozen=True)
class Transitions:
    """Numbers of B transitions x -> x_next, as an objective sees them, float32, each (B,).

    Log-densities are means or sums over the D latent values; `scale` is 1 or D accordingly.
    Fields that `needs` does not declare are None. `trajectory` and `prompt` are int64 labels with
    no other meaning: equal numbers mean the same trajectory, or the same prompt text.

    With `needs.trajectories` these are B whole trajectories: values per transition are (B, T) in
    the order of time, values per trajectory are (B,), and so is the loss.
    """

    log_pf: Tensor  # a leaf: the engine back-propagates d loss / d log_pf through the network
    log_pf_old: Tensor  # under the sampling network
    log_pb: Tensor | None  # log q(x | x_next)
    log_flow: Tensor | None  # log F(x), with gradient to the objective's own parameters
    log_flow_next: Tensor | None  # log F(x_next); at the last state beta * reward
    beta: float  # inverse temperature at this update
    final_beta: float  # its value after annealing
    scale: float
    window: Transitions | None = None  # all transitions of this optimizer step, without gradient
    log_reward: Tensor | None = None  # beta * reward of the trajectory's image
    trajectory: Tensor | None = None  # which trajectory of the epoch it belongs to
    prompt: Tensor | None = None  # which prompt that trajectory was drawn for
    log_p_base: Tensor | None = None  # log p(x_next | x) of the frozen base model
    log_p0: Tensor | None = None  # log-density of the first state under the standard normal
    log_z: Tensor | None = None  # with gradient to the objective's own parameters


class Reward(Protocol):
    """Any callable that scores images; higher is better.

    images: float32 (B, 3, height, width) in [0, 1]; prompts: B of them. Returns (B,), finite.
    The engine moves an `nn.Module` to the device, freezes it and puts it in eval mode. It calls a
    method `open_log(folder: Path)`, if there is one, with the run's directory when the run begins.
    A reward with an int `concurrency` is called from other threads while sampling continues, at
    most that many calls at a time. Every reward must answer within `timeout`, except one whose
    `own_timeout` is true: that one enforces its own.
    """

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor: ...


class Objective(Protocol):
    """A function of a batch, never a trainer: loss per item (B,) and metrics to log.

    An objective that learns is an `nn.Module`: the engine optimises its parameters with
    `update.flow_learning_rate` and saves them. With `needs.log_flow` it has a module `flow`:
    (latents (B, C, H, W), timesteps (B,), prompt_embeds (B, L, E)) -> (B,), and with
    `needs.log_z` a module `log_z`: prompt_embeds (B, L, E) -> (B,).
    """

    needs: Needs

    def __call__(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]: ...


class FlowObjective(Objective, Protocol):
    """An objective that declares `needs.log_flow`."""

    flow: nn.Module


class PartitionObjective(Objective, Protocol):
    """An objective that declares `needs.log_z`."""

    log_z: nn.Module


PromptSource = Sequence["Prompt | str"]

RewardFactory = Callable[..., Reward]
PromptSourceFactory = Callable[..., PromptSource]
ObjectiveFactory = Callable[..., Objective]
