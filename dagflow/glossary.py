"""The name and meaning of every number that a run writes, for pages and documentation alike.

Keys may hold words in capitals that stand for any text: LABEL and OTHER for rewards, STATISTIC
for what is measured of images, MODEL for `base`, `trained` or `reference`, STAGE for a part of an
epoch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Better = Literal["higher", "lower", ""]

REWARD_UNIT = "the reward's own"


@dataclass(frozen=True)
class Term:
    """A number, or a word needed to understand one."""

    name: str  # what people say
    meaning: str  # plain sentences
    unit: str = ""
    better: Better = ""  # empty if neither is, or it depends


STEP: dict[str, Term] = {
    "epoch": Term("Epoch", "A round of sampling and updates, counted from 1; 0 is the base model."),
    "update": Term("Update", "An optimizer step, counted from 1 over the whole run."),
    "warm_up": Term(
        "Warm-up step",
        "A step before the first update that trains only the objective's own parameters, on the "
        "first epoch's samples.",
    ),
    "beta": Term(
        "beta",
        "Inverse temperature at this step: the target is exp(beta x reward). Higher values ask for "
        "better images and less variety.",
    ),
    "loss": Term(
        "Loss",
        "Mean of the objective's loss. Its target moves with the policy and as beta rises, so it "
        "need not fall when training goes well; for kl it may be negative.",
    ),
    "residual": Term(
        "Residual",
        "Mean of delta, the amount by which the balance condition is missed. Zero at balance, but "
        "errors of opposite sign cancel.",
    ),
    "clip_fraction": Term(
        "Clipped share",
        "Share of transitions whose importance ratio has left 1 +- clip, so that moving it further "
        "out gains nothing. Near 1, most of the epoch's samples are stale.",
        "share",
        "lower",
    ),
    "log_z_learned": Term(
        "Learned log Z",
        "Mean of the objective's own estimate of log Z, on the scale of log_density: with mean, "
        "per latent value.",
        "nats",
    ),
    "log_z_group": Term(
        "Group log Z",
        "Mean estimate of log Z from the trajectories of one prompt, on the scale of log_density: "
        "with mean, per latent value.",
        "nats",
    ),
    "advantage_abs": Term("Size of the advantage", "Mean absolute advantage of a trajectory."),
    "log_ratio": Term(
        "Log ratio",
        "Mean of log p - log p_old per latent value: how far the policy has moved since the "
        "epoch's images were sampled. 0 in an epoch's first step, up to rounding.",
        "nats per latent value",
    ),
    "regulariser": Term(
        "Regulariser",
        "Mean squared difference between the noise predictions of the current and the sampling "
        "network, without its coefficient.",
    ),
    "policy_grad_norm": Term(
        "Gradient norm, policy",
        "Norm of the policy's gradient before it is clipped to update.max_grad_norm.",
    ),
    "flow_grad_norm": Term(
        "Gradient norm, flow",
        "Norm of the gradient of the objective's own parameters (flow network or log Z) before it "
        "is clipped.",
    ),
    "skipped": Term(
        "Skipped step",
        "How many steps in a row were skipped because a loss or gradient was not finite.",
        "steps",
        "lower",
    ),
}

EPOCH: dict[str, Term] = {
    "reward_mean": Term(
        "Reward in training",
        "Mean total reward of the epoch's images, which are sampled before its updates. Prompts "
        "and noise differ from epoch to epoch.",
        REWARD_UNIT,
        "higher",
    ),
    "reward_std": Term(
        "Deviation of the reward",
        "Standard deviation of the total reward over the epoch's images, not of their mean.",
        REWARD_UNIT,
    ),
    "rewards.LABEL.mean": Term(
        "Reward {LABEL}",
        "Mean of this reward over the epoch's images, without its weight.",
        REWARD_UNIT,
        "higher",
    ),
    "rewards.LABEL.std": Term(
        "Deviation of {LABEL}", "Its standard deviation over the epoch's images.", REWARD_UNIT
    ),
    "rewards.LABEL.share": Term(
        "Share of {LABEL}",
        "How much of the spread of the total reward comes from this one. Shares add up to 1; a "
        "reward that pulls against the others has a negative share.",
        "share",
    ),
    "rewards.LABEL.effective_beta": Term(
        "Effective beta of {LABEL}", "beta times the weight that this reward had in the epoch."
    ),
    "eval_rewards.LABEL.mean": Term(
        "Measured {LABEL}",
        "Mean over the epoch's images of a reward that is never trained on.",
        REWARD_UNIT,
        "higher",
    ),
    "eval_rewards.LABEL.std": Term(
        "Deviation of measured {LABEL}",
        "Its standard deviation over the epoch's images.",
        REWARD_UNIT,
    ),
    "correlation.LABEL.OTHER": Term(
        "Correlation of {LABEL} and {OTHER}",
        "Correlation of what two rewards add to the total: below 0, they pull against each other.",
        "-1 to 1",
    ),
    "temperature.slope": Term(
        "Slope",
        "Slope of an image's log-density against its reward, within prompts. It reaches beta (in "
        "nats, for the summed log-density) when samples are in proportion to exp(beta x reward).",
        "nats per unit of reward",
    ),
    "temperature.log_z": Term(
        "log Z",
        "Estimate of the log of the target's total mass for a prompt, from the samples of one "
        "epoch. Only its changes mean anything.",
        "nats",
    ),
    "temperature.ess": Term(
        "Effective samples",
        "Effective share of the samples once they are weighted towards the target: 1 at best, one "
        "divided by the number of a prompt's images at worst.",
        "share",
        "higher",
    ),
    "gain": Term(
        "Gain",
        "How far the mean reward in training is above that of the first epoch, in standard "
        "deviations of the first epoch's rewards.",
        "deviations",
        "higher",
    ),
}

HELD_OUT: dict[str, Term] = {
    "held_out.reward_mean": Term(
        "Reward, held out",
        "Mean total reward of images from noise that training never uses and, if the prompt source "
        "holds some back, from prompts that it never uses. They are the same every time.",
        REWARD_UNIT,
        "higher",
    ),
    "held_out.reward_std": Term(
        "Deviation, held out",
        "Standard deviation of the total reward over the held-out images, not of their mean.",
        REWARD_UNIT,
    ),
    "held_out.reward_change": Term(
        "Change over the base model",
        "Mean difference in reward between the trained model's and the base model's image from the "
        "same prompt and noise.",
        REWARD_UNIT,
        "higher",
    ),
    "held_out.reward_change_error": Term(
        "Error of the change",
        "Standard error of that mean difference: about 95 % of such measurements fall within two "
        "standard errors of the truth.",
        REWARD_UNIT,
        "lower",
    ),
    "held_out.win_rate": Term(
        "Win rate",
        "Share of held-out images whose reward beats that of the base model's image from the same "
        "noise; ties count half. 50 % is no change.",
        "share",
        "higher",
    ),
    "held_out.rewards.LABEL": Term(
        "{LABEL}, held out",
        "Mean of this reward over the held-out images, without its weight; training may use it or "
        "only measure it.",
        REWARD_UNIT,
        "higher",
    ),
    "held_out.diversity": Term(
        "Diversity",
        "Mean distance between two images of the same prompt, in the features that the run names "
        "(pixels: root mean square, 0 to 1). If it falls, images of a prompt are growing alike.",
        "distance",
        "higher",
    ),
    "held_out.vendi": Term(
        "Vendi score",
        "Effective number of different images of a prompt, from 1 (all alike) to the number "
        "compared.",
        "images",
        "higher",
    ),
    "held_out.brightness": Term("Brightness", "Mean luminance of the images.", "0 to 1"),
    "held_out.saturation": Term("Saturation", "Mean strength of the colours.", "0 to 1"),
    "held_out.colour_entropy": Term(
        "Colour entropy",
        "How evenly an image's pixels are spread over the colours; low for a few flat colours.",
        "bits",
    ),
    "held_out.edge_density": Term(
        "Edge density", "Share of an image's pixels that lie on an edge.", "share"
    ),
    "held_out.jpeg_kb": Term(
        "JPEG size", "Mean file size as a JPEG of quality 95.", "kilobytes of 1000 bytes"
    ),
    "held_out.drift.kl": Term(
        "KL from the base model",
        "Estimated Kullback-Leibler divergence of the trained model's sampling paths from the base "
        "model's. 0 is the base model; it grows without limit.",
        "nats",
    ),
    "held_out.drift.noise_pred": Term(
        "Drift of predictions",
        "Mean squared difference between the two models' guided noise predictions at the same "
        "states.",
    ),
    "held_out.drift.latents": Term(
        "Drift of latents",
        "Root mean square difference between the terminal latents that the two models reach from "
        "the same noise.",
    ),
}

ALARM: dict[str, Term] = {
    "epoch": STEP["epoch"],
    "alarm": Term(
        "Alarm",
        "A statistic of the images has left its usual range while the reward rose: a sign that the "
        "reward is being exploited. Look at the pictures.",
    ),
    "shift": Term(
        "Shift",
        "How far the mean of that statistic has moved, in standard deviations of the base model's "
        "images; of diversity, as a share of the base model's.",
        "deviations",
    ),
    "limit": Term(
        "Limit",
        "The shift, beyond what the reward explains, above which an alarm is raised.",
        "deviations",
    ),
    "gain": Term(
        "Gain, held out",
        "How far the held-out reward had risen, in deviations of the base model's images.",
        "deviations",
    ),
}

TIMINGS: dict[str, Term] = {
    "epoch": STEP["epoch"],
    "rollout_seconds": Term(
        "Rollout", "Time to sample the epoch's images and score intermediate ones.", "seconds"
    ),
    "score_seconds": Term("Score", "Time spent waiting for rewards after that.", "seconds"),
    "warm_up_seconds": Term("Warm-up", "Time to warm up the flow network.", "seconds"),
    "update_seconds": Term("Update", "Time for the epoch's optimizer steps.", "seconds"),
    "watch_seconds": Term(
        "Watch", "Time to draw and measure held-out images after the epoch.", "seconds"
    ),
    "grid_seconds": Term(
        "Grid", "The same for older runs, which drew images without measuring them.", "seconds"
    ),
    "STAGE_seconds": Term("{STAGE}", "Time for this part of the epoch.", "seconds"),
}

REPORT: dict[str, Term] = {
    "version": Term("Format", "Version of the format of report.json."),
    "dagflow": Term("dagflow", "Version of dagflow that wrote the report."),
    "model": Term("Model", "The base model."),
    "objective": Term("Objective", "What training minimises; it decides the target."),
    "seed": Term("Seed", "Decides prompts, noise and initial weights."),
    "ended": Term("Ended", "Whether the run had ended."),
    "reward_calls": Term(
        "Reward calls",
        "Number of images that rewards scored in training, including intermediate ones: a cost of "
        "the run that does not depend on the machine.",
        "images",
        "lower",
    ),
    "images": Term("Held-out images", "How many pairs of images were compared.", "images"),
    "checkpoint": Term("Checkpoint", "The checkpoint that was evaluated."),
    "prompts": Term("Prompts", "Prompt of each held-out image, in order."),
    "features": Term("Features", "Features in which diversity and distances are measured."),
    "reward.base": Term(
        "Reward, base", "Mean total reward of the base model's images.", REWARD_UNIT
    ),
    "reward.trained": Term(
        "Reward, trained",
        "Mean total reward of the trained model's images from the same noise.",
        REWARD_UNIT,
        "higher",
    ),
    "reward.standard_error_of_change": Term(
        "Standard error of the change",
        "Uncertainty of the mean change, from its spread over images.",
        REWARD_UNIT,
        "lower",
    ),
    "reward.interval": Term(
        "95 % interval",
        "A range that would contain the true mean change in 95 of 100 such measurements with other "
        "held-out noise. It says nothing about other training seeds.",
        REWARD_UNIT,
    ),
    "reward.win_rate": HELD_OUT["held_out.win_rate"],
    "rewards.LABEL.base": Term(
        "{LABEL}, base", "Mean of this reward over the base model's images.", REWARD_UNIT
    ),
    "rewards.LABEL.trained": Term(
        "{LABEL}, trained",
        "Mean of this reward over the trained model's images.",
        REWARD_UNIT,
        "higher",
    ),
    "rewards.LABEL.standard_error_of_change": Term(
        "Standard error, {LABEL}", "Uncertainty of the mean change of this reward.", REWARD_UNIT
    ),
    "rewards.LABEL.win_rate": Term(
        "Win rate, {LABEL}",
        "Share of images that this reward prefers to the base model's image from the same noise.",
        "share",
        "higher",
    ),
    "rewards.LABEL.trained_on": Term(
        "Trained on", "Whether training used this reward; one that it never used is a fairer judge."
    ),
    "per_image.MODEL": Term(
        "Rewards by image, {MODEL}",
        "Total reward of each held-out image, {MODEL} model.",
        REWARD_UNIT,
    ),
    "diversity.MODEL": Term(
        "Diversity, {MODEL}", HELD_OUT["held_out.diversity"].meaning, "distance", "higher"
    ),
    "vendi.MODEL": Term(
        "Vendi score, {MODEL}", HELD_OUT["held_out.vendi"].meaning, "images", "higher"
    ),
    "statistics.STATISTIC.base": Term("{STATISTIC}, base", "Mean over the base model's images."),
    "statistics.STATISTIC.trained": Term(
        "{STATISTIC}, trained", "Mean over the trained model's images."
    ),
    "statistics.STATISTIC.shift": Term(
        "Shift of {STATISTIC}",
        "Difference of the two means, in standard deviations of the base model's images: beyond "
        "about 1, the pictures look different.",
        "deviations",
    ),
    "drift.kl": HELD_OUT["held_out.drift.kl"],
    "drift.noise_pred": HELD_OUT["held_out.drift.noise_pred"],
    "drift.latents": HELD_OUT["held_out.drift.latents"],
    "from_base.fid": Term(
        "Fréchet distance",
        "Between trained and base images, as Gaussians in the features. With few images it grows "
        "by chance too, and it does not measure quality.",
    ),
    "from_base.kid": Term(
        "Kernel distance",
        "Between trained and base images in the features, not biased by their number; near or "
        "below 0, they cannot be told apart.",
    ),
    "ranked.MODEL": Term(
        "Best, median, worst", "Positions of the images with these rewards, {MODEL} model."
    ),
    "alarms": Term(
        "Alarms at the end", "Alarms that a look at the report's held-out images would have raised."
    ),
    "temperature.beta": Term("Final beta", STEP["beta"].meaning),
    "temperature.due": Term(
        "Target slope",
        "beta in nats, for the summed log-density: what the slope would be if samples were in "
        "proportion.",
        "nats per unit of reward",
    ),
    "temperature.slope": EPOCH["temperature.slope"],
    "temperature.log_z": EPOCH["temperature.log_z"],
    "temperature.ess": EPOCH["temperature.ess"],
    "distances.MODEL.total_variation": Term(
        "Total variation, {MODEL}",
        "Distance of the class frequencies from the exact target's, from 0 (equal) to 1. "
        "`reference` is a sampler that knows the target.",
        "0 to 1",
        "lower",
    ),
    "distances.MODEL.energy": Term(
        "Energy distance, {MODEL}",
        "Distance of whole samples from the exact target's; 0 for equal distributions.",
        "",
        "lower",
    ),
}

WORDS: dict[str, Term] = {
    "held-out": Term(
        "Held out",
        "From noise that training never uses, and where the prompt source holds some "
        "back, from prompts that it never uses; the same for all models.",
    ),
    "deviation": Term(
        "Deviation",
        "Standard deviation: about two thirds of single values lie within one of the mean.",
    ),
    "interval": REPORT["reward.interval"],
    "base": Term("Base model", "The model before training; every change is measured from it."),
    "nats": Term("Nats", "Unit of information and of log-densities: natural logarithms."),
}

GROUPS: Mapping[str, Mapping[str, Term]] = {
    "step": STEP,
    "epoch": EPOCH,
    "held_out": HELD_OUT,
    "alarm": ALARM,
    "timings": TIMINGS,
    "report": REPORT,
    "words": WORDS,
}
TITLES = {
    "step": "Of each optimizer step (metrics.jsonl)",
    "epoch": "Of each epoch (metrics.jsonl)",
    "held_out": "Of held-out images (metrics.jsonl)",
    "alarm": "Alarms (metrics.jsonl)",
    "timings": "Of each epoch (timings.jsonl)",
    "report": "At the end (report.json)",
    "words": "Words",
}


def explain(key: str, group: str = "") -> Term | None:
    """The term of a key such as `rewards.aesthetic.mean`, with labels filled in; None if unknown.

    Exact keys come before patterns. `group`, one of GROUPS, is searched first: `gain` means one
    thing in an epoch's record and another in an alarm's.
    """
    first = [GROUPS[group]] if group else []
    for terms in [*first, *GROUPS.values()]:
        if key in terms:
            return terms[key]
    for terms in [*first, *GROUPS.values()]:
        for pattern, term in terms.items():
            if found := _expression(pattern).fullmatch(key):
                return _filled(term, found.groupdict())
    return None


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern)
    return re.compile(re.sub(r"(?<![A-Za-z])([A-Z]{4,})(?![a-zA-Z])", r"(?P<\1>.+)", escaped))


def _filled(term: Term, words: Mapping[str, str]) -> Term:
    def fill(text: str) -> str:
        for word, value in words.items():
            text = text.replace(f"{{{word}}}", value.replace("_", " "))
        return text

    return Term(fill(term.name), fill(term.meaning), term.unit, term.better)
