"""What is an alarm, what is none, and what a run does about one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dagflow import train
from dagflow.alarms import Alarm, find_alarms
from dagflow.config import AlarmsTable
from dagflow.engine.checkpoint import moment
from dagflow.evaluate import Measured

COUNT = 40
TABLE = AlarmsTable(diversity=0.5, looks=2.0)


def spread(seed: int) -> torch.Tensor:
    return torch.randn(COUNT, generator=torch.Generator().manual_seed(seed))


BASE = Measured(spread(0), {}, {"brightness": spread(1), "edge_density": spread(2)}, 0.4, 3.0)


def after(
    gain: float = 1.0, diversity: float | None = 0.4, base: Measured = BASE, **moved: float
) -> Measured:
    """The base model's images, of which rewards and looks have moved by deviations."""
    looks = {k: v + moved.get(k, 0.0) * v.std() for k, v in base.looks.items()}
    return Measured(base.rewards + gain * base.rewards.std(), {}, looks, diversity, 3.0)


def named(alarms: list[Alarm]) -> list[str]:
    return [alarm.statistic for alarm in alarms]


def test_one_image_and_chance_are_no_alarm() -> None:
    """With two images the reward must have risen by 12.7 standard errors."""
    one = Measured(torch.zeros(1), {}, {"brightness": torch.zeros(1)}, None, None)
    assert find_alarms(one, replace(one, rewards=torch.ones(1)), TABLE) == []
    looks = [{"brightness": torch.tensor([0.0, 0.1]) + moved} for moved in (0, 9)]
    two = Measured(torch.zeros(2), {}, looks[0], None, None)
    for rewards, due in (([0.8, 1.2], []), ([0.95, 1.05], ["brightness"])):
        now = Measured(torch.tensor(rewards), {}, looks[1], None, None)
        assert named(find_alarms(two, now, TABLE)) == due


def test_what_has_moved_too_far_is_an_alarm() -> None:
    assert find_alarms(BASE, after(), TABLE) == []
    assert named(find_alarms(BASE, after(brightness=-2.6), TABLE)) == ["brightness"]
    assert named(find_alarms(BASE, after(edge_density=2.6), TABLE)) == ["edge_density"]
    assert named(find_alarms(BASE, after(diversity=0.19), TABLE)) == ["diversity"]
    assert named(find_alarms(BASE, after(diversity=0.21), TABLE)) == []
    assert named(find_alarms(BASE, after(diversity=0.8, brightness=1.5), TABLE)) == []
    (alarm,) = find_alarms(BASE, after(brightness=-2.6), TABLE)
    assert (alarm.shift, alarm.limit, alarm.gain) == pytest.approx((-2.6, 2, 1))
    text = "brightness fell by 2.60 deviations (limit 2) while the reward rose by 1.00 deviations"
    assert str(alarm) == text


def test_without_a_rise_of_the_reward_there_is_none() -> None:
    assert find_alarms(BASE, after(gain=0, brightness=-5, diversity=0.0), TABLE) == []
    assert find_alarms(BASE, after(gain=-1, brightness=-5, diversity=0.0), TABLE) == []
    off = AlarmsTable(action="off")
    assert find_alarms(BASE, after(brightness=-5, diversity=0.0), off) == []


def test_a_look_that_the_reward_determines_does_not_count() -> None:
    own = Measured(BASE.rewards, {}, {"jpeg_kb": -BASE.rewards}, 0.4, 3.0)
    assert find_alarms(own, after(gain=5, jpeg_kb=-5, base=own), TABLE) == []
    shuffled = Measured(BASE.rewards, {}, {"jpeg_kb": -BASE.rewards.roll(7)}, 0.4, 3.0)
    assert named(find_alarms(shuffled, after(gain=5, jpeg_kb=-5, base=shuffled), TABLE))


def test_what_a_correlation_explains_is_taken_off() -> None:
    """At a correlation of 0.6, 3 deviations of reward explain 1.8 of a look, in its direction."""
    look = 0.6 * BASE.rewards + 0.8 * spread(5)
    linked = Measured(BASE.rewards, {}, {"saturation": look}, 0.4, 3.0)
    assert named(find_alarms(linked, after(gain=3, saturation=3, base=linked), TABLE)) == []
    assert named(find_alarms(linked, after(gain=3, saturation=-3, base=linked), TABLE))
    assert named(find_alarms(linked, after(gain=0.5, saturation=3, base=linked), TABLE))


def test_looks_that_do_not_vary_and_prompts_with_one_image_are_no_trouble() -> None:
    grey = Measured(BASE.rewards, {}, {"saturation": torch.zeros(COUNT)}, None, None)
    assert find_alarms(grey, after(base=grey, diversity=None), TABLE) == []


@pytest.mark.parametrize("action", ["warn", "stop", "roll-back"])
def test_what_a_run_does(make_run, action: str) -> None:
    """Limits that anything exceeds, and a reward that rises whatever is done."""
    run = make_run(
        epochs=4,
        rewards={"jpeg-compressibility": {}},
        evaluate={"watched": 8, "images": 4},
        alarms={"action": action, "diversity": 1e-6, "looks": 1e-6},
        update={"learning_rate": 3e-3},
        checkpoint={"keep": 9},
    )
    reward, seen = run.rewards[0].reward, []
    said = []
    run.watcher.say = said.append  # type: ignore[method-assign]
    scores = reward.__class__.__call__

    def rising(images, prompts):
        seen.append(len(images))
        return scores(reward, images, prompts) + 0.1 * len(seen)

    object.__setattr__(run.rewards[0], "reward", rising)
    outcome = train.start(run)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    alarms = [line for line in lines if "alarm" in line]
    assert alarms
    assert any("ALARM" in text for text in said)
    assert {"epoch", "alarm", "shift", "limit", "gain"} == alarms[0].keys()
    first = alarms[0]["epoch"]
    if action == "warn":
        assert outcome.stopped is None
        assert moment(outcome.checkpoint)[0] == 4
        return
    assert outcome.stopped.epochs == first
    assert outcome.stopped.alarms
    went_back = action == "roll-back" and first > 1
    assert outcome.stopped.went_back is went_back
    assert moment(outcome.checkpoint)[0] == first - went_back
    assert outcome.evaluation.numbers["checkpoint"] == outcome.checkpoint.name
