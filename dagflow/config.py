"""The whole configuration as one typed tree, from TOML and `key.path=value` overrides."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from dagflow.errors import UserError, did_you_mean
from dagflow.files import require_text
from dagflow.types import LogDensity, Potential

Tracker = Literal["tensorboard", "trackio", "wandb"]
AUTO = re.compile(r"auto:KL=([0-9]*\.?[0-9]+)")


class Table(BaseModel):
    """A table of the configuration; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class OpenTable(Table):
    """A plugin's table: keys that are not named here are options of the plugin itself."""

    model_config = ConfigDict(
        extra="allow", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class RewardTable(OpenTable):
    name: str = ""
    """The reward's name; defaults to the table's label."""
    weight: float = 1.0
    """The total reward is the weighted sum of all rewards."""
    normalise_epochs: int = Field(0, ge=0)
    """Standardise by the running mean and deviation, frozen after this many epochs; 0: do not."""
    timeout: float = Field(600.0, gt=0)
    """Seconds to wait for an answer before it is an error; remote rewards have their own."""


class ObjectiveTable(OpenTable):
    name: str = "kl"
    """`db` (detailed balance), `kl`, `tb`, `rtb`, ... or any installed objective."""
    beta: float | str = 100.0
    """Inverse temperature of exp(beta * reward), see log_density; or "auto:KL=nats"."""
    anneal: float = Field(0.5, ge=0)
    """beta rises linearly from 0 over this fraction of all updates; above 1, past the last one."""
    log_density: LogDensity = "mean"
    """`mean` over the latent values, as in the authors' code, or the exact `sum`."""

    @field_validator("beta", mode="before")
    @classmethod
    def _beta_is_known_or_found(cls, value: object) -> object:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        known = number and 0 <= cast(float, value) < math.inf
        if not known and not (isinstance(value, str) and AUTO.fullmatch(value)):
            raise ValueError(f"{value!r} is neither a number >= 0 nor of the form auto:KL=2.5")
        return value

    @property
    def divergence(self) -> float | None:
        """KL(target || base) in nats from which to find beta; None if beta is given."""
        found = AUTO.fullmatch(self.beta) if isinstance(self.beta, str) else None
        return float(found[1]) if found else None


class PromptsTable(OpenTable):
    name: str = "animals"
    """`animals`, `texts`, `file:PATH`, or any installed prompt source."""


class RolloutTable(Table):
    samples_per_epoch: PositiveInt = 64
    """Trajectories drawn in each epoch."""
    images_per_prompt: PositiveInt = 1
    """Consecutive trajectories that share a prompt; must divide samples_per_epoch."""
    batch_size: PositiveInt = 32
    """Trajectories sampled together; affects only memory and speed."""
    num_inference_steps: PositiveInt = 20
    """T, the length of a trajectory."""
    guidance_scale: float = Field(5.0, ge=0)
    """w in e_uncond + w (e_text - e_uncond)."""
    potential: Potential = "rollout"
    """The network whose x0hat gives intermediate rewards: `rollout`, `current` or `none`."""
    potential_steps: int = Field(0, ge=0)
    """How many states of a trajectory get one, evenly spaced up to the last; 0: all."""
    preview_decoder: str = ""
    """AutoencoderTiny that decodes x0hat for them: `tiny` (embedded), a folder or a hub id."""

    def potential_states(self, steps: int) -> tuple[int, ...]:
        """Which of the T = `steps` states before the last have a potential."""
        if self.potential == "none":
            return ()
        count = min(self.potential_steps or steps, steps)
        return tuple((k + 1) * steps // count - 1 for k in range(count))

    @model_validator(mode="after")
    def _groups_are_whole(self) -> RolloutTable:
        if self.samples_per_epoch % self.images_per_prompt:
            raise ValueError(
                f"images_per_prompt = {self.images_per_prompt} does not divide "
                f"samples_per_epoch = {self.samples_per_epoch}"
            )
        return self


class UpdateTable(Table):
    batch_size: PositiveInt = 256
    """Transitions in one optimizer step."""
    microbatch_size: PositiveInt = 64
    """Transitions that pass through the network together; affects only memory and speed."""
    timestep_fraction: float = Field(1.0, gt=0, le=1)
    """Share of each trajectory's steps to train on; whole-trajectory objectives use all."""
    learning_rate: float = Field(3e-4, gt=0)
    """AdamW's learning rate for the policy's LoRA."""
    flow_learning_rate: float = Field(3e-4, gt=0)
    """AdamW's learning rate for the objective's own parameters (the flow network)."""
    weight_decay: float = Field(1e-4, ge=0)
    """AdamW's weight decay for both."""
    flow_warmup: int = Field(0, ge=0)
    """Updates of the flow network alone, on the first epoch's trajectories, before all others."""
    flow_from_data: bool = True
    """Start log F and log Z where the first epoch's trajectories balance on average, not at 0."""
    decay: float = Field(0.0, ge=0, le=1)
    """Both learning rates fall linearly to zero over this last fraction of all updates."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which the gradient of each of the two parameter groups is clipped."""
    skip_limit: int = Field(3, ge=0)
    """How many steps in a row may be skipped because a loss or gradient is not finite."""
    regulariser: float = Field(1.0, ge=0)
    """Coefficient of the mean squared distance to the rollout network's guided prediction."""


class ReplayTable(Table):
    share: float = Field(0.0, ge=0, lt=1)
    """Share of each epoch's trajectories taken from the best so far (off-policy)."""
    backward: float = Field(0.0, ge=0, lt=1)
    """Share that is noised anew, backward from the best images so far or from `images`."""
    capacity: PositiveInt = 256
    """How many trajectories are kept."""
    per_prompt: PositiveInt = 32
    """How many of them, at most, for one prompt."""
    images: str = ""
    """Folder of pictures and metadata.jsonl (file_name, text) that `backward` starts from."""

    @model_validator(mode="after")
    def _some_is_sampled(self) -> ReplayTable:
        if self.share + self.backward >= 1:
            raise ValueError(
                f"share + backward = {self.share + self.backward:g} leaves nothing to sample"
            )
        return self


class LoraTable(Table):
    rank: PositiveInt = 4
    """Rank of the update matrices."""
    alpha: PositiveInt = 4
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the layers to adapt."""


class MachineTable(Table):
    """How the machine is used. Affects no numbers, except by rounding."""

    compile: bool = False
    """torch.compile the UNet, the decoders and the flow network; needs a C++ compiler."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    vae_slicing: bool = False
    """Decode images one at a time."""
    offload: bool = False
    """Keep an epoch's trajectories in main memory, and only one update's on the device."""
    shard: bool = False
    """Shard the frozen UNet across the processes (FSDP2), if one device cannot hold it."""
    deterministic: bool = False
    """Same numbers in every run on a GPU, with slower kernels; fails on operators without one."""
    patience: float = Field(1800.0, gt=0)
    """Seconds after which a process gives up on another that does not answer."""


class CheckpointTable(Table):
    every: PositiveInt = 1
    """Epochs between checkpoints; the last epoch always has one."""
    keep: PositiveInt = 2
    """How many of the newest checkpoints to keep."""
    keep_best: bool = True
    """Also keep the one whose training images had the highest mean reward."""


class EvaluateTable(Table):
    images: int = Field(64, ge=0)
    """Images from held-out seeds, before and after training, paired by seed; 0 for none."""
    every: PositiveInt = 1
    """Epochs between looks at held-out seeds, with the same prompts and noise every time."""
    watched: int = Field(32, ge=0)
    """How many images are measured at each look, at least `grid`; 0: none."""
    images_per_prompt: PositiveInt = 4
    """How many of them share a prompt; diversity needs 2."""
    grid: int = Field(16, ge=0)
    """How many of them, from the first, a picture shows; 0 for no pictures."""
    features: str = "pixels"
    """Features that diversity is measured in: `pixels`, `dino`, `clip`, a folder or a hub id."""
    rewards: dict[str, RewardTable] = Field(default_factory=dict)
    """[evaluate.rewards.LABEL] rewards that are measured but never trained on."""


class AlarmsTable(Table):
    """Signs, at a look, that the reward is being fooled. They may end a run."""

    action: Literal["off", "warn", "stop", "roll-back"] = "warn"
    """`stop` ends the run; `roll-back` also returns to the last checkpoint before the alarm."""
    diversity: float = Field(0.6, gt=0)
    """Share of the base model's diversity that may be lost while the reward rises."""
    looks: float = Field(2.0, gt=0)
    """Deviations by which brightness, edges, ... may move beyond what the reward explains."""


class TrackingTable(Table):
    """Trackers that also receive what the run logs. Affects no numbers."""

    trackers: tuple[Tracker, ...] = ()
    """Any of `tensorboard`, `trackio`, `wandb`."""
    project: str = Field("dagflow", min_length=1)
    """Project in which trackio and wandb keep the run."""


class Config(Table):
    """One run, with everything that decides its numbers."""

    epochs: PositiveInt = 10
    """Rounds of rollout and update."""
    stop_at_gain: float = Field(0.0, ge=0)
    """Stop before an epoch with mean reward this many deviations above the first's; 0: never."""
    reward_budget: int = Field(0, ge=0)
    """The most images to ask rewards about in training: sets `epochs`. 0: `epochs` holds."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Decides prompts, noise and initial weights."""
    model: str = "tiny"
    """`tiny` (embedded), a folder of a diffusers pipeline, a hub id, `ddpm:...`, `world:NAME`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the frozen network: auto is bfloat16 on CUDA, float32 elsewhere."""
    output: str = ""
    """The run directory; defaults to a new one under runs/."""
    rewards: dict[str, RewardTable] = Field(default_factory=dict)
    """[rewards.LABEL] name, weight and options of each reward."""
    objective: ObjectiveTable = ObjectiveTable()
    prompts: PromptsTable = PromptsTable()
    rollout: RolloutTable = RolloutTable()
    update: UpdateTable = UpdateTable()
    replay: ReplayTable = ReplayTable()
    lora: LoraTable = LoraTable()
    machine: MachineTable = MachineTable()
    checkpoint: CheckpointTable = CheckpointTable()
    evaluate: EvaluateTable = EvaluateTable()
    alarms: AlarmsTable = AlarmsTable()
    tracking: TrackingTable = TrackingTable()

    @model_validator(mode="after")
    def _an_epoch_holds_a_batch(self) -> Config:
        samples, steps = self.rollout.samples_per_epoch, self.rollout.num_inference_steps
        if self.update.batch_size > samples * steps:
            raise ValueError(
                f"update.batch_size = {self.update.batch_size} is more than the "
                f"{samples * steps} transitions of an epoch (samples_per_epoch = "
                f"{samples} x {steps} steps)"
            )
        return self

    @model_validator(mode="after")
    def _alarms_have_something_to_see(self) -> Config:
        if self.alarms.action in ("stop", "roll-back") and not self.evaluate.watched:
            raise ValueError(
                f"alarms.action = '{self.alarms.action}' needs evaluate.watched of 1 or more"
            )
        return self

    @property
    def steps_per_trajectory(self) -> int:
        """How many steps of each trajectory training uses."""
        return max(1, round(self.rollout.num_inference_steps * self.update.timestep_fraction))

    @property
    def transitions_per_epoch(self) -> int:
        return self.rollout.samples_per_epoch * self.steps_per_trajectory

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps in an epoch; batches are evened out, never smaller than batch_size."""
        return self.transitions_per_epoch // self.update.batch_size

    def beta(self, update: int, per_epoch: int | None = None) -> float:
        """The inverse temperature at an update, counted from 0, after linear annealing.

        `per_epoch`: updates in an epoch, by default `updates_per_epoch`.
        """
        rise = self.objective.anneal * self.epochs * (per_epoch or self.updates_per_epoch)
        return self.final_beta * (min(1.0, update / rise) if rise else 1.0)

    def rate(self, update: int, per_epoch: int) -> float:
        """The factor of both learning rates at an update, counted from 0."""
        updates = self.epochs * per_epoch
        fall = self.update.decay * updates
        return min(1.0, (updates - update) / fall) if fall else 1.0

    @property
    def final_beta(self) -> float:
        """beta after annealing. It must be known: see `with_beta`."""
        assert not isinstance(self.objective.beta, str)
        return self.objective.beta

    def with_beta(self, beta: float) -> Config:
        """The same configuration with another beta."""
        objective = self.objective.model_copy(update={"beta": beta})
        return self.model_copy(update={"objective": objective})


def override(tree: dict[str, Any], assignments: Iterable[str]) -> None:
    """Apply `key.path=value` assignments to a tree, in place.

    A value is read as TOML (`3`, `0.1`, `true`, `[1, 2]`, `"text"`), otherwise as plain text.
    Raises UserError for an assignment without `=`, or a path through something that is not a table.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise UserError(f"'{assignment}' is not of the form key.path=value.")
        *tables, key = (part.strip() for part in path.split("."))
        place = tree
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise UserError(f"'{path}': '{table}' is a value, not a table.")
        place[key] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def resolve(tree: Mapping[str, Any]) -> Config:
    """Check a tree and fill in defaults. Raises UserError with a line for each mistake."""
    require_text("", tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise UserError("\n".join(lines)) from None


def _explain(detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    path = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return (
            f"there is no setting '{path}'.{did_you_mean(location[-1], known)} "
            f"Known here: {', '.join(known)}."
        )
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("a valid tuple", 'a list, such as ["one", "two"]')
    if detail["type"] == "value_error":
        return f"{path}: {message}." if path else f"{message}."
    return f"{path} = {detail['input']!r}: {message[0].lower()}{message[1:]}."


def _known_keys(tables: list[str]) -> list[str]:
    model: type[BaseModel] = Config
    for table in tables:
        annotation = model.model_fields[table].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)
