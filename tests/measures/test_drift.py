"""The estimate of the divergence of paths, against densities and against all steps."""

from __future__ import annotations

import pytest
import torch

from dagflow.diffusion import path as gaussian
from dagflow.evaluate import Sampler
from dagflow.measures.drift import STEPS, chances, drift


def perturbed(run, size: float) -> None:
    """The policy of a run, with weights that say something."""
    source = torch.Generator().manual_seed(0)
    weights = run.policy.weights()
    run.policy.set_weights(
        {k: v + size * torch.randn(v.shape, generator=source) for k, v in weights.items()}
    )


def sampled(run, count: int, log_p_base: bool = False):
    sampler = Sampler(run.policy, run.path, count, 0)
    return next(sampler.batches(run.heldout[:count], log_p_base))[0]


def test_no_drift_before_training(make_run) -> None:
    run = make_run()
    found = drift(run.policy, run.path, sampled(run, 3))
    assert found.kl.tolist() == [0, 0, 0]
    assert found.noise_pred.tolist() == [0, 0, 0]


def test_kl_is_that_of_the_densities(make_run) -> None:
    """log p - log p_base = |d|^2 / (2 v) + d noise / sqrt(v), and the first part is the KL."""
    run = make_run()
    perturbed(run, 0.05)
    part = sampled(run, 4, log_p_base=True)
    assert run.path.steps <= STEPS  # so that every step is looked at
    found = drift(run.policy, run.path, part)
    due = torch.zeros(4)
    for i in range(run.path.steps):
        step = gaussian.step_from(run.path, torch.full((4,), i))
        x, times = part.latents[:, i], run.path.timesteps[torch.full((4,), i)]
        means = []
        for guided in (part.noise_pred[:, i], None):
            if guided is None:
                with run.policy.base():
                    guided = run.policy.predict(x, times, part.prompt_embeds).guided
            x0 = run.policy.predicted_x0(step.state, x, guided)
            means.append(gaussian.policy_mean(step, x, x0))
        apart = means[0] - means[1]
        noise = part.latents[:, i + 1] - means[0]
        ratio = (part.log_pf - part.log_p_base)[:, i]
        due += ratio - (apart * noise / step.variance).flatten(1).sum(1)
    assert (due > 1e-3).all()
    assert found.kl == pytest.approx(due, rel=1e-3)
    assert (found.noise_pred > 0).all()


def test_few_steps_stand_for_all(make_run, monkeypatch) -> None:
    """Five of twenty come near all of them, though one has most of the KL."""
    run = make_run(rollout={"num_inference_steps": 20})
    perturbed(run, 0.02)
    part = sampled(run, 16)
    passes = []
    predict = run.policy.predict

    def counting(x, times, embeds):
        passes.append(times)
        return predict(x, times, embeds)

    run.policy.predict = counting
    found = drift(run.policy, run.path, part)
    looked_at = torch.stack(passes, 1)
    assert all(len(set(times)) == STEPS for times in looked_at.tolist())
    monkeypatch.setattr("dagflow.measures.drift.STEPS", 20)
    due = drift(run.policy, run.path, part)
    assert float(found.kl.mean()) == pytest.approx(float(due.kl.mean()), rel=0.1)
    assert float(found.noise_pred.mean()) == pytest.approx(float(due.noise_pred.mean()), rel=0.1)


def test_batches_do_not_matter(make_run) -> None:
    run = make_run(rollout={"num_inference_steps": 20})
    perturbed(run, 0.02)
    ones, threes = (
        Sampler(run.policy, run.path, size, 0).draw(run.heldout[:6], [], from_base=True)
        for size in (1, 3)
    )
    assert ones.kl == pytest.approx(threes.kl, rel=1e-3)
    assert ones.noise_pred == pytest.approx(threes.noise_pred, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 5, 6, 20, 50])
def test_chances_are_of_as_many_steps_as_are_looked_at(make_run, steps) -> None:
    path = make_run().policy.path(steps)
    found = chances(path)
    assert float(found.sum()) == pytest.approx(min(STEPS, steps))
    assert ((found > 0) & (found <= 1)).all()
