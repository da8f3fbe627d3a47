"""Pictures as a user will see them: for Stable Diffusion, from diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dagflow.diffusion.noise import Stream
from dagflow.engine.rollout import ignore
from dagflow.engine.scoring import require_finite
from dagflow.evaluate import Sampler
from dagflow.policies.policy import Policy
from dagflow.policies.stable_diffusion import StableDiffusionPolicy
from dagflow.types import Prompt

ETA = 1.0  # of DDIM: the noise that the policy was trained with


def draw(
    policy: Policy,
    prompts: Sequence[str],
    num_inference_steps: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] = ignore,
) -> Tensor:
    """Images (N, 3, height, width) in [0, 1] on the CPU, one for each prompt.

    For Stable Diffusion, `StableDiffusionPipeline` itself draws: DDIM with eta = 1, image k from
    `torch.Generator().manual_seed(seed + k)`, which gives the first latents and then the noise of
    each step. For other models the engine's rollout draws, from noise of (seed, k). `progress` is
    told how many images have advanced by a step. Raises UserError for an impossible number of
    steps, and RunError for pictures that are not finite.
    """
    path = policy.path(num_inference_steps).on(policy.device)
    if not isinstance(policy, StableDiffusionPolicy):
        sampler = Sampler(policy, path, batch_size, seed, Stream.SAMPLE, progress)
        return sampler.images([Prompt(text) for text in prompts])
    policy.pipeline.scheduler = policy.scheduler()

    def after_step(_pipeline: Any, _step: int, _time: int, values: dict[str, Any]) -> Any:
        progress(len(values["latents"]))
        return values

    parts = []
    for start in range(0, len(prompts), batch_size):
        texts = list(prompts[start : start + batch_size])
        done = policy.pipeline(
            texts,
            num_inference_steps=num_inference_steps,
            guidance_scale=policy.guidance_scale,
            eta=ETA,
            generator=[generator(seed, start + k) for k in range(len(texts))],
            output_type="pt",
            callback_on_step_end=after_step,
        )
        require_finite(done.images)
        parts.append(done.images.float().cpu())
    return torch.cat(parts)


def generator(seed: int, number: int) -> torch.Generator:
    """The generator of image `number`; on the CPU, so that every device gets the same noise."""
    return torch.Generator().manual_seed(seed + number)
