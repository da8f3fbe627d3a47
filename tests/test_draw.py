"""What `dagflow sample` shows is what diffusers' pipeline draws, and what training samples."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from dagflow import Prompt, RunError
from dagflow.config import LoraTable
from dagflow.draw import draw, generator
from dagflow.engine.rollout import rollout
from dagflow.policies.loading import load_pipeline
from dagflow.policies.stable_diffusion import StableDiffusionPolicy

STEPS, SEED = 6, 7
TEXTS = ["a cat", "a blue bird on a yellow background", "a dog"]


@pytest.fixture
def policy() -> StableDiffusionPolicy:
    pipeline = load_pipeline("tiny", torch.float32)
    made = StableDiffusionPolicy(pipeline, torch.device("cpu"), guidance_scale=3.0)
    made.add_weights(LoraTable(), seed=0)
    for parameter in made.parameters():
        parameter.data += 0.05
    return made


def noise_of_the_generators(policy: StableDiffusionPolicy, count: int) -> torch.Tensor:
    """(count, T+1, C, H, W): of each generator the first latents, then the noise of each step."""
    sources = [generator(SEED, number) for number in range(count)]
    shape = (1, *policy.latent_shape)
    return torch.stack(
        [
            torch.cat([torch.randn(shape, generator=source) for _ in range(STEPS + 1)])
            for source in sources
        ]
    )


def test_the_pipelines_pictures_are_those_of_the_rollout_from_the_same_noise(
    policy: StableDiffusionPolicy,
) -> None:
    told: list[int] = []
    drawn = draw(policy, TEXTS, STEPS, len(TEXTS), SEED, told.append)
    noise = noise_of_the_generators(policy, len(TEXTS))
    ours = rollout(policy, policy.path(STEPS), [Prompt(t) for t in TEXTS], noise, "mean")
    torch.testing.assert_close(drawn, ours.images, rtol=0, atol=1e-4)
    assert (drawn[0] - drawn[2]).abs().mean() > 0.01
    assert told == [len(TEXTS)] * STEPS


def test_a_picture_depends_on_its_number_and_not_on_its_batch(
    policy: StableDiffusionPolicy,
) -> None:
    together = draw(policy, TEXTS, STEPS, 3, SEED)
    torch.testing.assert_close(draw(policy, TEXTS, STEPS, 2, SEED), together, rtol=0, atol=1e-4)
    shifted = draw(policy, TEXTS[1:], STEPS, 3, SEED + 1)
    torch.testing.assert_close(shifted, together[1:], rtol=0, atol=1e-4)


def test_what_is_no_picture_is_not_drawn(policy: StableDiffusionPolicy) -> None:
    next(iter(policy.parameters())).data.fill_(float("nan"))
    with pytest.raises(RunError, match="pictures that are not finite"):
        draw(policy, TEXTS, STEPS, 3, SEED)


def test_whatever_the_models_own_scheduler_ddim_draws(policy: StableDiffusionPolicy) -> None:
    config = policy.pipeline.scheduler.config
    expected = draw(policy, TEXTS, STEPS, 3, SEED)
    policy.pipeline.scheduler = PNDMScheduler.from_config(config)
    assert torch.equal(draw(policy, TEXTS, STEPS, 3, SEED), expected)
    assert isinstance(policy.pipeline.scheduler, DDIMScheduler)
