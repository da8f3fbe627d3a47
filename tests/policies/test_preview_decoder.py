"""A cheaper decoder for what is on the way; the image itself is the VAE's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from dagflow import Prompt, UserError
from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine.rollout import rollout
from dagflow.policies.loading import load_policy

CPU = torch.device("cpu")


def test_the_embedded_one_draws_nearly_what_the_vae_does() -> None:
    policy = load_policy("tiny", "float32", CPU, 3.0, "tiny")
    steps, seen = 6, []
    noise = trajectory_noise(Stream.SAMPLE, 3, 0, range(4), steps, policy.latent_shape)
    prompts = [Prompt("a cat"), Prompt("a dog"), Prompt("a red bird"), Prompt("a frog")]
    done = rollout(
        policy, policy.path(steps), prompts, noise, "mean", on_preview=lambda i, x0: seen.append(x0)
    )
    for x0 in seen:
        distance = (policy.preview(x0) - policy.decode(x0)).abs().mean()
        assert distance < 0.04
        assert distance < 0.3 * (policy.decode(x0) - policy.decode(x0).mean()).abs().mean()
    plain = load_policy("tiny", "float32", CPU, 3.0)
    assert torch.equal(done.images, plain.decode(done.latents[:, -1]))
    assert torch.equal(plain.preview(seen[0]), plain.decode(seen[0]))


def test_potentials_are_rewards_of_its_pictures(make_run) -> None:
    from tests.conftest import first_window, score

    run = make_run(rollout={"preview_decoder": "tiny", "potential_steps": 2})
    data = first_window(run)
    x, count = data.trajectories.latents[:, 3], len(data.trajectories.prompts)
    times = run.path.timesteps[3].expand(count)
    output = run.policy.predict_text(x, times, data.trajectories.prompt_embeds)
    from dagflow.diffusion import path as gaussian

    state = gaussian.state_at(run.path, torch.full((count,), 3))
    pictures = run.policy.preview(run.policy.predicted_x0(state, x, output))
    due = score(run.rewards, pictures, data.trajectories.prompts)
    torch.testing.assert_close(data.potentials[:, 3], due, rtol=0, atol=0.01)
    assert data.potentials[:, [0, 2]].eq(0).all()
    assert data.potentials[:, 1].ne(0).all()


def test_a_decoder_of_another_model_is_refused(tmp_path: Path) -> None:
    AutoencoderTiny().save_pretrained(tmp_path / "taesd")
    with pytest.raises(UserError, match=r"enlarges them 8 times; the model's VAE .* 2 times"):
        load_policy("tiny", "float32", CPU, 3.0, str(tmp_path / "taesd"))


@pytest.mark.parametrize(
    ("model", "decoder", "reason"),
    [
        ("tiny", "tyni", "no model 'tyni'. Did you mean 'tiny'"),
        ("tiny", "./absent", "the folder of an AutoencoderTiny"),
        ("world:gaussians-2d", "tiny", "has no decoder"),
    ],
)
def test_what_is_no_decoder_is_named(model: str, decoder: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load_policy(model, "float32", CPU, 3.0, decoder)
