from __future__ import annotations

import pytest
import torch
from reinforce import Reinforce, leave_one_out

from dagflow import Transitions
from dagflow.conformance import ObjectiveContract


class TestReinforce(ObjectiveContract):
    name = "reinforce"


def transitions(rows: list[tuple[int, int, float]], **changes: object) -> Transitions:
    """Transitions from rows (trajectory, prompt, log-reward)."""
    trajectory, prompt, log_reward = (torch.tensor(column) for column in zip(*rows, strict=True))
    zeros = torch.zeros(len(rows))
    values = {
        "log_pf": zeros.clone().requires_grad_(),
        "log_pf_old": zeros,
        "log_pb": None,
        "log_flow": None,
        "log_flow_next": None,
        "beta": 1.0,
        "final_beta": 1.0,
        "scale": 1.0,
        "log_reward": log_reward,
        "trajectory": trajectory,
        "prompt": prompt,
    }
    return Transitions(**{**values, **changes})


@pytest.mark.parametrize(
    ("rows", "baseline"),
    [
        # two for prompt 0, two for prompt 2: each gets its partner's reward, not a distant one's
        ([(0, 0, 1.0), (1, 0, 3.0), (2, 2, 100.0), (3, 2, 200.0)], [3.0, 1.0, 200.0, 100.0]),
        # a trajectory counts once, however many of its transitions there are
        ([(0, 0, 1.0), (1, 0, 3.0), (1, 0, 3.0), (2, 0, 6.0)], [4.5, 3.5, 3.5, 2.0]),
        # the only one of its prompt: all others
        ([(0, 0, 1.0), (1, 1, 3.0), (2, 1, 5.0)], [4.0, 5.0, 3.0]),
        # the only one
        ([(7, 7, 9.0), (7, 7, 9.0)], [0.0, 0.0]),
    ],
)
def test_the_baseline_is_that_of_the_others(rows, baseline) -> None:
    window = transitions(rows)
    torch.testing.assert_close(leave_one_out(window, window), torch.tensor(baseline))


def test_the_first_step_is_the_policy_gradient() -> None:
    rows = [(0, 0, 1.0), (1, 0, 3.0)]
    batch = transitions(rows, window=transitions(rows))
    Reinforce()(batch)[0].sum().backward()
    assert batch.log_pf.grad.tolist() == [2.0, -2.0]  # the better one becomes more likely


def test_the_ratio_weighs_what_is_off_policy() -> None:
    rows = [(0, 0, 1.0), (1, 0, 3.0)]
    later = torch.log(torch.tensor([2.0, 1.0])).requires_grad_()
    batch = transitions(rows, window=transitions(rows), log_pf=later)
    Reinforce()(batch)[0].sum().backward()
    torch.testing.assert_close(later.grad, torch.tensor([4.0, -2.0]))


def test_the_sum_scale_asks_for_the_same_step() -> None:
    """Its gradient is D^2 times as long: D from the loss, and D from log_pf itself."""
    count, gradients = 1024.0, []
    for scale in (1.0, count):
        rows = [(0, 0, 1.0 * scale), (1, 0, 3.0 * scale)]
        later = (scale * torch.tensor([0.2, -0.1])).requires_grad_()
        batch = transitions(rows, window=transitions(rows), log_pf=later, scale=scale)
        Reinforce()(batch)[0].sum().backward()
        gradients.append(later.grad)
    torch.testing.assert_close(gradients[1], count * gradients[0])
