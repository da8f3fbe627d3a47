"""Does a run compute on this model what it says it computes?

A few trajectories are sampled as in an epoch. The tolerances are for numbers that would be equal
except for rounding. They leave room above what the embedded model shows on a CPU: a ratio within
6e-7, pictures within 5e-7 in float32 and 2e-2 in bfloat16, densities within 3e-7.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.distributions import Normal

from dagflow.checks.model import rms
from dagflow.checks.patient import COUNT, Patient
from dagflow.checks.result import Check, Finding, failed, ok, skipped, warning
from dagflow.diffusion import path as gaussian
from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine.learner import make_learner
from dagflow.engine.levels import zero_levels
from dagflow.engine.machine import prepare_learner
from dagflow.engine.rollout import rollout
from dagflow.engine.update import pass_rows
from dagflow.engine.window import Window
from dagflow.prepare import check_needs, maker_of
from dagflow.types import Trajectories

RATIO = {torch.float32: 1e-4, torch.bfloat16: 1e-3}  # |log ratio| per latent value
SAMPLER = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # root mean square, of [0, 1]
DENSITY = 1e-3  # nats per latent value
ODD = 3  # a batch size that the rollout does not use
MIDDLE = 0.001  # share of pixels that are neither black nor white


def mathematics_checks() -> list[Check]:
    def passes(patient: Patient) -> int:
        return patient.config.rollout.num_inference_steps * COUNT

    sampled = ("sampling",)
    return [
        Check(
            "mathematics",
            "sampling",
            sampling,
            "dtype, or model",
            ("policy", "noise levels", "tensors"),
            passes,
        ),
        Check("mathematics", "objective", objective, "objective", ("policy", "noise levels")),
        Check("mathematics", "ratio", ratio, "dtype", ("sampling", "objective"), passes),
        Check("mathematics", "densities", densities, "rollout.num_inference_steps", sampled),
        Check("mathematics", "sampler", sampler, "the model's scheduler_config.json", sampled),
        Check("mathematics", "pictures", pictures, "model: its vae; dtype", sampled),
    ]


def sampling(patient: Patient) -> Finding:
    """A rollout whose states and densities are finite."""
    policy, path = patient.policy_and_path()
    density = patient.config.objective.log_density
    began = time.perf_counter()
    found = rollout(policy, path, patient.drawn(), noise_of(patient), density, patient.progress)
    for name in ("latents", "log_pf", "noise_pred", "images"):
        values: Tensor = getattr(found, name)
        if not values.isfinite().all():
            return failed(f"{name} of a rollout are not finite", "dtype = 'float32', or model")
    patient.seconds_of_sampling = time.perf_counter() - began  # a GPU has finished by now
    patient.trajectories = found
    said = f"{COUNT} trajectories of {path.steps} steps in {patient.seconds_of_sampling:.1f} s"
    return ok(said, "finite")


def noise_of(patient: Patient) -> Tensor:
    policy, path = patient.policy_and_path()
    return trajectory_noise(
        Stream.SAMPLE, patient.config.seed, 0, range(COUNT), path.steps, policy.latent_shape
    )


def objective(patient: Patient) -> Finding:
    """The objective can be built for this model, and has what it needs."""
    config, (policy, _) = patient.config, patient.policy_and_path()
    table = config.objective
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        made = maker_of(patient.registry, "objective", table.name, table)(policy.spec)
    check_needs(config, made.needs, patient.prompts)
    patient.objective = made
    patient.learner = make_learner(policy, made, config.update, table.log_density)
    prepare_learner(patient.learner, config.machine)
    own = sum(parameter.numel() for parameter in patient.learner.objective_parameters)
    return ok(f"{table.name}, {own:,} parameters of its own")


def ratio(patient: Patient) -> Finding:
    """Before the first update, p_new / p_old is 1 at every step, in any batch shape.

    The update's own code evaluates transitions in the rollout's batches, alone, and in batches
    across steps.
    """
    policy, path = patient.policy_and_path()
    assert patient.trajectories is not None
    steps = torch.arange(path.steps)
    each = [torch.cartesian_prod(torch.arange(COUNT), steps[i : i + 1]) for i in steps.tolist()]
    same = _log_ratio(patient, each)
    every = torch.cartesian_prod(torch.arange(COUNT), steps)
    micro = patient.config.update.microbatch_size
    sizes = sorted({1, ODD, min(micro, len(every))} - {COUNT})
    rows = {size: every[: path.steps] if size <= ODD else every for size in sizes}
    others = max(_log_ratio(patient, list(rows[size].split(size))) for size in sizes)
    worst, limit = max(same, others), RATIO[policy.dtype]
    said = (
        f"1 {_within(same)} in the rollout's batches of {COUNT}, {_within(others)} in batches of "
        f"{', '.join(map(str, sizes))}"
    )
    if not worst <= limit:
        return failed(said, "dtype = 'float32' (-s dtype=float32)", f"within {limit:g}")
    clip = getattr(patient.objective, "clip", None)
    if isinstance(clip, float) and worst > clip:
        return warning(
            f"{said}, more than the clip: rounding alone decides whether a ratio is clipped",
            f"objective.clip above {worst:.1g}, or dtype = 'float32'",
            f"objective.clip = {clip:g}",
        )
    return ok(said, f"within {limit:g}" + (f"; clip {clip:g}" if isinstance(clip, float) else ""))


def _within(gap: float) -> str:
    return f"within {gap:.1g}" if gap else "exactly"


def _log_ratio(patient: Patient, parts: list[Tensor]) -> float:
    """The largest |log ratio| of some batches of rows, per latent value."""
    assert patient.learner is not None
    assert patient.trajectories is not None
    worst = 0.0
    for rows in parts:
        window = window_of(patient, patient.trajectories, rows)
        log_pf = pass_rows(patient.learner, window, None).log_pf.detach()
        gap = (log_pf - window.log_pf_old).abs().max() / patient.learner.scale
        worst = max(worst, float(gap.nan_to_num(torch.inf)))
        patient.progress(len(rows))
    return worst


def window_of(patient: Patient, trajectories: Trajectories, rows: Tensor) -> Window:
    """A window of those rows, with nothing for an objective to see."""
    _, path = patient.policy_and_path()
    none = torch.zeros(COUNT, path.steps + 1, device=trajectories.latents.device)
    return Window(trajectories, none, path, rows, 0.0, 0.0, zero_levels(path.steps))


def densities(patient: Patient) -> Finding:
    """log p and log q of every step are those of torch's normal distributions, in float64."""
    policy, path = patient.policy_and_path()
    assert patient.trajectories is not None
    latents, predictions = patient.trajectories.latents, patient.trajectories.noise_pred.float()
    alpha, sigma = path.alpha.to(policy.device), path.sigma.to(policy.device)
    gaps = []
    for i in range(path.steps):
        place = torch.full((COUNT,), i, device=policy.device)
        step, x, x_next = gaussian.step_from(path, place), latents[:, i], latents[:, i + 1]
        x0 = policy.predicted_x0(step.state, x, predictions[:, i])
        a = alpha[i] / alpha[i + 1]
        v = sigma[i] ** 2 - a**2 * sigma[i + 1] ** 2
        mean = a * sigma[i + 1] ** 2 * x.double() + alpha[i + 1] * v * x0.double()
        forward = Normal(mean / sigma[i] ** 2, (v * sigma[i + 1] ** 2).sqrt() / sigma[i])
        backward = Normal(a * x_next.double(), v.sqrt())
        ours = (
            gaussian.log_pf(step, x, x_next, x0, "mean"),
            gaussian.log_pb(step, x, x_next, "mean"),
        )
        due = forward.log_prob(x_next.double()), backward.log_prob(x.double())
        gaps += [(o - d.flatten(1).mean(1)).abs().max() for o, d in zip(ours, due, strict=True)]
    worst = float(torch.stack(gaps).max())
    said = f"log p and log q differ from torch's Normal by at most {worst:.1g} nats"
    limit = f"{DENSITY:g} nats per latent value"
    if not worst <= DENSITY:
        return failed(said, "rollout.num_inference_steps (fewer: larger steps)", limit)
    return ok(said, limit)


def sampler(patient: Patient) -> Finding:
    """The pictures are those of diffusers' own pipeline, by DDIM with eta = 1 and equal noise."""
    policy, _ = patient.policy_and_path()
    assert patient.trajectories is not None
    scale = patient.config.rollout.guidance_scale
    if patient.pipeline is None:
        return skipped("this model is not a Stable Diffusion pipeline")
    if scale <= 1:
        return skipped(f"diffusers' pipeline does not guide at a scale of {scale:g}")
    theirs = _diffusers_pictures(
        patient, list(noise_of(patient)[:, 1:].to(policy.device).unbind(1))
    )
    found = rms(theirs - patient.trajectories.images.cpu())
    said = f"pictures differ from diffusers' by {found:.1g}"
    allowed = SAMPLER[policy.dtype]
    if not found <= allowed:
        return failed(said, "dtype, or the model's scheduler_config.json", f"{allowed:g}")
    return ok(said, f"{allowed:g} of [0, 1]")


@torch.no_grad()
def _diffusers_pictures(patient: Patient, noise: list[Tensor]) -> Tensor:
    """Images (B, 3, height, width) from the pipeline itself, whose steps take the given noise."""
    from diffusers import DDIMScheduler

    policy, path = patient.policy_and_path()

    class Given(DDIMScheduler):  # type: ignore[misc]
        """Takes its noise instead of drawing it; states stay float32 until the last is decoded."""

        def scale_model_input(self, sample: Tensor, timestep: object = None) -> Tensor:
            return sample.to(policy.dtype)

        def step(
            self, output: Tensor, time: int, sample: Tensor, eta: float = 0.0, **options: object
        ) -> tuple[Tensor]:
            drawn = noise.pop(0) if noise else torch.zeros_like(sample)
            state = super().step(output, time, sample, eta, variance_noise=drawn, **options)[0]
            return (state.to(policy.dtype) if time == self.timesteps[-1] else state,)

    pipeline = patient.pipeline
    config = pipeline.scheduler.config
    scheduler = Given.from_config(config, clip_sample=False, thresholding=False)
    kept = {"scheduler": scheduler, "requires_safety_checker": False}
    other = type(pipeline)(**{**pipeline.components, **kept})
    other.set_progress_bar_config(disable=True)
    drawn = other(
        patient.texts(),
        num_inference_steps=path.steps + path.noiseless_end,
        guidance_scale=patient.config.rollout.guidance_scale,
        eta=1.0,
        latents=noise_of(patient)[:, 0].to(policy.device),
        output_type="pt",
    ).images
    return drawn.float().cpu()  # type: ignore[no-any-return]


def pictures(patient: Patient) -> Finding:
    """Decoded images are float32 in [0, 1], and show something."""
    assert patient.trajectories is not None
    images = patient.trajectories.images
    low, high = float(images.min()), float(images.max())
    found = f"{tuple(images.shape[1:])}, {low:.2f} to {high:.2f}"
    if images.dtype != torch.float32 or not (low >= 0 and high <= 1):
        return failed(f"{found}, {images.dtype}", "model: its vae", "float32 in [0, 1]")
    inside = float(((images > 0) & (images < 1)).float().mean())
    if inside < MIDDLE or images.flatten(1).std(1).min() == 0:
        return warning(f"{found}: only one colour, or black and white", "model: its vae")
    return ok(found, "[0, 1]")
