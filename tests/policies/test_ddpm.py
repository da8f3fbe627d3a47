from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, PNDMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from dagflow import Prompt, UserError
from dagflow.config import LoraTable
from dagflow.diffusion import path as gaussian
from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine.rollout import rollout
from dagflow.policies.ddpm import DDPMPolicy
from dagflow.policies.loading import load_policy
from tests.conftest import SHORT_OPTIONS, put_out

CPU = torch.device("cpu")
STEPS = 7
UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}


def make_pipeline(scheduler: Any = None, **changes: Any) -> DDPMPipeline:
    """A small network with random weights, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(**(UNET | changes))
    pipeline = DDPMPipeline(unet.eval(), scheduler or DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_policy(**changes: Any) -> DDPMPolicy:
    return DDPMPolicy(make_pipeline(**changes), CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The pipeline as diffusers saves it."""
    make_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def output(policy: DDPMPolicy) -> Tensor:
    """What the network says of two fixed states."""
    state = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return policy.predict(state, torch.tensor([501, 1]), policy.encode(["", ""])).guided


def disturb(policy: DDPMPolicy) -> None:
    """As training would."""
    for parameter in policy.parameters():
        parameter.data += 0.1


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_each_step_has_the_mean_and_variance_of_diffusers_scheduler(
    spacing: str, predicts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"timestep_spacing": spacing, "prediction_type": predicts, "clip_sample_range": 0.9}
    theirs = DDPMScheduler(**options, variance_type="fixed_small", clip_sample=True)
    theirs.set_timesteps(STEPS)
    policy = make_policy(scheduler=DDPMScheduler(**options))
    path = policy.path(STEPS)
    assert path.timesteps.tolist() == theirs.timesteps.tolist()
    assert (path.steps, path.noiseless_end) == (STEPS - 1, True)
    drawn = {"value": 0.0}
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor",
        lambda shape, **_: torch.full(shape, drawn["value"]),
    )

    def their_step(value: float, time: Tensor, x: Tensor) -> Tensor:
        drawn["value"] = value
        return theirs.step(raw, time, x).prev_sample

    source = torch.Generator().manual_seed(2)
    x0, noise, raw = torch.randn(3, 2, *policy.latent_shape, generator=source)
    for i, time in enumerate(theirs.timesteps):
        state = gaussian.state_at(path, torch.tensor([i, i]))
        x = state.alpha * x0 + state.sigma * noise
        predicted = policy.predicted_x0(state, x, raw)
        clipped = (predicted.abs() == 0.9).float().mean()
        assert 0.1 < clipped < 0.999
        mean = their_step(0.0, time, x)
        if i == path.steps:
            torch.testing.assert_close(predicted, mean, rtol=0, atol=1e-4)
            torch.testing.assert_close(their_step(1.0, time, x), mean, rtol=0, atol=1e-6)
            break
        step = gaussian.step_from(path, torch.tensor([i, i]))
        ours = gaussian.policy_mean(step, x, predicted)
        torch.testing.assert_close(ours, mean, rtol=0, atol=1e-4)
        deviation = (their_step(1.0, time, x) - mean).mean()
        torch.testing.assert_close(step.variance[0].sqrt().mean(), deviation, rtol=1e-4, atol=1e-6)


def test_a_rollout_draws_what_diffusers_own_pipeline_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, theirs = make_policy(), make_pipeline()
    path = policy.path(STEPS)
    drawn = trajectory_noise(Stream.SAMPLE, 0, 0, range(2), path.steps, policy.latent_shape)
    policy.add_weights(LoraTable(), seed=0)
    ours = rollout(policy, path, [Prompt("x")] * 2, drawn, "mean")

    queue = list(drawn.unbind(1))
    for module in ("schedulers.scheduling_ddpm", "pipelines.ddpm.pipeline_ddpm"):
        monkeypatch.setattr(f"diffusers.{module}.randn_tensor", lambda *_, **__: queue.pop(0))
    images = theirs(batch_size=2, num_inference_steps=STEPS, output_type="pt").images
    assert not queue
    assert images.std() > 0.1
    torch.testing.assert_close(ours.images, images, rtol=0, atol=1e-4)


def test_nothing_is_clipped_where_the_scheduler_clips_nothing() -> None:
    policy = make_policy(scheduler=DDPMScheduler(clip_sample=False))
    state = gaussian.state_at(policy.path(4), torch.tensor([0]))
    x = torch.randn(1, *policy.latent_shape)
    x0 = policy.predicted_x0(state, x, torch.zeros_like(x))
    assert x0.abs().max() > 1
    torch.testing.assert_close(x0, x / state.alpha)


def test_a_ddim_scheduler_in_the_pipeline_gives_ddpms_path() -> None:
    theirs = make_policy().path(5)
    ours = make_policy(scheduler=DDIMScheduler()).path(5)
    assert torch.equal(ours.alpha, theirs.alpha)
    assert ours.noiseless_end


@pytest.mark.parametrize("channels", [1, 3])
def test_states_are_pixels_and_images_their_inverse(channels: int) -> None:
    size = (24, 16)
    policy = make_policy(in_channels=channels, out_channels=channels, sample_size=size)
    assert policy.latent_shape == (channels, *size)
    assert policy.spec.latent_size == size
    assert output(policy).shape == (2, channels, *size)
    pixels = 2 * torch.rand(2, channels, *size) - 1
    images = policy.decode(pixels)
    assert images.shape == (2, 3, *size)
    torch.testing.assert_close(images[:, :channels], pixels / 2 + 0.5)
    torch.testing.assert_close(images[:, 2], images[:, channels - 1])
    torch.testing.assert_close(policy.encode_images(images), pixels)
    assert policy.decode(torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1)).unique().tolist() == [0, 1]


def test_base_context_shows_the_frozen_model() -> None:
    policy = make_policy()
    frozen = output(policy)
    with policy.base():
        assert torch.equal(output(policy), frozen)
    policy.add_weights(LoraTable(), seed=0)
    assert torch.equal(output(policy), frozen)
    trained = policy.parameters()
    disturb(policy)
    assert not torch.allclose(output(policy), frozen)
    with policy.base():
        with policy.base():
            assert torch.equal(output(policy), frozen)
        assert torch.equal(output(policy), frozen)
    assert not torch.allclose(output(policy), frozen)
    assert [id(p) for p in policy.parameters()] == [id(p) for p in trained]
    assert len(trained) == len(policy.weights()) > 0


def test_saved_weights_load_into_a_fresh_model(tmp_path: Path) -> None:
    policy = make_policy()
    policy.add_weights(LoraTable(rank=3, alpha=6, targets=("to_q", "to_v")), seed=0)
    disturb(policy)
    policy.save_weights(tmp_path)
    fresh = make_policy()
    assert not torch.allclose(output(fresh), output(policy))
    fresh.load_weights(tmp_path)
    assert torch.equal(output(fresh), output(policy))
    with fresh.base():
        assert torch.equal(output(fresh), output(make_policy()))


def test_the_table_lora_decides_layers_rank_and_scale() -> None:
    policy, weaker = make_policy(), make_policy()
    policy.add_weights(LoraTable(rank=3, alpha=6, targets=("to_q", "to_v")), seed=0)
    weaker.add_weights(LoraTable(rank=3, alpha=3, targets=("to_q", "to_v")), seed=0)
    disturb(policy)
    weaker.set_weights(policy.weights())
    assert not torch.allclose(output(policy), output(weaker))
    assert {name.split(".")[-3] for name in policy.weights()} == {"to_q", "to_v"}
    assert {min(matrix.shape) for matrix in policy.weights().values()} == {3}


def test_weights_are_copies_and_are_put_back() -> None:
    policy = make_policy()
    policy.add_weights(LoraTable(), seed=0)
    disturb(policy)
    before, kept = output(policy), policy.weights()
    disturb(policy)
    assert not torch.allclose(output(policy), before)
    policy.set_weights(kept)
    assert torch.equal(output(policy), before)


def test_the_seed_decides_the_lora() -> None:
    states = []
    for seed in (0, 0, 1):
        policy = make_policy()
        torch.randn(seed + 3)  # the process's own generator does not matter
        policy.add_weights(LoraTable(), seed)
        states.append(torch.cat([p.flatten() for p in policy.weights().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_bfloat16_network_stays_so_and_trains_its_lora_in_float32(folder: Path) -> None:
    policy = load_policy(f"ddpm:{folder}", "bfloat16", CPU, 5.0)
    assert isinstance(policy, DDPMPolicy)
    policy.add_weights(LoraTable(), seed=0)
    assert policy.unet.conv_in.weight.dtype == torch.bfloat16
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    state = torch.randn(1, *policy.latent_shape)
    layers = [part for name, part in policy.unet.named_modules() if name != "time_proj"]
    with put_out(layers) as dtypes:
        said = policy.predict(state, torch.tensor([501]), policy.encode(["x"])).guided
    assert dtypes == {torch.bfloat16}
    assert said.dtype == torch.float32
    said.sum().backward()
    assert any(float(p.grad.abs().max()) > 0 for p in policy.parameters() if p.grad is not None)


def test_a_run_trains_and_its_model_draws(
    folder: Path, tmp_path: Path, dagflow: Callable[..., CompletedProcess[str]]
) -> None:
    settings = [option for option in SHORT_OPTIONS[1::2] if "flow_channels" not in option]
    done = dagflow(
        *("train", "--model", f"ddpm:{folder}", "--reward", "jpeg-compressibility"),
        *("--objective", "tb", "--prompt", "x", "--output", "run"),
        *(word for setting in settings for word in ("-s", setting)),
    )
    assert done.returncode == 0, done.stderr
    checkpoint = max((tmp_path / "run" / "checkpoints").glob("epoch-*"))
    weights = load_file(checkpoint / DDPMPolicy.WEIGHTS_FILE)
    assert any(float(w.abs().max()) > 0 for name, w in weights.items() if "lora_B" in name)

    done = dagflow("sample", "run", "--prompt", "x", "-n", "2", "--output", "pictures")
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == {
        *("0000.png", "0001.png", "grid.png"),
    }


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        (1, {}, "num_inference_steps to be at least 2"),
        (0, {}, "num_inference_steps to be at least 2"),
        (51, {}, "51 inference steps are too many: the model was trained with 50."),
        (50, {"steps_offset": 1}, "begins before the first of the 50"),
        (50, {"trained_betas": [0.1] * 20 + [0.0] * 10 + [0.1] * 20}, "one noise level twice"),
        (50, {"trained_betas": [0.0] + [0.1] * 49}, "one noise level twice"),
    ],
)
def test_numbers_of_steps_that_cannot_be(steps: int, options: dict[str, Any], message: str) -> None:
    policy = make_policy(scheduler=DDPMScheduler(num_train_timesteps=50, **options))
    with pytest.raises(UserError, match=message):
        policy.path(steps)


def test_as_many_steps_as_the_model_was_trained_with() -> None:
    path = make_policy(scheduler=DDPMScheduler(num_train_timesteps=50)).path(50)
    assert path.timesteps.tolist() == [*range(49, -1, -1)]
    assert (path.sigma > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_channels": 6}, "its variance is learned"),
        ({"scheduler": DDPMScheduler(variance_type="learned_range")}, "its variance is learned"),
        ({"scheduler": DDPMScheduler(thresholding=True)}, "its scheduler has thresholding = true"),
        ({"scheduler": PNDMScheduler()}, "neither DDPMScheduler nor DDIMScheduler"),
        ({"scheduler": DDPMScheduler(prediction_type="x")}, "its scheduler predicts none of"),
        ({"scheduler": DDPMScheduler(rescale_betas_zero_snr=True)}, "at a first state that is"),
        ({"in_channels": 4, "out_channels": 4}, "neither 1 nor 3 channels"),
        ({"sample_size": None}, "does not say how large its pictures are"),
        ({"num_class_embeds": 10}, "its UNet needs a class"),
    ],
)
def test_pipelines_of_another_kind_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"not a supported unconditional DDPM: .*{message}"):
        make_policy(**changes)


@pytest.mark.parametrize(
    ("changes", "targets"),
    [
        ({}, ("to_z",)),
        (
            {
                "down_block_types": ("DownBlock2D",) * 2,
                "up_block_types": ("UpBlock2D",) * 2,
                "add_attention": False,
            },
            ("to_q",),
        ),
    ],
)
def test_lora_targets_that_exist_nowhere_are_the_users_mistake(
    changes: dict[str, Any], targets: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match=re.escape(f"lora.targets = {list(targets)}: ")):
        make_policy(**changes).add_weights(LoraTable(targets=targets), seed=0)


def test_files_that_are_no_lora_for_this_model(tmp_path: Path) -> None:
    file = tmp_path / DDPMPolicy.WEIGHTS_FILE
    matrices = {"a.lora_A.weight": torch.zeros(4, 32)}

    def attempt(message: str) -> None:
        with pytest.raises(UserError, match=f"holds no LoRA for this model: .*{message}"):
            make_policy().load_weights(tmp_path)

    attempt("[Nn]o such file")
    file.write_bytes(b"no tensors")
    attempt("header")
    save_file(matrices, file)
    attempt("does not say which layers it adapts")
    table = {"rank": 4, "alpha": 4, "targets": ["to_q"]}
    save_file(matrices, file, {"lora": json.dumps(table)})
    attempt(r"9 matrices too many or too few, such as a.lora_A.weight \[4, 32\]")
    save_file(matrices, file, {"lora": json.dumps(table | {"targets": ["to_z"]})})
    attempt("lora.targets = ")
    wider = make_policy(block_out_channels=(32, 64))
    wider.add_weights(LoraTable(), seed=0)
    wider.save_weights(tmp_path)
    attempt(r"64 matrices too many or too few, such as .* \[4, 32\]")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there is no model 'nothing'. Give the folder of a diffusers pipeline, or a"),
        ("./nothing", "there is no model './nothing'."),
        ("empty", "'empty' is not a diffusers pipeline: the folder has no model_index.json."),
        ("broken", "'broken' does not load as a DDPM pipeline: "),
        ("tiny", "there is no model 'tiny'."),
        ("owner/name", "'owner/name' does not load as a DDPM pipeline: "),
    ],
)
def test_a_model_that_does_not_load_gets_one_clear_message(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for made in ("empty", "broken"):
        (tmp_path / made).mkdir()
    (tmp_path / "broken" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(UserError, match="^" + re.escape(message)) as caught:
        load_policy(f"ddpm:{name}", "float32", CPU, 5.0)
    assert "\n" not in str(caught.value)


def test_a_stable_diffusion_folder_is_of_another_kind() -> None:
    import dagflow

    folder = Path(dagflow.__file__).parent / "models" / "tiny"
    with pytest.raises(UserError, match="its network is not a UNet2DModel"):
        load_policy(f"ddpm:{folder}", "float32", CPU, 5.0)
