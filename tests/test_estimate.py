"""What a run will need, counted beforehand, against what runs do."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from dagflow import UserError, train
from dagflow.estimate import microbatch, work
from dagflow.policies.shapes import Shapes
from dagflow.types import Needs
from tests.conftest import SHORT_OPTIONS, short_config
from tests.engine.test_once_per_state import counted

CASES = {
    "plain": {"objective": {"returns": 0.0}},
    "whole trajectories": {},
    "without potentials": {"rollout": {"potential": "none"}},
    "half of the steps": {
        "objective": {"returns": 0.0},
        "update": {"timestep_fraction": 0.5, "batch_size": 4},
    },
    "sparse": {"objective": {"returns": 0.0}, "rollout": {"potential_steps": 2}},
    "preview decoder": {"objective": {"returns": 0.0}, "rollout": {"preview_decoder": "tiny"}},
    "current": {
        "objective": {"name": "db", "returns": 0.0},
        "rollout": {"potential": "current"},
        "update": {"flow_warmup": 0, "flow_from_data": False},
    },
    "current, by the preview decoder": {
        "objective": {"name": "db", "returns": 0.0},
        "rollout": {"potential": "current", "preview_decoder": "tiny"},
    },
    "current, with statistics of the window": {
        "objective": {"name": "kl", "returns": 0.0, "normalise": True},
        "rollout": {"potential": "current"},
    },
    "against the base model": {"objective": {"name": "rtb"}},
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_does_the_work_that_was_counted(make_run, monkeypatch, name) -> None:
    run = make_run(**CASES[name])
    asked: Counter[str] = Counter()
    reward = run.rewards[0].reward
    calls = reward.__class__.__call__

    def scoring(self, images, prompts):
        asked["reward"] += len(images)
        return calls(self, images, prompts)

    monkeypatch.setattr(reward.__class__, "__call__", scoring)
    seen = counted(run, monkeypatch)
    train.start(run)
    counts = {
        unit: run.config.epochs * each + once
        for unit, (each, once) in work(run.config, run.learner.objective.needs).items()
    }
    passes = counts["guided forward"] + counts["guided forward and backward"]
    assert seen["predict"] == passes
    assert seen["predict_text"] == counts["text forward"]
    previews = counts["preview decode"]
    whole = seen["decode"] if previews else seen["decode"] + seen["preview"]
    assert whole == counts["decode"]
    assert seen["preview"] == previews or not previews
    assert asked["reward"] == counts["reward"]


def test_shapes_of_the_embedded_model_are_those_of_its_weights(make_run) -> None:
    run, shapes = make_run(), Shapes(short_config())
    assert shapes.spec == run.policy.spec
    assert shapes.lora_parameters == sum(p.numel() for p in run.policy.parameters())
    pipeline = run.policy.pipeline
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    frozen = sum(p.nbytes for part in parts for p in part.parameters() if not p.requires_grad)
    assert shapes.frozen_bytes == frozen
    assert shapes.image_size == 32


def test_stable_diffusion_has_its_published_size() -> None:
    """860 M, 84 M and 123 M parameters; 0.8 tera-FLOPs a pass (0.4 of multiply-adds)."""
    settings = {"model": "stable-diffusion-v1-5/stable-diffusion-v1-5", "dtype": "float32"}
    shapes = Shapes(short_config(**settings))
    parameters = shapes.frozen_bytes / 4e6
    assert parameters == pytest.approx(860 + 84 + 123, abs=1)
    assert shapes.guided_pass().forward_flops / 2 == pytest.approx(0.8e12, rel=0.02)
    half = Shapes(short_config(**{**settings, "dtype": "bfloat16"}))
    assert half.frozen_bytes == shapes.frozen_bytes / 2
    saved = [one.guided_pass().saved_bytes for one in (half, shapes)]
    assert saved[0] == pytest.approx(saved[1] / 2, rel=0.01)  # by LoRA layers as by the others


def test_more_devices_share_work_and_trajectories(dagflow) -> None:
    shown = [
        dagflow("doctor", "--estimate", "paper-aesthetic", "--gpus", gpus, "--tflops", "100").stdout
        for gpus in ("1", "8")
    ]
    hours = [float(text.split("time ")[1].split()[0]) for text in shown]
    assert hours[0] == pytest.approx(8 * hours[1], rel=0.02)


def test_a_micro_batch_is_no_larger_than_a_devices_share_of_a_step(dagflow) -> None:
    options = ("doctor", "--estimate", "tiny", "--tflops", "1", "-s", "update.batch_size=16")
    plain = dagflow(*options)
    assert plain.returncode == 0, plain.stderr
    assert dagflow(*options, "-s", "update.microbatch_size=1000000").stdout == plain.stdout
    assert dagflow(*options, "-s", "update.microbatch_size=8").stdout != plain.stdout


def test_a_step_may_be_larger_than_its_batch_size() -> None:
    """640 transitions are no two steps of 321; 64 trajectories of 10 among 8 devices are whole."""
    few = {"rollout": {"samples_per_epoch": 64, "num_inference_steps": 10}}
    large = short_config(**few, update={"batch_size": 321, "microbatch_size": 1000})
    assert microbatch(large, Needs(log_flow=True), 1) == 640
    small = short_config(**few, update={"batch_size": 128, "microbatch_size": 1000})
    assert microbatch(small, Needs(trajectories=True), 8) == 20


def test_devices_that_have_nothing_to_do_are_refused(dagflow) -> None:
    options = ("doctor", "--estimate", "tiny", "--tflops", "1")
    done = dagflow(*options, "--gpus", "65")
    assert done.returncode == 2
    assert "--gpus 65 is more than rollout.samples_per_epoch = 64" in done.stderr
    hours = [dagflow(*options, "--gpus", str(n)).stdout.split("time ")[1] for n in (32, 63)]
    assert hours[0].split()[0] == hours[1].split()[0]  # one device has two samples either way
    assert dagflow("doctor", "--estimate", "tiny", "--tflops", "inf").returncode == 2


def test_the_estimate_can_be_timed_here(dagflow) -> None:
    result = dagflow("doctor", "--estimate", "tiny", *SHORT_OPTIONS)
    assert result.returncode == 0, result.stderr
    assert "as timed here" in result.stdout
    assert "reward" in result.stdout
    result = dagflow("doctor")
    assert f"torch            {torch.__version__.split('+')[0]}" in result.stdout


def test_a_model_whose_shapes_nobody_knows_is_refused(dagflow) -> None:
    with pytest.raises(UserError, match="shapes of 'someone/something' are not known"):
        Shapes(short_config(model="someone/something"))
    result = dagflow("doctor", "--estimate", "world", "--tflops", "1")
    assert result.returncode == 2
    assert "world:gaussians-2d" in result.stderr
