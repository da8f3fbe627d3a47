from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagflow import PluginError, Prompt, UserError
from dagflow import train as training
from dagflow.diffusion.path import predicted_x0, state_at
from dagflow.engine.checkpoint import checkpoints
from dagflow.engine.prompts import as_prompts, draw_prompts
from dagflow.engine.scoring import Background, WeightedReward, ask, place
from dagflow.engine.transitions import cut
from dagflow.types import Needs
from tests.conftest import first_window, score, short_config

PROMPTS = tuple(Prompt(f"prompt {k}") for k in range(7))


@given(seed=st.integers(0, 100), epochs=st.integers(1, 9), groups=st.integers(1, 12))
def test_every_pass_over_the_prompts_shows_each_once(seed: int, epochs: int, groups: int) -> None:
    drawn = [
        p.text for e in range(epochs) for p in draw_prompts(PROMPTS, seed, e * groups, groups, 1)
    ]
    for start in range(0, len(drawn) - len(PROMPTS) + 1, len(PROMPTS)):
        assert Counter(drawn[start : start + len(PROMPTS)]) == Counter(
            prompt.text for prompt in PROMPTS
        )


def test_images_per_prompt_are_consecutive() -> None:
    drawn = [prompt.text for prompt in draw_prompts(PROMPTS, 0, 24, 12, 3)]
    assert all(len(set(drawn[k : k + 3])) == 1 for k in range(0, 12, 3))
    assert len(set(drawn)) == 4


def test_an_empty_source_and_a_wrong_item_are_named() -> None:
    with pytest.raises(UserError, match="item 1 is not text"):
        as_prompts("mine", ["a cat", "half \ud800"])
    with pytest.raises(UserError, match="prompts 'mine' is empty"):
        as_prompts("mine", [])
    with pytest.raises(PluginError, match="prompts 'mine': item 1 is int"):
        as_prompts("mine", ["a", 3])  # type: ignore[list-item]


@given(fraction=st.floats(0.05, 1), batch=st.integers(1, 40), epoch=st.integers(0, 3))
def test_windows_hold_each_chosen_transition_once(fraction: float, batch: int, epoch: int) -> None:
    """And those of a trajectory are a stretch, so that few states are visited for one alone."""
    steps = 10
    count = max(1, round(steps * fraction)) * 8
    settings = short_config(
        rollout={"samples_per_epoch": 8, "num_inference_steps": steps},
        update={"batch_size": min(batch, count), "timestep_fraction": fraction},
    )
    windows = cut(settings, epoch, steps, Needs(log_flow=True))
    rows = [tuple(row) for window in windows for row in window.tolist()]
    assert len(rows) == len(set(rows)) == count
    assert set(Counter(b for b, _ in rows).values()) == {count // 8}
    assert len(windows) == settings.updates_per_epoch
    assert min(len(window) for window in windows) >= settings.update.batch_size
    for b in range(8):
        chosen = {i for other, i in rows if other == b}
        assert sum((i + 1) % steps not in chosen for i in chosen) <= 1


def test_no_window_is_smaller_where_the_path_has_a_step_less() -> None:
    """As it is where the sampler's last step has no noise."""
    settings = short_config(
        rollout={"samples_per_epoch": 8, "num_inference_steps": 10}, update={"batch_size": 40}
    )
    assert [len(window) for window in cut(settings, 0, 9, Needs(log_flow=True))] == [72]


def test_a_batch_must_be_there_among_the_steps_that_an_objective_trains_on(make_run) -> None:
    half = {"batch_size": 16, "timestep_fraction": 0.5}
    make_run(objective={"name": "tb"}, update=half)  # which takes all steps of all 4 trajectories
    with pytest.raises(UserError, match=r"16 is more than the 8 .*timestep_fraction"):
        make_run(objective={"name": "ddpo"}, update=half)


def test_without_a_flow_every_window_sees_most_trajectories() -> None:
    settings = short_config(
        rollout={"samples_per_epoch": 16, "num_inference_steps": 10}, update={"batch_size": 40}
    )
    windows = cut(settings, 0, 10, Needs(rewards=True))
    assert len(windows) == 4
    assert sorted(torch.cat(windows).tolist()) == [[b, i] for b in range(16) for i in range(10)]
    assert min(len(window[:, 0].unique()) for window in windows) > 10


def test_every_step_is_chosen_as_often_as_any_other() -> None:
    settings = short_config(
        rollout={"samples_per_epoch": 1000, "num_inference_steps": 10},
        update={"batch_size": 1, "timestep_fraction": 0.3},
    )
    seen = Counter(
        i for window in cut(settings, 0, 10, Needs(log_flow=True)) for _, i in window.tolist()
    )
    assert len(seen) == 10
    assert max(abs(count - 300) for count in seen.values()) < 75  # five deviations


def test_beta_rises_from_zero_over_the_annealed_part() -> None:
    settings = short_config(epochs=10, objective={"beta": 8.0, "anneal": 0.5})
    updates = 10 * settings.updates_per_epoch
    assert settings.beta(0) == 0
    assert settings.beta(updates // 4) == pytest.approx(4.0)
    assert settings.beta(updates // 2) == settings.beta(updates) == 8.0


class Brightness(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, images, prompts):
        return self.gain * images.mean((1, 2, 3))


def test_total_reward_is_the_weighted_sum() -> None:
    images = torch.rand(3, 3, 8, 8)
    both = [
        WeightedReward("up", place(Brightness(), torch.device("cpu")), 3.0),
        WeightedReward("down", lambda images, prompts: -images.amax((1, 2, 3)), 0.5),
    ]
    expected = 3 * images.mean((1, 2, 3)) - 0.5 * images.amax((1, 2, 3))
    torch.testing.assert_close(score(both, images, PROMPTS[:3]), expected)


def test_a_module_is_frozen_and_put_in_eval_mode() -> None:
    reward = place(Brightness().train(), torch.device("cpu"))
    assert not reward.training
    assert not reward.gain.requires_grad


class Panic(BaseException):
    """As the bindings of other languages raise it; its text fails too."""

    def __str__(self) -> str:
        raise ValueError


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def answer(*_: object) -> Any:
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda images, prompts: torch.zeros(2, 1),
            r"returned \(2, 1\); expected a tensor of shape \(2,\)",
        ),
        (lambda images, prompts: [1.0, 2.0], "returned list"),
        (
            lambda images, prompts: torch.tensor([1.0, float("nan")]),
            "nan for the prompt 'prompt 1'",
        ),
        (
            lambda images, prompts: 1 / 0,
            r"raised ZeroDivisionError: division by zero \(.*test_stages\.py, line \d+\)",
        ),
        (lambda images, prompts: torch.zeros(2).to_sparse(), "returned a sparse tensor"),
        (lambda images, prompts: torch.zeros(2) * 1j, "returned complex numbers"),
        (lambda images, prompts: images.sub_(0.5).mean((1, 2, 3)), "changed the images in place"),
        (lambda images, prompts: images[:, 0].mul_(2).mean((1, 2)), "changed the images in place"),
        (raising(Panic), "raised Panic"),
    ],
)
def test_a_reward_out_of_contract_is_reported_by_name(answer, message: str) -> None:
    with pytest.raises(PluginError, match=f"reward 'mine' {message}|reward 'mine' .*{message}"):
        ask([WeightedReward("mine", answer, 1.0)], torch.rand(2, 3, 4, 4), PROMPTS[:2])


def test_no_reward_changes_what_another_sees() -> None:
    """numpy changes memory without a trace; on a CPU each reward has its own."""

    def answer(images, prompts):
        images.numpy()[:] = 0
        return images.mean((1, 2, 3))

    images = torch.ones(2, 3, 4, 4)
    both = [
        WeightedReward(k, f, 1.0) for k, f in (("a", answer), ("b", lambda x, _: x.mean((1, 2, 3))))
    ]
    assert ask(both, images, PROMPTS[:2])().tolist() == [[0, 0], [1, 1]]
    assert images.min() == 1


def test_scores_are_the_engines_own() -> None:
    """A reward may fill the same buffer again, and leave the graph on it."""
    buffer = torch.zeros(2)
    weight = torch.ones(2, requires_grad=True)

    @torch.enable_grad()
    def answer(images, prompts):
        buffer.copy_(images.mean((1, 2, 3)))
        return buffer if len(prompts[0].text) == 8 else weight * buffer

    mine = [WeightedReward("mine", answer, 1.0)]
    first = ask(mine, torch.zeros(2, 3, 4, 4), PROMPTS[:2])
    ask(mine, torch.ones(2, 3, 4, 4), PROMPTS[:2])
    assert first().tolist() == [[0, 0]]
    assert not ask(mine, torch.ones(2, 3, 4, 4), [Prompt("other")] * 2)().requires_grad


def test_a_reward_with_concurrency_is_asked_while_sampling_goes_on(make_run) -> None:
    """Its first call ends only when two more steps have been taken; in the foreground, never."""
    run = make_run(rollout={"batch_size": 2})
    mean = WeightedReward("mean", lambda images, prompts: images.mean((1, 2, 3)), 1.0)
    expected = first_window(replace(run, rewards=(mean,)))
    steps, called, moved = count(1), threading.Event(), threading.Event()

    def advance(units: int) -> None:
        if called.is_set() and next(steps) == 2:
            moved.set()

    def answer(images, prompts):
        called.set()
        assert moved.wait(30), "no step was taken"
        return images.mean((1, 2, 3))

    run.watcher.advance = advance
    item = WeightedReward("patient", answer, 1.0, background=Background(2))
    found = first_window(replace(run, rewards=(item,)))
    assert torch.equal(found.potentials, expected.potentials)
    assert not found.potentials.requires_grad


def test_calls_in_the_background_wait_for_room() -> None:
    background, go = Background(1), threading.Event()
    call = partial(go.wait, 30)
    futures = [background.submit(call) for _ in range(2)]  # one runs, one waits
    third = threading.Thread(target=lambda: futures.append(background.submit(call)))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    go.set()
    third.join(30)
    assert [future.result(30) for future in futures] == [True] * 3


def test_a_reward_that_fails_in_the_background_names_itself(make_run) -> None:
    run = make_run()
    broken = WeightedReward("broken", lambda i, p: 1 / 0, 1.0, background=Background(2))
    with pytest.raises(PluginError, match="reward 'broken' raised ZeroDivisionError"):
        training.start(replace(run, rewards=(broken,)))
    assert checkpoints(run.folder / "checkpoints")


def test_after_a_failure_or_the_end_nothing_more_is_called() -> None:
    background, go, called = Background(1), threading.Event(), []

    def fail():
        go.wait(30)
        raise ValueError("first")

    first = background.submit(fail)
    waiting = background.submit(lambda: called.append(1))
    go.set()
    for future in (first, waiting):
        with pytest.raises(ValueError, match="first"):
            future.result(30)
    with pytest.raises(ValueError, match="first"):
        background.submit(lambda: called.append(2))
    background = Background(1)
    background.close()
    with pytest.raises(RuntimeError, match="closed"):
        background.submit(lambda: called.append(3))
    assert not called


def test_potentials_are_rewards_of_decoded_previews_and_of_the_image(make_run) -> None:
    run = make_run()
    window = first_window(run)
    data = window.trajectories
    final = score(run.rewards, data.images, data.prompts)
    assert torch.equal(window.potentials[:, -1], final)
    times = run.path.timesteps[1].expand(len(data.prompts))
    output = run.policy.predict_text(data.latents[:, 1], times, data.prompt_embeds)
    state = state_at(run.path, torch.ones(len(data.prompts), dtype=torch.long))
    x0 = predicted_x0(state, data.latents[:, 1], output, run.policy.prediction_type)
    preview = score(run.rewards, run.policy.decode(x0), data.prompts)
    assert torch.allclose(window.potentials[:, 1], preview, atol=5e-3)
