"""Is every reward a fixed function of one image and its prompt, on this model's own images?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dagflow import reward_rules
from dagflow.checks.patient import Patient
from dagflow.checks.plugins import files_check
from dagflow.checks.result import Check, Finding, failed, ok, skipped
from dagflow.config import Config, RewardTable
from dagflow.engine.scoring import place
from dagflow.errors import PluginError, raised
from dagflow.prepare import maker_of, weighted
from dagflow.reward_rules import Measured, Score
from dagflow.types import Prompt

Rule = Callable[[Score, Tensor, Sequence[Prompt]], Measured]


def reward_checks(config: Config) -> list[Check]:
    """For each reward, trained on or measured: it can be built, and keeps the rules."""
    tables = [("rewards", config.rewards), ("evaluate.rewards", config.evaluate.rewards)]
    found = []
    for where, rewards in tables:
        for label, table in rewards.items():
            mend = f"fix the reward, or leave it out: {where}.{label} (--reward)"
            built = f"{label}: is built"
            finite, sampled = f"{label}: is finite", (built, "sampling")

            def check(
                what: str,
                ask: Callable[[Patient], Finding],
                needs: tuple[str, ...],
                label: str = label,
                mend: str = mend,
            ) -> Check:
                return Check("rewards", f"{label}: {what}", ask, mend, needs)

            needed = (f"reward {label}", files_check("reward", label))
            found += [
                check("is built", partial(build, label=label, table=table), needed),
                check("is finite", partial(scores, label=label), sampled),
                check("same again", partial(fixed, label=label), (finite, "sampling")),
                check("same alone", partial(alone, label=label), (finite, "sampling")),
            ]
    return found or [Check("rewards", "rewards", none, "rewards (--reward NAME)")]


def none(patient: Patient) -> Finding:
    return skipped("there is no reward, and a run needs one (--reward NAME)")


def build(patient: Patient, label: str, table: RewardTable) -> Finding:
    """Raises UserError or PluginError if the reward cannot be built."""
    began = time.perf_counter()
    made = maker_of(patient.registry, "reward", table.name or label, table)()
    patient.rewards[label] = weighted(label, place(made, patient.device), table)
    return ok(f"in {time.perf_counter() - began:.1f} s, weight {table.weight:g}")


def scores(patient: Patient, label: str) -> Finding:
    """One finite number for each image."""
    assert patient.trajectories is not None
    images, prompts = _given(patient)
    began = time.perf_counter()
    found = _raw(patient, label, images, prompts)
    each = (time.perf_counter() - began) / len(images)
    wrong = reward_rules.wrong_shape(found, len(images))
    wrong = wrong or reward_rules.not_finite(found, "this model's images")
    if wrong:
        return failed(f"reward '{label}' {wrong}")
    return ok(
        f"{float(found.min()):.4g} to {float(found.max()):.4g}, {1000 * each:.1f} ms an image"
    )


def fixed(patient: Patient, label: str) -> Finding:
    """The same images get the same scores."""
    return _held(patient, label, reward_rules.moved_by_time)


def alone(patient: Patient, label: str) -> Finding:
    """An image's score does not depend on what is scored beside it."""
    return _held(patient, label, reward_rules.moved_by_company)


def _held(patient: Patient, label: str, rule: Rule) -> Finding:
    def score(images: Tensor, prompts: Sequence[Prompt], what: str) -> Tensor:
        found = _raw(patient, label, images, prompts)
        if wrong := reward_rules.wrong_shape(found, len(images)):
            raise PluginError(f"reward '{label}' {wrong} (for {what})")
        scores: Tensor = found.float()
        return scores

    measured = rule(score, *_given(patient))
    limit = f"{measured.allowed:.2g}"
    if not measured.kept:
        return failed(f"reward '{label}' {measured.advice}", limit=limit)
    return ok(f"scores move by {measured.gap:.2g}", limit)


def _given(patient: Patient) -> tuple[Tensor, list[Prompt]]:
    assert patient.trajectories is not None
    return patient.trajectories.images, list(patient.trajectories.prompts)


@torch.no_grad()
def _raw(patient: Patient, label: str, images: Tensor, prompts: Sequence[Prompt]) -> Any:
    try:
        return patient.rewards[label].reward(images, prompts)
    except (Exception, SystemExit) as error:
        raise PluginError(f"reward '{label}' {raised(error)}") from error
