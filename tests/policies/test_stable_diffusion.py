from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from dagflow import Prompt, UserError
from dagflow.config import LoraTable
from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine.rollout import rollout
from dagflow.policies.loading import EMBEDDED, load_pipeline, resolve_dtype
from dagflow.policies.stable_diffusion import StableDiffusionPolicy
from tests.conftest import put_out

CPU = torch.device("cpu")


@pytest.fixture
def policy() -> StableDiffusionPolicy:
    return StableDiffusionPolicy(load_pipeline("tiny", torch.float32), CPU, guidance_scale=3.0)


def noise(policy: StableDiffusionPolicy, steps: int, count: int = 2) -> torch.Tensor:
    return trajectory_noise(Stream.SAMPLE, 0, 0, range(count), steps, policy.latent_shape)


def test_the_embedded_model_is_a_plain_diffusers_folder_of_one_dtype() -> None:
    import dagflow

    folder = Path(dagflow.__file__).parent / EMBEDDED["tiny"]
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    scheduler = pipeline.scheduler
    assert isinstance(scheduler, DDIMScheduler)
    assert scheduler.config.prediction_type == "epsilon"
    assert scheduler.config.beta_schedule == "scaled_linear"
    assert not scheduler.config.set_alpha_to_one
    assert not scheduler.config.clip_sample
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert size < 12e6


def test_a_rollout_draws_what_diffusers_own_pipeline_draws_at_eta_one(
    policy: StableDiffusionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, prompts = 6, ["a cat", "a blue bird on a yellow background"]
    drawn = noise(policy, steps)
    ours = rollout(policy, policy.path(steps), [Prompt(text) for text in prompts], drawn, "mean")

    queue = list(drawn[:, 1:].unbind(1))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: queue.pop(0)
    )
    theirs = policy.pipeline(
        prompts,
        num_inference_steps=steps,
        guidance_scale=3.0,
        eta=1.0,
        latents=drawn[:, 0].clone(),
        output_type="pt",
    ).images
    assert not queue
    torch.testing.assert_close(ours.images, theirs, rtol=0, atol=1e-4)


def test_base_context_shows_the_frozen_model(policy: StableDiffusionPolicy) -> None:
    state, times = torch.randn(2, *policy.latent_shape), torch.tensor([501, 1])
    embeds = policy.encode(["a cat", "a dog"])
    with torch.no_grad():
        frozen = policy.predict(state, times, embeds).guided
        policy.add_weights(LoraTable(), seed=0)
        assert torch.equal(policy.predict(state, times, embeds).guided, frozen)
        for parameter in policy.parameters():
            parameter.data += 0.1
        assert not torch.allclose(policy.predict(state, times, embeds).guided, frozen)
        with policy.base():
            with policy.base():
                assert torch.equal(policy.predict(state, times, embeds).guided, frozen)
            assert torch.equal(policy.predict(state, times, embeds).guided, frozen)
        assert not torch.allclose(policy.predict(state, times, embeds).guided, frozen)
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_saved_lora_loads_with_plain_diffusers_and_changes_the_picture(
    policy: StableDiffusionPolicy, tmp_path: Path
) -> None:
    policy.add_weights(LoraTable(rank=4, alpha=8), seed=0)
    for parameter in policy.parameters():
        parameter.data += 0.05
    policy.save_weights(tmp_path)

    pipeline = load_pipeline("tiny", torch.float32)
    options = {"num_inference_steps": 4, "output_type": "pt", "guidance_scale": 3.0}

    def draw() -> torch.Tensor:
        return pipeline("a cat", generator=torch.Generator().manual_seed(0), **options).images

    before = draw()
    pipeline.load_lora_weights(tmp_path)
    after = draw()
    assert (before - after).abs().max() > 0.01
    expected = policy.pipeline(
        "a cat", generator=torch.Generator().manual_seed(0), **options
    ).images
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)


def test_the_seed_decides_the_lora(policy: StableDiffusionPolicy) -> None:
    states = []
    for seed in (0, 0, 1):
        fresh = StableDiffusionPolicy(load_pipeline("tiny", torch.float32), CPU, 3.0)
        torch.randn(seed + 3)  # the process's own generator does not matter
        fresh.add_weights(LoraTable(), seed)
        states.append(torch.cat([p.flatten() for p in fresh.weights().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_lora_targets_that_exist_nowhere_are_the_users_mistake(
    policy: StableDiffusionPolicy,
) -> None:
    with pytest.raises(UserError, match=r"lora.targets = \['to_z'\]"):
        policy.add_weights(LoraTable(targets=("to_z",)), seed=0)


def test_nothing_is_clipped_or_thresholded_whatever_the_model_says(
    policy: StableDiffusionPolicy,
) -> None:
    """The rollout does neither, so no sampler of its LoRA may."""
    config = policy.pipeline.scheduler.config
    loud = {"clip_sample": True, "thresholding": True}
    policy.pipeline.scheduler = DDIMScheduler.from_config(config, **loud)
    assert not any(policy.scheduler().config[name] for name in loud)


def test_a_last_step_without_noise_ends_at_the_base_models_x0hat(
    policy: StableDiffusionPolicy,
) -> None:
    config = policy.pipeline.scheduler.config
    policy.pipeline.scheduler = DDIMScheduler.from_config(config, set_alpha_to_one=True)
    path = policy.path(5)
    assert path.noiseless_end
    assert path.steps == 4
    assert (path.sigma > 0).all()
    policy.add_weights(LoraTable(), seed=0)
    for parameter in policy.parameters():
        parameter.data += 0.05
    result = rollout(policy, path, [Prompt("a cat")] * 2, noise(policy, path.steps), "mean")
    final, embeds = result.latents[:, -1], result.prompt_embeds
    with policy.base(), torch.no_grad():
        epsilon = policy.predict(final, path.timesteps[-1].expand(2), embeds).guided
    alpha, sigma = path.alpha[-1].float(), path.sigma[-1].float()
    torch.testing.assert_close(
        result.images, policy.decode((final - sigma * epsilon) / alpha), rtol=0, atol=1e-5
    )


def test_auto_dtype_is_float32_on_the_cpu() -> None:
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("targets", [LoraTable().targets, ("to_q", "conv1")])
def test_a_bfloat16_network_stays_so_and_trains_its_lora_in_float32(
    tmp_path: Path, targets: tuple[str, ...]
) -> None:
    policy, loaded, exact = (
        StableDiffusionPolicy(load_pipeline("tiny", dtype), CPU, 3.0)
        for dtype in (torch.bfloat16, torch.bfloat16, torch.float32)
    )
    policy.add_weights(LoraTable(targets=targets), seed=0)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    for parameter in policy.parameters():
        parameter.data += 0.05
    policy.save_weights(tmp_path)
    loaded.load_weights(tmp_path)
    exact.load_weights(tmp_path)
    state = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))

    def layers(policy: StableDiffusionPolicy) -> list[torch.nn.Module]:
        return [part for name, part in policy.unet.named_modules() if name != "time_proj"]

    def guided(policy: StableDiffusionPolicy) -> torch.Tensor:
        said = policy.predict(state, torch.tensor([501]), policy.encode(["a cat"])).guided
        assert said.dtype == torch.float32
        return said

    with put_out(layers(policy)) as trained, put_out(layers(loaded)) as read:
        ours, theirs = guided(policy), guided(loaded)
    assert trained == read == {torch.bfloat16}
    assert torch.equal(ours, theirs)
    with policy.base():
        moved = (ours - guided(policy)).norm()
    assert (ours - guided(exact)).norm() < moved / 5
    ours.sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in policy.parameters() if p.grad is not None)
    assert policy.decode(state).dtype == torch.float32


def test_embeddings_are_in_the_networks_dtype_whatever_the_text_encoders() -> None:
    pipeline = load_pipeline("tiny", torch.bfloat16)
    pipeline.text_encoder.float()
    policy = StableDiffusionPolicy(pipeline, CPU, 3.0)
    assert policy.encode(["a cat"]).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder), "the folder has no model_index.json"),
        (lambda folder: str(folder / "nothing"), "there is no model"),
        (lambda folder: "tinny", "there is no model 'tinny'. Did you mean 'tiny'?"),
    ],
)
def test_a_model_that_is_none_gets_one_clear_message(make, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_pipeline(make(tmp_path), torch.float32)


def test_a_broken_pipeline_folder_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="does not load as a Stable Diffusion pipeline"):
        load_pipeline(str(tmp_path), torch.float32)


def test_a_text_is_encoded_once_and_alone(
    policy: StableDiffusionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    plain = policy.pipeline.encode_prompt

    def encode(texts, *rest):
        seen.append(texts)
        return plain(texts, *rest)

    monkeypatch.setattr(policy.pipeline, "encode_prompt", encode)
    monkeypatch.setattr("dagflow.policies.stable_diffusion.CACHED_TEXTS", 2)
    first = policy.encode(["a cat", "a dog", "a cat"])
    again = policy.encode(["a dog", "an ant", "a bee"])
    assert seen == [["a cat"], ["a dog"], ["an ant"], ["a bee"]]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], again[0])
    assert torch.equal(policy.encode(["a cat"])[0], first[0])  # forgotten, and the same
    assert len(seen) == 5
