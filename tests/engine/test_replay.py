from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dagflow import Prompt, UserError
from dagflow.collect import collect
from dagflow.diffusion import path as gaussian
from dagflow.engine.metrics import Clock
from dagflow.engine.replay import Buffer, Kept, draw, given_images, renoised
from dagflow.types import Trajectories

A, B = Prompt("a"), Prompt("b")


def trajectories(prompts: list[Prompt]) -> Trajectories:
    count = len(prompts)
    zeros = torch.zeros(count, 2)
    latents = torch.arange(count).float().view(-1, 1, 1, 1, 1).expand(count, 3, 1, 1, 1)
    index = torch.arange(count)
    return Trajectories(tuple(prompts), latents, zeros, zeros, zeros, zeros, index)


def more(buffer: Buffer, here: Trajectories, rewards: torch.Tensor) -> Buffer:
    return buffer.with_more(here.prompts, rewards, here)


def test_the_best_stay_and_no_prompt_has_more_than_its_share() -> None:
    buffer = Buffer(capacity=3, per_prompt=2)
    buffer = more(buffer, trajectories([A, A, A, B]), torch.tensor([1.0, 3.0, 2.0, 0.0]))
    assert [(k.prompt.text, k.reward) for k in buffer.kept] == [("a", 3), ("a", 2), ("b", 0)]
    buffer = more(buffer, trajectories([B, B]), torch.tensor([5.0, -1.0]))
    assert [(k.prompt.text, k.reward) for k in buffer.kept] == [("b", 5), ("a", 3), ("a", 2)]


def test_a_checkpoint_gives_back_the_same_buffer() -> None:
    prompts = [B, A]
    buffer = more(Buffer(4, 4), trajectories([A, B]), torch.tensor([1.0, 2.0]))
    again = Buffer(4, 4).restored(buffer.tensors(prompts), prompts)
    assert [(k.prompt, k.reward) for k in again.kept] == [(k.prompt, k.reward) for k in buffer.kept]
    assert all(
        torch.equal(x.latents, y.latents) for x, y in zip(again.kept, buffer.kept, strict=True)
    )


def test_noised_trajectories_follow_q(make_run) -> None:
    """Each step is drawn from N(a x_s, v), so what is left after both is a standard normal."""
    run = make_run()
    kept = more(Buffer(8, 8), first_epoch(run), torch.zeros(4)).kept
    states = renoised(run.path, list(kept) * 8, torch.Generator().manual_seed(0))
    for i in range(run.path.steps):
        step = gaussian.step_from(run.path, torch.full((len(states),), i))
        rest = (states[:, i] - step.noising * states[:, i + 1]) / step.noising_variance.sqrt()
        assert abs(float(rest.mean())) < 0.02
        assert float(rest.std()) == pytest.approx(1, abs=0.02)
    assert torch.equal(states[0, -1], kept[0].latents[-1])


def first_epoch(run) -> Trajectories:
    return collect(run, 0, {}, run.policy.weights(), Buffer(1, 1), Clock()).trajectories


def test_replayed_trajectories_are_retraced_by_the_present_network(make_run) -> None:
    replay = {"share": 0.5, "capacity": 8}
    run = make_run(objective={"name": "db"}, replay=replay)
    before = collect(run, 0, {}, run.policy.weights(), Buffer(8, 8), Clock())
    assert len(before.trajectories.prompts) == 4  # the buffer is empty, so all are sampled
    buffer = more(Buffer(8, 8), before.trajectories, before.final)
    for parameter in run.policy.parameters():
        parameter.data += 0.02
    data = collect(run, 1, {}, run.policy.weights(), buffer, Clock())
    assert (len(data.trajectories.prompts), len(data.final), data.raw.shape[1]) == (4, 2, 2)
    known = [item.latents for item in buffer.kept]
    for k in (2, 3):
        latents = data.trajectories.latents[k]
        place = next(n for n, other in enumerate(known) if torch.equal(latents, other))
        row = next(n for n in range(4) if torch.equal(before.trajectories.latents[n], known[place]))
        assert data.trajectories.prompts[k] is before.trajectories.prompts[row]
        # the image and its reward are the same, densities and potentials are not
        torch.testing.assert_close(data.potentials[k, -1], before.potentials[row, -1])
        assert not torch.equal(data.potentials[k, :-1], before.potentials[row, :-1])
        assert not torch.equal(data.trajectories.log_pf[k], before.trajectories.log_pf[row])


def test_backward_trajectories_end_in_the_pictures_that_were_given(make_run, tmp_path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (70, 64), (200, 30, 30)).save(folder / "red.png")
    line = {"file_name": "red.png", "text": "a red thing"}
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    run = make_run(objective={"name": "db"}, replay={"backward": 0.5, "images": str(folder)})
    data = collect(run, 0, {}, run.policy.weights(), Buffer(8, 8), Clock())
    assert [p.text for p in data.trajectories.prompts[2:]] == ["a red thing"] * 2
    red = data.trajectories.images[2].mean((1, 2))
    torch.testing.assert_close(red, torch.tensor([200, 30, 30]) / 255, rtol=0, atol=0.15)
    assert not torch.equal(data.trajectories.latents[2, 0], data.trajectories.latents[3, 0])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "line 1"),
        ('{"file_name": "absent.png", "text": "x"}', "absent.png"),
        ('{"file_name": "absent.png"}', "text"),
        ("", "names no picture"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(make_run, tmp_path: Path, line, reason) -> None:
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match=reason):
        given_images(tmp_path, make_run().policy)


@pytest.mark.parametrize("name", ["kl", "ddpo"])
def test_objectives_that_need_fresh_samples_refuse_old_ones(make_run, name) -> None:
    with pytest.raises(UserError, match=r"replay\.share"):
        make_run(objective={"name": name}, replay={"share": 0.5})


def test_a_resumed_run_with_a_buffer_writes_the_same_bytes(make_run, tmp_path) -> None:
    from dagflow import train
    from dagflow.errors import Interrupted

    settings = {
        "objective": {"name": "tb"},
        "replay": {"share": 0.25, "backward": 0.25},
        "epochs": 3,
        "evaluate": {"images": 0, "grid": 0},
    }
    whole = make_run(output=str(tmp_path / "whole"), **settings)
    train.start(whole)
    seen = {"phase": ("", 0), "count": 0}

    def stop() -> bool:
        seen["count"] += seen["phase"] == ("update", 3)
        return seen["count"] == 2

    broken = make_run(stop, output=str(tmp_path / "broken"), **settings)
    broken.watcher.phase = lambda name, total, epoch: seen.update(phase=(name, epoch))
    with pytest.raises(Interrupted):
        train.start(broken)
    resumed = make_run(output=str(tmp_path / "broken"), **settings)
    train.resume(resumed)
    names = ["metrics.jsonl", "checkpoints/epoch-0003/training_state.safetensors"]
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_nothing_is_kept_until_all_that_comes_is_weighed_alike(make_run) -> None:
    """The best of one scale would stand above better ones of another."""
    from dagflow import train

    run = make_run(
        objective={"name": "tb"},
        rewards={"jpeg-compressibility": {"normalise_epochs": 2}},
        replay={"share": 0.5},
        checkpoint={"keep": 9},
        evaluate={"images": 0, "grid": 0, "watched": 0},
        epochs=3,
    )
    train.start(run)
    folders = sorted((run.folder / "checkpoints").glob("epoch-*"))
    states = [load_file(folder / "training_state.safetensors") for folder in folders]
    assert ["replay.latents" in state for state in states] == [False, True, True]


def test_each_prompt_is_drawn_once_in_a_pass_though_fewer_are_sampled_later(make_run) -> None:
    run = make_run(objective={"name": "db"}, replay={"share": 0.5}, prompts={"name": "animals"})
    buffer, texts = Buffer(8, 8), []
    for epoch in range(4):
        data = collect(run, epoch, {}, run.policy.weights(), buffer, Clock())
        buffer = more(buffer, data.sampled, data.final)
        texts += [prompt.text for prompt in data.prompts]
    assert len(texts) == len(set(texts)) == 4 + 2 + 2 + 2


def test_groups_of_one_text_are_drawn_together() -> None:
    buffer = more(Buffer(9, 9), trajectories([A, A, A, A, B, B]), torch.arange(6.0))
    drawn = draw(buffer.kept, 10, torch.Generator().manual_seed(0), alike=4)
    for group in (drawn[:4], drawn[4:8], drawn[8:]):
        assert len({item.prompt.text for item in group}) == 1
    assert len({item.reward for item in drawn[:4]}) in (2, 4)  # all that there are of the text
    assert len(drawn) == 10


@pytest.mark.parametrize("alike", [1, 3])
def test_each_is_drawn_as_often_as_any_other(alike: int) -> None:
    buffer = more(Buffer(9, 9), trajectories([A, A, A, B, B, B]), torch.arange(6.0))
    drawn = draw(buffer.kept, 6000, torch.Generator().manual_seed(0), alike)
    counts = Counter(item.reward for item in drawn)
    assert max(abs(count - 1000) for count in counts.values()) < 150


def test_replayed_groups_are_compared(make_run) -> None:
    run = make_run(
        objective={"name": "vargrad"},
        rollout={"samples_per_epoch": 12, "images_per_prompt": 2},
        replay={"share": 0.3, "backward": 0.3},
    )
    before = collect(run, 0, {}, run.policy.weights(), Buffer(12, 12), Clock())
    buffer = more(Buffer(12, 12), before.sampled, before.final)
    data = collect(run, 1, {}, run.policy.weights(), buffer, Clock())
    texts = [prompt.text for prompt in data.trajectories.prompts]
    assert texts[::2] == texts[1::2]


@pytest.mark.parametrize("noiseless_end", [True, False])
def test_a_given_picture_is_as_noisy_as_the_end_of_the_path(make_run, noiseless_end) -> None:
    """Where the sampler goes on from there; else it is the image itself."""
    path = replace(make_run().path, noiseless_end=noiseless_end)
    path.alpha[-1], path.sigma[-1] = 0.8, 0.6
    given = [Kept(A, torch.full((1, 1, 64, 64), 2.0), float("nan"))]
    [states] = renoised(path, given, torch.Generator().manual_seed(0))
    mean, deviation = (1.6, 0.6) if noiseless_end else (2, 0)
    assert float(states[-1].mean()) == pytest.approx(mean, abs=0.05)
    assert float(states[-1].std()) == pytest.approx(deviation, abs=0.05)


def test_the_config_refuses_to_replay_everything() -> None:
    from tests.conftest import short_config

    with pytest.raises(UserError, match="leaves nothing to sample"):
        short_config(replay={"share": 0.5, "backward": 0.5})
