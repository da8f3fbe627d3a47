"""Which charts a page has, under which headings, and where their numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from dagflow.glossary import explain
from dagflow.page.read import Record, RunData, number

Source = Callable[[RunData], list[tuple[float, float, float]]]  # x, value, half of the band
SPREAD = "The band is one standard deviation of the epoch's steps."
SINGLE = "The band is one standard deviation of single images."
STATISTICS = ("brightness", "saturation", "colour_entropy", "edge_density", "jpeg_kb")
INSIDE = (
    "beta", "temperature.slope", "temperature.log_z", "temperature.ess", "log_z_learned",
    "log_z_group", "residual", "log_ratio", "clip_fraction", "advantage_abs", "regulariser",
    "policy_grad_norm", "flow_grad_norm", "skipped",
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """One line of each run in a chart."""

    key: str
    source: Source


@dataclass(frozen=True)
class Plan:
    """A chart to draw if any run has data for it."""

    title: str
    measures: tuple[Measure, ...]
    note: str = ""
    band: str = ""  # what a band means, if there is one
    guide: float | None = None
    alarm: str = ""  # the statistic whose alarms belong to this chart


def of_epoch(key: str, spread: str = "", shift: int = 0, is_error: bool = False) -> Measure:
    """A number from epochs' records, with another as its band; a standard error makes it 95 %."""

    def source(run: RunData) -> list[tuple[float, float, float]]:
        found, times = [], run.look_errors if is_error else 1.0
        for record in run.epochs:
            value, half = number(record.get(key)), number(record.get(spread)) or 0.0
            if value is not None:
                found.append((float(record["epoch"] + shift), value, times * half))
        return found

    return Measure(key, source)


def of_steps(key: str) -> Measure:
    """Mean and deviation of a number over each epoch's steps, in the middle of the epoch."""

    def source(run: RunData) -> list[tuple[float, float, float]]:
        values: dict[int, list[float]] = {}
        for record in run.steps:
            value = number(record.get(key))
            if value is not None and "epoch" in record:
                values.setdefault(int(record["epoch"]), []).append(value)
        return [
            (epoch - 0.5, fmean(found), stdev(found) if len(found) > 1 else 0.0)
            for epoch, found in values.items()
        ]

    return Measure(key, source)


def of_timings(key: str) -> Measure:
    def source(run: RunData) -> list[tuple[float, float, float]]:
        pairs = [(line.get("epoch"), number(line.get(key))) for line in run.timings]
        return [(epoch - 0.5, v, 0.0) for epoch, v in pairs if epoch is not None and v is not None]

    return Measure(key, source)


def plans(runs: Sequence[RunData]) -> Iterator[tuple[str, list[Plan]]]:
    """Headings, and the charts under each."""
    stages = _keys(runs, lambda run: run.timings, lambda key: key.endswith("_seconds"))
    seconds = tuple(of_timings(key) for key in stages)
    yield "Reward", [*_reward_plans(), *_label_plans(runs)]
    yield "Diversity", _held_out("diversity", "vendi")
    yield "Drift from the base model", _held_out("drift.kl", "drift.noise_pred", "drift.latents")
    yield "What the images look like", _held_out(*STATISTICS)
    yield "Inside training", _inside_plans(runs)
    yield "Time", [Plan("Seconds in each epoch", seconds, "How long each part of an epoch took.")]


def _held_out(*names: str) -> list[Plan]:
    return [
        Plan(name_of(f"held_out.{name}"), (of_epoch(f"held_out.{name}"),), alarm=name)
        for name in names
    ]


def _reward_plans() -> list[Plan]:
    return [
        Plan(
            "Reward",
            (
                of_epoch("held_out.reward_mean", "held_out.reward_std"),
                of_epoch("reward_mean", "reward_std", shift=-1),
            ),
            "An epoch's training images are sampled before its updates, so they are shown one "
            "epoch earlier.",
            SINGLE,
        ),
        Plan(
            "Change over the base model",
            (of_epoch("held_out.reward_change", "held_out.reward_change_error", is_error=True),),
            "From the same prompts and noise.",
            "The band is the 95 % interval of the mean; while it contains 0, chance alone could "
            "explain the change.",
            guide=0.0,
        ),
        Plan(
            "Win rate",
            (of_epoch("held_out.win_rate"),),
            "The line at 0.5 is no change.",
            guide=0.5,
        ),
        Plan(
            "Loss",
            (of_steps("loss"),),
            "Mean over the steps of each epoch. It need not fall when training goes well.",
            SPREAD,
        ),
    ]


def _label_plans(runs: Sequence[RunData]) -> list[Plan]:
    """With more than one reward: a chart of each, and of how they pull together or apart."""
    labels = [
        label
        for run in runs
        for label in (*run.rewards, *run.table("evaluate", "rewards"))
    ]  # fmt: skip
    labels = list(dict.fromkeys(labels))
    if len(labels) < 2:
        return []
    plans = [
        Plan(
            f"Reward {label}",
            (
                of_epoch(f"held_out.rewards.{label}"),
                of_epoch(f"rewards.{label}.mean", f"rewards.{label}.std", shift=-1),
                of_epoch(f"eval_rewards.{label}.mean", f"eval_rewards.{label}.std", shift=-1),
            ),
            "Without its weight.",
            SINGLE,
        )
        for label in labels
    ]
    pairs = _keys(runs, lambda run: run.epochs, lambda key: key.startswith("correlation."))
    shares = tuple(of_epoch(f"rewards.{label}.share", shift=-1) for label in labels)
    several = any(len(run.rewards) > 1 for run in runs)
    return [
        *plans,
        *([Plan("Shares of the rewards", shares, guide=0.0)] if several else []),
        *(Plan(name_of(key), (of_epoch(key, shift=-1),), guide=0.0) for key in pairs),
    ]


def _inside_plans(runs: Sequence[RunData]) -> list[Plan]:
    """Charts of the usual step metrics, and of whatever else an objective logs."""
    usual = {"epoch", "update", "loss", *INSIDE}
    others = _keys(runs, lambda run: run.steps, lambda key: key not in usual)
    return [
        Plan(
            name_of(key),
            (of_epoch(key, shift=-1) if key.startswith("temperature.") else of_steps(key),),
            band=SPREAD,
        )
        for key in (*INSIDE, *others)
    ]


def _keys(
    runs: Sequence[RunData],
    records: Callable[[RunData], Sequence[Record]],
    wanted: Callable[[str], bool],
) -> list[str]:
    """The wanted keys, in the order of their first appearance."""
    every = (key for run in runs for record in records(run) for key in record)
    return [key for key in dict.fromkeys(every) if wanted(key)]


def name_of(key: str) -> str:
    term = explain(key)
    return term.name if term else key
