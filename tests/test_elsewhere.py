"""No tensor of a run is left on the CPU by mistake: all of it on a device of its own.

With `make test-gpu` that is a GPU, else one that only refuses what a GPU refuses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dagflow import PluginError, Prompt
from dagflow.checks.patient import Patient
from dagflow.checks.runner import all_checks, examine
from dagflow.diffusion.path import GaussianPath
from dagflow.draw import draw
from dagflow.engine.rollout import rollout
from dagflow.engine.scoring import WeightedReward, ask, place
from dagflow.engine.update import update
from dagflow.outcome import evaluate_checkpoint
from dagflow.plugins import load_plugins
from dagflow.policies.loading import load_policy
from dagflow.policies.policy import Policy
from dagflow.prepare import Run
from dagflow.train import resume, start
from tests.conftest import first_window, merged, short_config
from tests.elsewhere import elsewhere, waited
from tests.measures.test_features import dino  # noqa: F401
from tests.policies.test_ddpm import make_pipeline
from tests.rewards.test_published import ALL, weights  # noqa: F401

PAIRS = {"rollout": {"images_per_prompt": 2}}
BRIEF = {  # each operator takes its time there
    "epochs": 1,
    "rollout": {"num_inference_steps": 3},
    "update": {"batch_size": 6, "microbatch_size": 6, "flow_warmup": 1},
    "evaluate": {"images": 2, "grid": 1},
}
RUNS: dict[str, dict[str, Any]] = {
    "kl, current potentials, off-load": {
        "objective": {"name": "kl", "normalise": True, "returns": 0.9},
        "rollout": {"potential": "current"},
        "machine": {"offload": True, "vae_slicing": True},
    },
    "db, replay, two rewards": {
        "objective": {"name": "db"},
        "rewards": {"jpeg-compressibility": {"normalise_epochs": 2}},
        "replay": {"share": 0.25, "backward": 0.25},
        "evaluate": {"rewards": {"jpeg-incompressibility": {}}},
    },
    "subtb, preview decoder": {
        "objective": {"name": "subtb"},
        "rollout": {"preview_decoder": "tiny", "potential_steps": 2},
    },
    "rtb, beta from a divergence": {"objective": {"name": "rtb", "beta": "auto:KL=0.5"}, **PAIRS},
    "a world": {
        "model": "world:gaussians-2d",
        "rewards": {"world-density": {"world": "gaussians-2d"}},
    },
}
MORE: dict[str, dict[str, Any]] = {
    "tb": {"objective": {"name": "tb"}},
    "vargrad": {"objective": {"name": "vargrad"}, **PAIRS},
    "residual-db": {"objective": {"name": "residual-db"}},
    "ddpo": {"objective": {"name": "ddpo"}},
    "grpo": {"objective": {"name": "grpo"}, **PAIRS},
}


@pytest.fixture
def away() -> Iterator[torch.device]:
    if os.environ.get("DAGFLOW_TEST_GPU"):
        assert torch.cuda.is_available(), "torch finds no GPU here"
        yield torch.device("cuda", 0)
        torch.use_deterministic_algorithms(False)
        return
    with elsewhere() as device:
        yield device


def test_the_device_refuses_what_cuda_refuses(away: torch.device) -> None:
    here, there = torch.ones(3), torch.ones(3, device=away)
    assert there.device == away
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
    assert there[torch.tensor([0, 2])].tolist() == [1, 1]
    assert there.cpu().equal(here)
    waited.clear()
    assert float(there.sum()) == 3
    assert there[there > 0].cpu().equal(here)
    assert there.copy_(here, non_blocking=True).device == away
    if away.type != "cuda":
        read = ["_local_scalar_dense.default", "index.Tensor", "_to_copy.default"]
        assert waited == [f"aten.{name}" for name in read]
    refused: list[Callable[[], object]] = [
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here[torch.zeros(1, dtype=torch.int64, device=away)],
        lambda: there.index_put_((torch.arange(2),), here[:2]),
        lambda: torch.randn(3, generator=torch.Generator(), device=away),
        lambda: there.numpy(),
    ]
    for call in refused:
        with pytest.raises((RuntimeError, TypeError)):
            call()


@pytest.mark.parametrize(
    "changes",
    [
        *(pytest.param(changes, id=name) for name, changes in RUNS.items()),
        *(pytest.param(changes, id=name, marks=pytest.mark.slow) for name, changes in MORE.items()),
    ],
)
def test_a_run_trains_resumes_and_is_evaluated(
    away: torch.device, make_run: Callable[..., Run], changes: dict[str, Any]
) -> None:
    changes = merged(BRIEF, changes)
    run = make_run(**changes)
    assert run.policy.device == away
    assert all(parameter.device == away for parameter in run.policy.parameters())
    start(run)
    resume(make_run(**{**changes, "epochs": 2}))
    again = evaluate_checkpoint(make_run(**changes))
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert sum("reward_mean" in json.loads(line) for line in lines) == 2
    assert again.numbers["images"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl", "subtb"])
def test_a_deterministic_run_is_the_same_again(
    away: torch.device, make_run: Callable[..., Run], tmp_path: Path, name: str
) -> None:
    if away.type != "cuda":
        pytest.skip("only a GPU's numbers differ from run to run")
    changes = {"objective": {"name": name}, "machine": {"deterministic": True}}
    ends = []
    for folder in ("one", "two"):
        run = make_run(**merged(BRIEF, changes), output=str(tmp_path / folder))
        start(run)
        ends.append(run.policy.weights() | run.learner.objective.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


WORLD = {"model": "world:gaussians-2d", "rewards": RUNS["a world"]["rewards"]}


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"objective": {"name": "kl"}}, 7),  # five metrics and two norms of gradients are read
        ({"objective": {"name": "ddpo"}}, 6),
        ({"objective": {"name": "subtb"}}, 7),
        ({"objective": {"name": "db"}, **WORLD}, 6),
    ],
    ids=["kl", "ddpo", "subtb", "a world"],
)
def test_nothing_waits_for_the_device_between_micro_batches_and_steps(
    away: torch.device, make_run: Callable[..., Run], changes: dict[str, Any], waits: int
) -> None:
    if away.type == "cuda":
        pytest.skip("the device that only refuses counts for what a CPU waits")
    for size, steps in ((6, 3), (2, 4)):
        more = {"update": {"microbatch_size": size}, **PAIRS}
        run = make_run(**merged(merged(BRIEF, changes), more))
        path = run.policy.path(steps).on(away)
        window = first_window(replace(run, path=path))
        noise = torch.randn(4, steps + 1, *run.policy.latent_shape)
        prompts = run.prompts[:2]
        run.policy.encode([prompt.text for prompt in prompts])
        waited.clear()
        sampled_and_asked(run.policy, path, prompts * 2, noise)
        assert waited == ["aten._to_copy.default"] * 2  # noise, and numbers of trajectories
        waited.clear()
        update(run.learner, window)
        assert waited == ["aten._local_scalar_dense.default"] * waits


def sampled_and_asked(
    policy: Policy, path: GaussianPath, prompts: Sequence[Prompt], noise: torch.Tensor
) -> None:
    """A rollout, of whose every x0hat a reward of that device is asked."""
    reward = WeightedReward("brightness", lambda images, _: images.mean((1, 2, 3)), 1.0)

    def look(_: int, x0: torch.Tensor) -> None:
        ask([reward], policy.preview(x0), prompts)

    rollout(policy, path, prompts, noise, "mean", on_preview=look)


def test_a_model_of_pixels_trains(
    away: torch.device, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    make_pipeline().save_pretrained(tmp_path / "model")
    texts = {"name": "texts", "texts": ["x"]}
    run = make_run(model=f"ddpm:{tmp_path / 'model'}", prompts=texts, **BRIEF)
    assert run.policy.parameters()[0].device == away
    start(run)


@pytest.mark.parametrize("name", ALL)
def test_rewards_score_there(name: str, away: torch.device, weights: str) -> None:  # noqa: F811
    reward = place(ALL[name](weights=weights), away)
    images = torch.rand(2, 3, 64, 48, device=away)
    waited.clear()
    scores = reward(images, [Prompt("a cat"), Prompt("a dog")])
    assert scores.device == away
    if away.type != "cuda":
        reads = 2 if name == "imagereward" else 0  # transformers looks at the mask
        assert waited == ["aten._local_scalar_dense.default"] * reads
    exact = place(ALL[name](weights=weights, exact=True), away)
    assert exact(torch.rand(1, 3, 64, 48, device=away), [Prompt("")]).device == away


def test_a_score_there_that_is_not_finite_is_reported_when_it_is_read(away: torch.device) -> None:
    reward = WeightedReward("mine", lambda images, _: images.mean((1, 2, 3)).log(), 1.0)
    images = torch.stack([torch.ones(3, 4, 4), -torch.ones(3, 4, 4)]).to(away)
    scores = ask([reward], images, [Prompt("a cat"), Prompt("a dog")])
    with pytest.raises(PluginError, match="reward 'mine' returned nan for the prompt 'a dog'"):
        scores()


def test_features_measure_there(
    away: torch.device,
    make_run: Callable[..., Run],
    dino: Path,  # noqa: F811
) -> None:
    start(make_run(**merged(BRIEF, {"evaluate": {"features": str(dino)}})))


def test_pictures_are_drawn_there(away: torch.device) -> None:
    policy = load_policy("tiny", "float32", away, 3.0)
    assert draw(policy, ["a cat", "a dog"], 3, 2, 0).shape == (2, 3, 32, 32)


def test_the_doctor_finds_nothing_there(away: torch.device, tmp_path: Path) -> None:
    config = short_config(output=str(tmp_path / "run"))
    patient = Patient(config, load_plugins(), away, tmp_path)
    results = list(examine(patient, all_checks(patient, None), lambda *_: None))
    assert not [result for result in results if result.status == "failed"]
