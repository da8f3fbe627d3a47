"""Ten faults, planted where users have them: each is found, by name, with what to change.

And nothing else is called wrong: what a fault makes pointless is not asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dagflow.config import LoraTable
from dagflow.policies.loading import load_policy
from tests.checks.conftest import Answer, edit
from tests.conftest import SHORT_OPTIONS, put_plugin

Doctor = Callable[..., Answer]
HALF = """
    from dagflow import hookimpl
    from diffusers import ModelMixin, UNet2DConditionModel  # diffusers looks for the first here

    class HalfUNet(UNet2DConditionModel):
        @classmethod
        def from_pretrained(cls, *arguments, **options):
            loaded = super().from_pretrained(*arguments, **options)
            return loaded if isinstance(loaded, tuple) else loaded.half()

    @hookimpl
    def dagflow_register_rewards():
        return {}
"""
REWARD = """
    from dagflow import hookimpl

    def factory():
        "A score."
        def reward(images, prompts):
            import torch
            return {score}
        return reward

    @hookimpl
    def dagflow_register_rewards():
        return {{"{name}": factory}}
"""


def put_reward(folder: Path, name: str, score: str) -> None:
    put_plugin(folder, f"plugin_{name}", REWARD.format(name=name, score=score))


def only(answer: Answer, name: str, said: str, change: str) -> None:
    """This check failed, with these words, and no other; what was not asked was for it."""
    assert answer.failed == [name], {key: answer.checks[key]["found"] for key in answer.failed}
    assert answer.code == 1
    assert said in answer.checks[name]["found"]
    assert change in answer.checks[name]["change"]
    assert answer.blocked <= {name}


def test_a_wrong_dtype(doctor: Doctor, model: Path, tmp_path: Path) -> None:
    """A class of somebody's plugin that stays in half precision."""
    put_plugin(tmp_path, "half_unet", HALF)
    edit(model / "model_index.json", unet=["half_unet", "HalfUNet"])
    answer = doctor("--model", str(model), plugins=tmp_path)
    only(answer, "dtypes", "the unet is float16", "dtype is 'auto', but HalfUNet (unet) keeps")
    assert answer.checks["dtypes"]["limit"] == "dtype = float32"


def put_lora(folder: Path, rename: Callable[[str], str], size: float = 0.05) -> Path:
    """A LoRA of the embedded model, its matrices under other names."""
    policy = load_policy("tiny", "float32", torch.device("cpu"), 3.0)
    policy.add_weights(LoraTable(), 0)
    for name, parameter in policy.unet.named_parameters():
        if "lora_B" in name:
            parameter.data += size
    folder.mkdir()
    policy.save_weights(folder)
    file = folder / policy.WEIGHTS_FILE
    tensors = {rename(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    return folder


def test_a_lora_that_fits(inside: Doctor, tmp_path: Path) -> None:
    lora = put_lora(tmp_path / "lora", str)
    answer = inside("--lora", str(lora))
    assert answer.code == 0
    assert "112 matrices change a prediction" in answer.checks[f"LoRA {lora}"]["found"]


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda name: f"base_model.{name}", "its 112 matrices begin with 'base_model'"),
        (lambda name: name.replace("attn2", "attention2"), "of 112 matrices match no layer"),
    ],
)
def test_a_stale_lora_prefix(
    inside: Doctor, tmp_path: Path, rename: Callable[[str], str], said: str
) -> None:
    lora = put_lora(tmp_path / "lora", rename)
    only(inside("--lora", str(lora)), f"LoRA {lora}", said, "must be 'unet.' followed by")


def test_a_lora_that_was_never_trained(inside: Doctor, tmp_path: Path) -> None:
    lora = put_lora(tmp_path / "lora", str, size=0.0)
    answer = inside("--lora", str(lora))
    assert answer.code == 0
    assert answer.checks[f"LoRA {lora}"]["status"] == "warning"


def test_the_lora_of_a_run_whose_file_changed(
    inside: Doctor, dagflow: Callable[..., Any], tmp_path: Path
) -> None:
    assert dagflow("train", "--output", "run", *SHORT_OPTIONS).returncode == 0
    answer = inside("--lora", "run")
    assert answer.code == 0
    assert "matrices change a prediction" in answer.checks["LoRA run"]["found"]
    newest = tmp_path / "run" / "checkpoints" / "latest" / "pytorch_lora_weights.safetensors"
    tensors = load_file(newest)
    save_file({f"stale.{name}": tensor for name, tensor in tensors.items()}, newest)
    only(inside("--lora", "run"), "LoRA run", "is not what was written", "--lora")


def test_a_reward_that_is_not_a_number(doctor: Doctor, tmp_path: Path) -> None:
    put_reward(tmp_path, "holes", "torch.full((len(images),), float('nan'))")
    answer = doctor("--reward", "holes", plugins=tmp_path)
    only(answer, "holes: is finite", "reward 'holes' returned [nan", "rewards.holes")


def test_a_reward_that_draws_random_numbers(doctor: Doctor, tmp_path: Path) -> None:
    put_reward(tmp_path, "dice", "images.mean((1, 2, 3)) + 1e-4 * torch.rand(len(images))")
    answer = doctor("--reward", "dice", plugins=tmp_path)
    only(answer, "dice: same again", "scored the same batch twice", "rewards.dice")


def test_a_reward_that_looks_at_its_neighbours(inside: Doctor, tmp_path: Path) -> None:
    put_reward(tmp_path, "rank", "(x := images.mean((1, 2, 3))) - x.mean()")
    answer = inside("--reward", "rank", plugins=tmp_path)
    only(answer, "rank: same alone", "on its own", "rewards.rank")


def test_a_reward_that_raises_is_blamed(inside: Doctor, tmp_path: Path) -> None:
    put_reward(tmp_path, "crash", "1 / 0")
    answer = inside("--reward", "crash", plugins=tmp_path)
    only(answer, "crash: is finite", "reward 'crash' raised ZeroDivisionError", "rewards.crash")
    assert "plugin_crash.py, line" in answer.checks["crash: is finite"]["found"]


@pytest.mark.parametrize(
    ("changes", "said", "change"),
    [
        ({"timestep_spacing": "linspace"}, "one noise level twice", "set_alpha_to_one = true"),
        (
            {"trained_betas": [0.0 if 400 <= k < 800 else 0.01 for k in range(1000)]},
            "one noise level twice",
            "no beta may be 0",
        ),
        (
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "pure noise (alpha = 0)",
            "rescale_betas_zero_snr = false",
        ),
    ],
    ids=["linspace", "betas", "zero-snr"],
)
def test_a_scheduler_with_a_step_that_has_no_variance(
    inside: Doctor, model: Path, changes: dict[str, Any], said: str, change: str
) -> None:
    edit(model / "scheduler" / "scheduler_config.json", **changes)
    only(inside("--model", str(model)), "noise levels", said, change)


def test_a_noiseless_last_step_is_none(inside: Doctor, model: Path) -> None:
    """The engine trains on the steps before it."""
    edit(model / "scheduler" / "scheduler_config.json", set_alpha_to_one=True)
    answer = inside("--model", str(model))
    assert answer.code == 0
    assert "the last one of 4 has no variance" in answer.checks["noise levels"]["found"]
    assert answer.checks["sampler"]["status"] == "ok"


def test_missing_weights(doctor: Doctor, tmp_path: Path) -> None:
    answer = doctor("--reward", "aesthetic", HF_HOME=str(tmp_path / "cache"))
    name = "files of reward aesthetic"
    only(answer, name, "is not on this machine", "run dagflow weights pull ")


def test_a_full_disk(doctor: Doctor, small_disk: Path) -> None:
    free = os.statvfs(small_disk)
    (small_disk / "others").write_bytes(bytes(free.f_bavail * free.f_bsize - 20_000))
    answer = doctor("--output", str(small_disk / "run"))
    only(answer, "output", "No space left on device", "output (--output DIR)")
    assert os.listdir(small_disk) == ["others"]


def test_an_output_that_cannot_be_written(inside: Doctor) -> None:
    only(inside("--output", "/proc/run"), "output", "cannot be written to '/proc'", "--output")


def test_a_broken_plugin(doctor: Doctor, tmp_path: Path) -> None:
    put_plugin(tmp_path, "sad", "raise RuntimeError('no licence here')")
    answer = doctor(plugins=tmp_path)
    said = "sad of dist-sad 1.5 does not load: RuntimeError: no licence here"
    only(answer, "plugin sad", said, "DAGFLOW_DISABLE_PLUGINS=sad")
    off = doctor(plugins=tmp_path, DAGFLOW_DISABLE_PLUGINS="sad")
    assert off.code == 0


def test_a_reward_that_nobody_provides(inside: Doctor) -> None:
    answer = inside("--reward", "jpeg-compresibility")
    said = "Did you mean 'jpeg-compressibility'?"
    only(answer, "reward jpeg-compresibility", said, "rewards.jpeg-compresibility.name")


def shifted(model: Path) -> None:
    """The special tokens stand first, as in a tokenizer that was trained by other tools."""
    file = model / "tokenizer" / "tokenizer.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    moved = {token: (number + 2) % 711 for token, number in tree["model"]["vocab"].items()}
    tree["model"]["vocab"] = moved
    for token in tree["added_tokens"]:
        token["id"] = moved[token["content"]]
    tree["post_processor"]["cls"][1] = moved["<|startoftext|>"]
    tree["post_processor"]["sep"][1] = moved["<|endoftext|>"]
    file.write_text(json.dumps(tree))
    (model / "tokenizer" / "vocab.json").write_text(json.dumps(moved))


def exchanged(model: Path) -> None:
    """Two tokens have each other's number, in both files."""
    file = model / "tokenizer" / "tokenizer.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    tokens = tree["model"]["vocab"]
    a, b = (next(token for token, k in tokens.items() if k == number) for number in (520, 600))
    tokens[a], tokens[b] = tokens[b], tokens[a]
    file.write_text(json.dumps(tree))
    (model / "tokenizer" / "vocab.json").write_text(json.dumps(tokens))


def half_exchanged(model: Path) -> None:
    """The same in one of the files."""
    vocab = (model / "tokenizer" / "vocab.json").read_text(encoding="utf-8")
    exchanged(model)
    (model / "tokenizer" / "vocab.json").write_text(vocab)


def larger(model: Path) -> None:
    """A token more than the text encoder knows."""
    file = model / "tokenizer" / "tokenizer.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    more = {**tree["added_tokens"][0], "id": 711, "content": "<my-cat>"}
    tree["added_tokens"].append(more)
    file.write_text(json.dumps(tree))


def longer(model: Path) -> None:
    """Prompts of more tokens than the text encoder has positions for."""
    edit(model / "tokenizer" / "tokenizer_config.json", model_max_length=77)


@pytest.mark.parametrize(
    ("spoil", "name", "said", "change"),
    [
        (shifted, "special tokens", "bos_token_id is 0 in the tokenizer but 709", "tokenizer"),
        (exchanged, "vocabulary", "vocabulary and merges do not belong", "tokenizer"),
        (half_exchanged, "vocabulary", "tokenizer.json and vocab.json differ in 2", "tokenizer"),
        (larger, "vocabulary", "has 712 tokens, but the text encoder vocab_size = 711", "model"),
        (longer, "vocabulary", "prompts of 77 tokens", "model_max_length = 24"),
    ],
)
def test_a_changed_tokenizer(
    inside: Doctor, model: Path, spoil: Callable[[Path], None], name: str, said: str, change: str
) -> None:
    spoil(model)
    only(inside("--model", str(model)), name, said, change)


def put_text_encoder(model: Path, width: int) -> None:
    """One with random weights, of another width."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = model / "text_encoder"
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = CLIPTextConfig.from_dict({**settings, "hidden_size": width})
    CLIPTextModel(config).save_pretrained(folder)


def test_a_text_encoder_of_another_width(doctor: Doctor, model: Path) -> None:
    put_text_encoder(model, 64)
    answer = doctor("--model", str(model))
    said = "has hidden_size = 64, but the UNet cross_attention_dim = 96"
    only(answer, "text encoder", said, "back into its text_encoder folder")


def test_a_text_encoder_whose_file_is_not_whole(inside: Doctor, model: Path) -> None:
    """transformers draws what is missing at random, and says so to nobody."""
    file = model / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, file, {"format": "pt"})
    said = "tensors are missing from its file and so are random"
    only(inside("--model", str(model)), "tensors", said, "text_encoder")


def test_weights_that_are_not_finite(inside: Doctor, model: Path) -> None:
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["decoder.conv_in.weight"][0] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    answer = inside("--model", str(model))
    only(answer, "tensors", "vae: decoder.conv_in.weight has values that are not", "model")
