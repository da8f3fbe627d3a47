from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dagflow.diffusion import path as gaussian
from dagflow.engine.potentials import CurrentPotentials
from dagflow.engine.update import update, warm_up
from dagflow.engine.window import log_flow as window_log_flow
from dagflow.errors import RunError
from dagflow.types import Needs, Transitions
from tests.conftest import first_window, score


def reference_loss(run, window, objective: str) -> torch.Tensor:
    """The mean loss over all transitions in one pass, written down once more from the paper."""
    policy, data, steps = run.policy, window.trajectories, window.path.steps
    b, i = window.rows.unbind(1)
    x, x_next, embeds = data.latents[b, i], data.latents[b, i + 1], data.prompt_embeds[b]
    times = window.path.timesteps
    guided = policy.predict(x, times[i], embeds).guided
    alpha, sigma = (
        v.float().view(-1, 1, 1, 1) for v in (window.path.alpha[i], window.path.sigma[i])
    )
    x0 = (x - sigma * guided) / alpha
    step = gaussian.step_from(window.path, i)
    density = run.learner.density
    log_pf = gaussian.log_pf(step, x, x_next, x0, density)
    log_pb = gaussian.log_pb(step, x, x_next, density)
    scale = run.learner.scale
    flow = run.learner.objective.flow
    log_flow = scale * flow(x, times[i], embeds) + window.beta * window.potentials[b, i]
    inner = (i + 1 < steps).float()
    log_flow_next = (
        scale * inner * flow(x_next, times[i + 1], embeds)
        + window.beta * window.potentials[b, i + 1]
    )
    delta = log_flow + log_pf - log_flow_next - log_pb
    drift = ((guided - data.noise_pred[b, i]) ** 2).flatten(1).mean(1)
    penalty = run.config.update.regulariser * scale**2 * drift
    if objective == "db":
        return (delta**2 + penalty).mean()
    flow_loss = (log_flow + log_pf.detach() - log_flow_next - log_pb) ** 2
    ratio = torch.exp((log_pf - data.log_pf[b, i]) / scale)
    cost = delta.detach()
    policy_loss = scale * torch.maximum(cost * ratio, cost * ratio.clamp(0.97, 1.03))
    return (flow_loss + window.final_beta * policy_loss + penalty).mean()


def shake(run) -> None:
    """Move policy and flow network away from their special starting point."""
    source = torch.Generator().manual_seed(5)
    for parameter in [*run.policy.parameters(), *run.learner.objective_parameters]:
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=source)


def gradients(run, window, settings=None) -> list[torch.Tensor]:
    """Of all parameters, as an update leaves them to the optimizer; by default unclipped."""
    parameters = [*run.policy.parameters(), *run.learner.objective_parameters]
    seen: list[torch.Tensor] = []
    run.learner.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(parameter.grad.clone() for parameter in parameters)
    )
    settings = settings or run.learner.settings.model_copy(update={"max_grad_norm": 1e12})
    update(replace(run.learner, settings=settings), window)
    return seen


@pytest.mark.parametrize("density", ["mean", "sum"])
@pytest.mark.parametrize("objective", ["db", "kl"])
def test_gradients_equal_those_of_one_plain_autograd_pass(make_run, objective, density) -> None:
    options = {"clip": 0.03} if objective == "kl" else {}
    settings = {"name": objective, "log_density": density, "returns": 0.0, **options}
    run = make_run(objective=settings)
    window = first_window(run)
    shake(run)
    parameters = [*run.policy.parameters(), *run.learner.objective_parameters]
    expected = torch.autograd.grad(reference_loss(run, window, objective), parameters)
    for found, due in zip(gradients(run, window), expected, strict=True):
        torch.testing.assert_close(found, due, rtol=1e-3, atol=1e-4 * float(due.abs().max()) + 1e-9)


@pytest.mark.parametrize("objective", ["db", "kl"])
def test_gradients_on_the_sum_scale_are_those_on_the_mean_scale_times_d_squared(
    make_run, objective: str
) -> None:
    """With beta * D; after clipping, so that AdamW takes the same step."""
    found = []
    for density, beta, factor in (("mean", 5.0, 1.0), ("sum", 5.0 * 1024, 1024.0**2)):
        options = {"coefficient": 1.0, "clip": 0.03, "normalise": True} if objective == "kl" else {}
        settings = {"name": objective, "log_density": density, "beta": beta, **options}
        run = make_run(objective=settings, update={"max_grad_norm": 1e-3})
        window = first_window(run)
        shake(run)
        clipped = torch.cat([g.flatten() for g in gradients(run, window, run.learner.settings)])
        found.append(clipped / factor)
    assert found[0].norm() == pytest.approx(2**0.5 * 1e-3, rel=1e-3)  # two groups, both clipped
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-3 * float(found[0].abs().max()))


def test_log_ratio_is_exactly_zero_before_the_first_update_in_equal_batches(make_run) -> None:
    run = make_run(update={"microbatch_size": 4})
    window = first_window(run)
    for index in range(run.path.steps):
        rows = torch.stack([torch.arange(4), torch.full((4,), index)], 1)
        assert ratio(run, window, rows).abs().max() == 0


def test_log_ratio_stays_below_1e_6_where_batches_differ(make_run) -> None:
    run = make_run(rollout={"num_inference_steps": 20, "guidance_scale": 3.0})
    window = first_window(run)
    assert ratio(run, window, window.rows).abs().max() < 1e-6


@torch.no_grad()
def ratio(run, window, rows: torch.Tensor) -> torch.Tensor:
    data = window.trajectories
    b, i = rows.unbind(1)
    x = data.latents[b, i]
    guided = run.policy.predict(x, window.path.timesteps[i], data.prompt_embeds[b]).guided
    step = gaussian.step_from(window.path, i)
    x0 = gaussian.predicted_x0(step.state, x, guided, "epsilon")
    return gaussian.log_pf(step, x, data.latents[b, i + 1], x0, "mean") - data.log_pf[b, i]


def all_current(run, window) -> torch.Tensor:
    current = CurrentPotentials(run.learner, window, run.rewards, range(run.path.steps))
    current.complete(window)
    return current.window.potentials


def test_current_potentials_equal_the_rollouts_before_the_first_update(make_run) -> None:
    run = make_run()
    window = first_window(run)
    found = all_current(run, window)
    # a pixel on the edge of two grey levels may round either way: a few bytes of the file
    torch.testing.assert_close(found, window.potentials, rtol=0, atol=0.01)


def test_current_potentials_follow_the_network_and_leave_the_images_own_reward(make_run) -> None:
    run = make_run()
    window = first_window(run)
    shake(run)
    found = all_current(run, window)
    assert torch.equal(found[:, -1], window.potentials[:, -1])
    assert not torch.equal(found[:, :-1], window.potentials[:, :-1])


def test_warm_up_moves_the_flow_network_alone(make_run) -> None:
    run = make_run()
    window = first_window(run)
    policy = [p.detach().clone() for p in run.policy.parameters()]
    flow = [p.detach().clone() for p in run.learner.objective_parameters]
    warm_up(run.learner, window)
    assert all(torch.equal(a, b) for a, b in zip(policy, run.policy.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(flow, run.learner.objective_parameters, strict=True)
    )


@pytest.mark.parametrize("which", ["learning_rate", "flow_learning_rate"])
def test_each_learning_rate_is_used_for_its_own_group(make_run, which: str) -> None:
    """The first AdamW step moves a parameter by its learning rate."""
    other = {"learning_rate": "flow_learning_rate", "flow_learning_rate": "learning_rate"}[which]
    run = make_run(update={which: 1e-2, other: 1e-5, "weight_decay": 0.0})
    groups = {
        "learning_rate": run.policy.parameters(),
        "flow_learning_rate": run.learner.objective_parameters,
    }
    before = {name: [p.detach().clone() for p in group] for name, group in groups.items()}
    update(run.learner, first_window(run))
    moved = {
        name: max(
            float((new.detach() - old).abs().max())
            for new, old in zip(group, before[name], strict=True)
        )
        for name, group in groups.items()
    }
    assert moved[which] == pytest.approx(1e-2, rel=0.05)
    assert moved[other] == pytest.approx(1e-5, rel=0.05)


def test_microbatches_change_nothing_but_rounding(make_run) -> None:
    results = []
    for size in (3, 16):
        run = make_run(update={"microbatch_size": size}, objective={"normalise": True})
        window = first_window(run)
        shake(run)
        results.append(torch.cat([gradient.flatten() for gradient in gradients(run, window)]))
    largest = float(results[0].abs().max())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-4 * largest)


def test_a_loss_that_is_not_finite_stops_before_the_step(make_run) -> None:
    run = make_run()
    window = first_window(run)
    before = [p.detach().clone() for p in run.policy.parameters()]
    broken = replace(window, potentials=window.potentials * float("nan"))
    with pytest.raises(RunError, match="not finite"):
        update(run.learner, broken)
    assert all(torch.equal(a, b) for a, b in zip(before, run.policy.parameters(), strict=True))


def test_without_potentials_the_flow_is_learned_inside_and_given_at_the_end(make_run) -> None:
    run = make_run(rollout={"potential": "none"})
    window = first_window(run)
    shake(run)
    data = window.trajectories
    count, embeds = len(data.prompts), data.prompt_embeds
    b = torch.arange(count).repeat(2)
    i = torch.tensor([1, run.path.steps]).repeat_interleave(count)
    learned = run.learner.objective.flow(data.latents[:, 1], run.path.timesteps[i[:count]], embeds)
    given = window.beta * score(run.rewards, data.images, data.prompts)
    torch.testing.assert_close(
        window_log_flow(run.learner, window.part(torch.stack([b, i], 1))),
        torch.cat([learned, given]),
    )


class Asks(torch.nn.Module):
    """An objective that asks for rewards, keeps what it is given, and learns nothing."""

    def __init__(self, needs: Needs) -> None:
        super().__init__()
        self.needs, self.seen = needs, []

    def forward(self, batch: Transitions) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.seen.append(batch)
        return batch.log_pf, {}


def test_rewards_come_with_their_trajectory_and_prompt(make_run) -> None:
    run = make_run(rollout={"images_per_prompt": 2})
    window = first_window(run)
    asks = Asks(Needs(rewards=True, window=True))
    update(replace(run.learner, objective=asks), window)
    batch = asks.seen[-1]  # chunks go backward in time
    b = window.rows[:5, 0]
    earned = window.beta * score(run.rewards, window.trajectories.images[b], [None] * 5)
    torch.testing.assert_close(batch.log_reward, earned)
    assert torch.equal(batch.trajectory, b)
    assert torch.equal(batch.window.trajectory, window.rows[:, 0])
    texts = [window.trajectories.prompts[int(k)].text for k in window.rows[:, 0]]
    numbers = dict(zip(texts, batch.window.prompt.tolist(), strict=True))
    assert [numbers[text] for text in texts] == batch.window.prompt.tolist()
    assert len({*numbers.values()}) == len(numbers) == 2
    assert batch.prompt.dtype == batch.trajectory.dtype == torch.int64
    assert (batch.log_pb, batch.log_flow, batch.log_flow_next) == (None, None, None)


def test_rewards_that_nobody_asked_for_are_not_given(make_run) -> None:
    run = make_run()
    asks = Asks(Needs())
    update(replace(run.learner, objective=asks), first_window(run))
    batch = asks.seen[0]
    assert (batch.log_reward, batch.trajectory, batch.prompt, batch.window) == (None,) * 4
