"""Does the model's scheduler visit states that have a density?"""

from __future__ import annotations

import re
from typing import Any

from dagflow.checks.patient import Patient
from dagflow.checks.result import Finding, failed, ok, skipped, warning
from dagflow.errors import UserError
from dagflow.policies.policy import Policy

FILE = "scheduler/scheduler_config.json of the model"
PREDICTED = ("epsilon", "v_prediction", "sample")
NEAR = 10  # how many more or fewer steps to try when looking for a number that works


def settings(patient: Patient) -> Finding:
    """What the model's own sampler does and a run does not."""
    config = scheduler_config(patient)
    if config is None:
        return skipped("a world has no scheduler")
    if config.get("prediction_type") not in PREDICTED:
        return failed(
            f"it predicts {config.get('prediction_type')!r}, not {' or '.join(PREDICTED)}",
            f"prediction_type in {FILE}",
        )
    said = f"predicts {config.get('prediction_type')}, steps {config.get('timestep_spacing')}"
    said += f", rescale_betas_zero_snr = {bool(config.get('rescale_betas_zero_snr'))}"
    ignored = [name for name in ("clip_sample", "thresholding") if config.get(name)]
    if ignored and patient.pipeline is not None:
        names = " and ".join(f"{name} = true" for name in ignored)
        return warning(
            f"{said}; {names}, which a run ignores: latents are not pixels",
            f"{ignored[0]} = false in {FILE}, so that pictures drawn elsewhere are the same",
        )
    clips = ", ".join(f"{name} = true" for name in ignored) or "clips nothing"
    return ok(f"{said}, {clips}")


def scheduler_config(patient: Patient) -> Any:
    """The scheduler's configuration; None if there is none."""
    holder = patient.pipeline if patient.pipeline is not None else patient.policy
    scheduler = getattr(holder, "scheduler", None)
    return getattr(scheduler, "config", None)


def noise_levels(patient: Patient) -> Finding:
    """Every step goes from a noise level to a lower one, and has a variance."""
    steps = patient.config.rollout.num_inference_steps
    if patient.policy is None:
        return skipped("there is no policy to ask")
    try:
        path = patient.policy.path(steps)
    except UserError as error:
        said = re.split("; give |: set ", str(error).rstrip("."))[0]  # its advice may not help here
        return failed(said, _way_out(patient, patient.policy, steps))
    patient.path = path
    said = f"{path.steps} steps, sigma {float(path.sigma[0]):.4f} to {float(path.sigma[-1]):.4f}"
    if path.noiseless_end:
        return ok(f"{said}; the last one of {steps} has no variance, so training ends before it")
    return ok(said, "each below the one before")


def _way_out(patient: Patient, policy: Policy, steps: int) -> str:
    """A setting with which the path exists."""
    config = scheduler_config(patient) or {}
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type") == "epsilon":
        return f"rescale_betas_zero_snr = false, or timestep_spacing = 'leading', in {FILE}"
    betas = config.get("trained_betas")
    if betas is not None and min(betas) <= 0:
        return f"trained_betas in {FILE}: no beta may be 0"
    for number in sorted(
        range(max(2, steps - NEAR), steps + NEAR + 1), key=lambda k: abs(k - steps)
    ):
        try:
            policy.path(number)
            return f"rollout.num_inference_steps = {number}"
        except UserError:
            continue
    if not config.get("set_alpha_to_one", True):
        return (
            f"set_alpha_to_one = true, or timestep_spacing = 'leading' with steps_offset = 1, in "
            f"{FILE}: with timestep_spacing = {config.get('timestep_spacing')!r} and steps_offset "
            f"= {config.get('steps_offset')} its last step leads nowhere"
        )
    return f"rollout.num_inference_steps, or the betas in {FILE}"
