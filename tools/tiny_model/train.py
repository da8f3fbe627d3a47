"""Train the tiny text-to-image model that ships inside dagflow, on a CPU, from a font alone.

Stages, each skipped when its result is already in the work folder::

    render      60,000 pictures of emoji animals with captions
    tokenizer   a byte-pair vocabulary over the captions
    vae         AutoencoderKL, 32x32x3 -> 16x16x4
    latents     every picture encoded once
    unet        UNet2DConditionModel and CLIPTextModel, trained jointly
    export      a StableDiffusionPipeline folder in fp16 safetensors

``python tools/tiny_model/train.py`` runs them all; ``--stage unet`` stops after that stage.
The defaults below are the settings of the shipped weights; measured numbers are in
``dagflow/models/tiny/README.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from emoji import DEFAULT_FONT, SIZE, Renderer, caption, render_item
from muon import build_optimizers
from rich.console import Console
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("render", "tokenizer", "vae", "latents", "unet", "export")

SEED = 0
PICTURES = 60_000
HELD_OUT_SEED = 1
HELD_OUT = 512

VOCABULARY = 740  # at most; the captions yield 711
MAX_LENGTH = 24

VAE_CHANNELS = (16, 48)
VAE_STEPS = 6_500
VAE_BATCH = 8
VAE_RATE = 2e-3  # of AdamW
VAE_MUON_RATE = 6e-3
VAE_KL = 1e-6
VAE_L1 = 0.2

UNET_CHANNELS = (32, 64, 128)
TEXT_WIDTH = 96
UNET_BATCH = 64
UNET_RATE = 1.5e-3  # of AdamW
UNET_MUON_RATE = 3e-3
UNET_WARMUP = 300
UNET_STEPS = 2_200
UNET_DECAY_SHARE = 0.2
EMA_DECAY = 0.999
SNR_CAP = 5.0
EMPTY_SHARE = 0.10
SAVE_EVERY = 500

console = Console(highlight=False)


# --- render --------------------------------------------------------------------------------------


def render(work: Path, font: Path) -> None:
    """Render the training set and a held-out set; about 75 seconds on one core."""
    renderer = Renderer(font)
    for name, seed, count in (
        ("pictures", SEED, PICTURES),
        ("held_out", HELD_OUT_SEED, HELD_OUT),
    ):
        pictures = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
        captions = []
        for index in range(count):
            pictures[index], scene = render_item(renderer, seed, index)
            captions.append(caption(scene))
        np.save(work / f"{name}.npy", pictures)
        (work / f"{name}.json").write_text(json.dumps(captions), encoding="utf-8")


def load_pictures(path: Path) -> Tensor:
    """Load pictures as uint8 of shape (N, 3, H, W)."""
    return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2).contiguous()


def to_unit(pictures: Tensor) -> Tensor:
    """Map uint8 pictures to [-1, 1]."""
    return pictures.float() / 127.5 - 1.0


# --- tokenizer -----------------------------------------------------------------------------------


def train_tokenizer(work: Path) -> None:
    """Learn byte-pair merges on the captions and save them as a CLIPTokenizer.

    The vocabulary is laid out as CLIP lays it out: all bytes, all bytes at the end of a word, the
    merges, and the two special tokens last, so that any prompt can be spelled.
    """
    captions = json.loads((work / "pictures.json").read_text(encoding="utf-8"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, show_progress=False, end_of_word_suffix="</w>"
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [(str(left), str(right)) for left, right in learned]
    pieces = alphabet + [f"{char}</w>" for char in alphabet]
    merges = merges[: VOCABULARY - len(pieces) - 2]
    pieces += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
    folder = work / "tokenizer.part"
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    folder.rename(work / "tokenizer")


# --- vae -----------------------------------------------------------------------------------------


def build_vae() -> AutoencoderKL:
    """Two levels, one layer per block, no attention: 2x down-sampling and a cheap decoder."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Mean PSNR in dB of the reconstruction of uint8 pictures, from the latent means."""
    values = []
    for batch in pictures.split(64):
        target = batch.float() / 255.0
        latents = vae.encode(to_unit(batch)).latent_dist.mean
        output = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        values.append(-10 * (output - target).square().mean((1, 2, 3)).clamp_min(1e-9).log10())
    return float(torch.cat(values).mean())


def train_vae(work: Path) -> None:
    """Fit the autoencoder with L1 + MSE + a slight KL term."""
    torch.manual_seed(SEED)
    pictures = load_pictures(work / "pictures.npy")
    held_out = load_pictures(work / "held_out.npy")
    vae = build_vae().to(memory_format=torch.channels_last)
    optimizers = build_optimizers(vae, VAE_RATE, VAE_MUON_RATE, weight_decay=1e-4)
    schedules = [LambdaLR(optimizer, vae_rate) for optimizer in optimizers]
    start = time.time()
    for step in range(1, VAE_STEPS + 1):
        target = to_unit(pictures[torch.randint(len(pictures), (VAE_BATCH,))])
        target = target.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(target).latent_dist
        error = vae.decode(posterior.sample()).sample - target
        loss = VAE_L1 * error.abs().mean() + error.square().mean() + VAE_KL * posterior.kl().mean()
        vae.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 250 == 0:
            console.print(
                f"vae {step}/{VAE_STEPS}  loss {loss.item():.4f}  "
                f"{psnr(vae, held_out[:128]):.2f} dB  {time.time() - start:.0f} s"
            )
    vae.save_pretrained(work / "vae.part")
    (work / "vae.part").rename(work / "vae")


def vae_rate(step: int) -> float:
    """Warm up over 50 steps, then decay linearly to zero."""
    return min((step + 1) / 50, 1.0) * max(1.0 - step / VAE_STEPS, 0.0)


# --- latents -------------------------------------------------------------------------------------


@torch.no_grad()
def encode_pictures(work: Path) -> None:
    """Encode every picture once and set the scaling factor that gives latents a unit deviation."""
    vae = AutoencoderKL.from_pretrained(work / "vae")
    pictures = load_pictures(work / "pictures.npy")
    latents = torch.cat(
        [vae.encode(to_unit(batch)).latent_dist.mean for batch in pictures.split(64)]
    )
    factor = float(1.0 / latents.std())
    deviations = [round(float(value) * factor, 2) for value in latents.std((0, 2, 3))]
    console.print(f"scaling factor {factor:.4f}, deviation per channel {deviations}")
    vae.register_to_config(scaling_factor=factor)
    vae.save_pretrained(work / "vae")
    np.save(work / "latents.npy", (latents * factor).half().numpy())


# --- unet ----------------------------------------------------------------------------------------


def build_scheduler() -> DDIMScheduler:
    """Return the noise schedule of Stable Diffusion v1.5."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
        timestep_spacing="leading",
    )


def build_unet() -> UNet2DConditionModel:
    """Three levels; cross-attention at 8x8 and 4x4 only."""
    return UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 96."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


class Denoiser(nn.Module):
    """UNet and text encoder as one module, so that one optimizer and one average cover both."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        """Predict the noise in `noisy` latents."""
        states = self.text_encoder(tokens)[0]
        return self.unet(noisy, steps, encoder_hidden_states=states, return_dict=False)[0]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return token indices, padded as the pipeline pads them."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids


def wsd_rate(step: int, steps: int) -> float:
    """Warm up, stay constant, then decay linearly to zero over the last fifth."""
    decay = (steps - step) / (steps * UNET_DECAY_SHARE)
    return max(min((step + 1) / UNET_WARMUP, decay, 1.0), 0.0)


def noise_loss(model: nn.Module, latents: Tensor, tokens: Tensor, alphas: Tensor) -> Tensor:
    """Min-SNR weighted noise prediction error at stratified times."""
    batch = len(latents)
    steps = ((torch.arange(batch) + torch.rand(batch)) * (len(alphas) / batch)).long()
    alpha = alphas[steps].view(-1, 1, 1, 1)
    noise = torch.randn_like(latents)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    error = (model(noisy, steps, tokens) - noise).square().mean((1, 2, 3))
    snr = alphas[steps] / (1 - alphas[steps])
    return (error * (SNR_CAP / snr).clamp_max(1.0)).mean()


class Batches:
    """Shuffled batches of latents and token indices, a tenth of the prompts emptied."""

    def __init__(self, work: Path, tokenizer: CLIPTokenizer, seed: int) -> None:
        self.latents = torch.from_numpy(np.load(work / "latents.npy"))
        self.tokens = tokenize(tokenizer, json.loads((work / "pictures.json").read_text("utf-8")))
        self.empty = tokenize(tokenizer, [""])[0]
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        if len(self.order) < batch:
            self.order = torch.randperm(len(self.latents), generator=self.generator)
        index, self.order = self.order[:batch], self.order[batch:]
        tokens = self.tokens[index]
        tokens[torch.rand(batch, generator=self.generator) < EMPTY_SHARE] = self.empty
        return self.latents[index].float(), tokens


def train_unet(work: Path, steps: int) -> None:
    """Train UNet and text encoder; resumes from the last checkpoint.

    Call with a larger `steps` to stay at the constant rate, then stop and resume with a smaller
    one: the decay takes the last fifth of whatever `steps` says.
    """
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    torch.manual_seed(SEED)
    model = Denoiser(build_unet(), build_text_encoder(tokenizer))
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = build_optimizers(model, UNET_RATE, UNET_MUON_RATE, weight_decay=1e-2)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step = 0
    checkpoint = work / "unet.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    torch.manual_seed(SEED + step)
    batches = Batches(work, tokenizer, SEED + step)
    alphas = build_scheduler().alphas_cumprod
    start, first, running = time.time(), step, 1.0
    while step < steps:
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * wsd_rate(step, steps)
        loss = noise_loss(model, *batches.draw(UNET_BATCH), alphas)
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running = 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            pace = (step - first) * UNET_BATCH / (time.time() - start)
            console.print(f"unet {step}/{steps}  loss {running:.4f}  {pace:.0f} samples/s")
        if step % SAVE_EVERY == 0 or step == steps:
            save_checkpoint(checkpoint, model, average, optimizers, step)
            export(work, work / "export-latest")


def save_checkpoint(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step: int,
) -> None:
    """Write a resumable checkpoint, atomically."""
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
    }
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


# --- export --------------------------------------------------------------------------------------


def export(work: Path, folder: Path) -> None:
    """Save the averaged model as a StableDiffusionPipeline folder in fp16 safetensors."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    model = Denoiser(build_unet(), build_text_encoder(tokenizer))
    model.load_state_dict(torch.load(work / "unet.pt")["average"])
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(part, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / "tokenizer" / name, part / "tokenizer" / name)
    config = part / "vae" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)  # where the work folder was
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for path in part.rglob("*.safetensors"):
        path.chmod(0o644)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", part / "README.md")
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


# --- command line --------------------------------------------------------------------------------


def main() -> None:
    """Run the stages that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tiny-model")
    parser.add_argument("--out", type=Path, default=ROOT / "dagflow" / "models" / "tiny")
    parser.add_argument("--stage", choices=STAGES, default="export", help="stop after this stage")
    parser.add_argument("--steps", type=int, default=UNET_STEPS, help="steps of the unet stage")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    stages: list[tuple[str, Path | None, Callable[[], None]]] = [
        ("render", work / "held_out.json", lambda: render(work, options.font)),
        ("tokenizer", work / "tokenizer", lambda: train_tokenizer(work)),
        ("vae", work / "vae", lambda: train_vae(work)),
        ("latents", work / "latents.npy", lambda: encode_pictures(work)),
        ("unet", None, lambda: train_unet(work, options.steps)),
        ("export", None, lambda: export(work, options.out)),
    ]
    for name, result, run in stages:
        if result is None or not result.exists():
            console.rule(name)
            run()
        if name == options.stage:
            break


if __name__ == "__main__":
    main()
