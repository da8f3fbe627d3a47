"""`dagflow export`: what other programs load draws the same pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, PNDMScheduler
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from dagflow import UserError, config, export
from dagflow.card import Trained, Wishes, card
from dagflow.engine import checkpoint
from dagflow.plugins import load_plugins
from dagflow.policies.loading import load_pipeline
from tests.conftest import SHORT_OPTIONS, merged, run_dagflow

OPTIONS = [*SHORT_OPTIONS, "-s", "lora.alpha=9", "-s", "update.learning_rate=0.02"]
LARGE = ["-s", "update.max_grad_norm=1", "-s", "update.regulariser=0"]
PROMPTS = ("a cat", "a dog", "a horse", "a monkey")  # the first of `animals`


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run of two epochs, and what `dagflow export` makes of it."""
    folder = tmp_path_factory.mktemp("exports")
    for words in (
        ("train", "--output", "run", *OPTIONS, *LARGE),
        ("export", "run", "--draw"),
        ("export", "run@2", "--fuse", "--output", "whole", "--base-model", "owner/name",
         "--license", "apache-2.0"),
    ):  # fmt: skip
        done = run_dagflow(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def trained(folder: Path, tmp_path: Path) -> Trained:
    """A copy of the run, to do things to."""
    shutil.copytree(folder / "run", tmp_path / "run", symlinks=True)
    return export.find(tmp_path / "run", "", print)


def snippet(exported: Path, drawn: Path) -> list[np.ndarray]:
    """Run the card's code as a reader would, in a copy of the folder without anything drawn."""
    shutil.copytree(exported, drawn, ignore=shutil.ignore_patterns("samples"))
    [code] = re.findall(r"```python\n(.*?)```", (drawn / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=drawn,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return pictures(drawn)


def pictures(folder: Path) -> list[np.ndarray]:
    found = [np.asarray(Image.open(folder / f"{k:04d}.png")) for k in range(len(PROMPTS))]
    assert found[0].shape == (32, 32, 3)
    return found


def equal(these: list[np.ndarray], those: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(these, those, strict=True))


def plain_pipeline(draw_with: Callable[[DiffusionPipeline], None]) -> torch.Tensor:
    """Pictures of diffusers' own pipeline, (4, 3, 32, 32), after something was done to it."""
    pipeline = load_pipeline("tiny", torch.float32)
    draw_with(pipeline)
    return drawn_by(pipeline)


def drawn_by(pipeline: DiffusionPipeline) -> torch.Tensor:
    return pipeline(
        list(PROMPTS),
        num_inference_steps=4,
        guidance_scale=3.0,
        eta=1.0,
        generator=[torch.Generator().manual_seed(k) for k in range(4)],
        output_type="pt",
    ).images


def test_the_cards_code_draws_what_dagflow_sample_draws_to_the_bit(
    folder: Path, tmp_path: Path
) -> None:
    exported = folder / "run" / "export"
    shown = snippet(exported, tmp_path / "plain")
    words = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    done = run_dagflow(tmp_path, "sample", str(folder / "run@2"), *words, "-n", "1")
    assert done.returncode == 0, done.stderr
    assert equal(shown, pictures(tmp_path / "samples"))
    assert equal(shown, pictures(exported / "samples"))

    steps = ("--num-inference-steps", "4", "--guidance-scale", "3")
    done = run_dagflow(
        tmp_path, "sample", str(exported), *words, "-n", "1", *steps, "--output", "lora"
    )
    assert done.returncode == 0, done.stderr
    assert equal(shown, pictures(tmp_path / "lora"))
    done = run_dagflow(
        tmp_path, "sample", str(folder / "run@1"), *words, "-n", "1", "--output", "one"
    )
    assert done.returncode == 0, done.stderr
    assert not equal(shown, pictures(tmp_path / "one"))


def test_kohyas_file_is_the_same_lora_by_other_names(folder: Path) -> None:
    exported = folder / "run" / "export"
    ours, theirs = (load_file(exported / name) for name in (export.LORA, export.KOHYA))
    modules = {name.rpartition(".lora_A")[0] for name in ours if ".lora_A" in name}
    stems = {f"lora_{module.replace('.', '_')}" for module in modules}
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(theirs) == {f"{stem}.{end}" for stem in stems for end in ends}
    assert any(stem.startswith("lora_unet_down_blocks_") for stem in stems)
    assert {float(value) for name, value in theirs.items() if name.endswith("alpha")} == {9.0}

    plain = plain_pipeline(lambda pipeline: None)
    peft = plain_pipeline(lambda pipeline: pipeline.load_lora_weights(exported))
    kohya = plain_pipeline(
        lambda pipeline: pipeline.load_lora_weights(exported, weight_name=export.KOHYA)
    )
    assert (peft - plain).abs().max() > 0.1
    assert torch.equal(kohya, peft)


def test_a_fused_pipeline_is_plain_diffusers_and_draws_the_same(
    folder: Path, tmp_path: Path
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder / "whole", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert not hasattr(pipeline.unet, "peft_config")
    lora = plain_pipeline(lambda one: one.load_lora_weights(folder / "run" / "export"))
    torch.testing.assert_close(drawn_by(pipeline), lora, rtol=0, atol=1e-4)
    assert not list((folder / "whole").glob("*lora*"))
    shown = snippet(folder / "whole", tmp_path / "plain")
    differences = np.abs(
        np.stack(shown).astype(int) - np.stack(pictures(folder / "run/export/samples"))
    )
    assert differences.max() <= 1


def test_the_card_says_what_was_trained(folder: Path, trained: Trained) -> None:
    text = (folder / "run" / "export" / "README.md").read_text()
    data = ModelCard(text).data
    assert data.library_name == "diffusers"
    assert data.base_model is None  # the hub has none of this name
    assert {"text-to-image", "lora"} <= set(data.tags)
    assert [item["text"] for item in data.widget] == list(PROMPTS)
    for item in data.widget:
        assert (folder / "run" / "export" / item["output"]["url"]).is_file()
    assert trained.state["update"] == 2
    for line in (
        "| checkpoint | epoch-0002: 2 updates |",
        "| LoRA | rank 4, alpha 9, on to_q, to_k, to_v, to_out.0 |",
        "| num_inference_steps | 4 |",
        "| beta | 20.0, on the mean of log-densities |",
        "| prompts | animals |",
        "| jpeg-compressibility | 1.0 |  | dagflow-align",
    ):
        assert line in text
    [row] = re.findall(r"^\| total reward \| (\S+) \| (\S+) \| change", text, re.MULTILINE)
    reward = trained.report["reward"]
    assert row == (f"{reward['base']:.4g}", f"{reward['trained']:.4g}")
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / "run" / "export" / picture).is_file()

    whole = (folder / "whole" / "README.md").read_text()
    data = ModelCard(whole).data
    assert (data.base_model, data.license) == ("owner/name", "apache-2.0")
    assert "lora" not in data.tags


def test_an_older_checkpoint_is_not_shown_with_the_newests_measurements(trained: Trained) -> None:
    older = export.find(trained.run, "1", print)
    assert not older.is_newest
    assert older.report == {}
    assert list(older.pictures()) == ["epoch-0001.png"]
    assert trained.report["images"] == 4
    assert "## Measured" not in card(older, Wishes(("a cat",)), load_plugins())


def test_a_report_of_any_version_is_read(trained: Trained) -> None:
    report = trained.run / "report.json"
    newer = {
        "checkpoint": trained.checkpoint.name,
        "images": 32,
        "reward": {"base": None, "trained": 2.0, "win_rate": None},
        "rewards": {
            "a|b": {"base": 1.0, "trained": 2.0, "standard_error_of_change": 0.5, "win_rate": 0.75},
            "other": {"base": 1.0, "trained": 0.5, "trained_on": False},
            "gone": None,
        },
        "diversity": {"base": None, "trained": None},
        "vendi": None,
    }
    report.write_text(json.dumps(newer))
    text = card(trained, Wishes(("a cat",)), load_plugins())
    assert "On 32 held-out pictures" in text
    assert "| total reward |  | 2 |  |" in text
    assert "| a\\|b | 1 | 2 | change +1 +- 1 (95 %), better in 75% of pairs |" in text
    assert "| other (measured only) | 1 | 0.5 |  |" in text
    alarm = {"statistic": "brightness", "shift": 2.5, "limit": 2.0, "gain": 1.0}
    more = {"alarms": [alarm], "drift": {"kl": 12.5}, "temperature": {"slope": -3.0, "due": 20.0}}
    report.write_text(json.dumps(newer | more))
    text = card(trained, Wishes(("a cat",)), load_plugins())
    assert "* brightness rose by 2.50 deviations (limit 2) while" in text
    assert "| KL from the base, nats |  | 12.5 |  |" in text
    assert "| slope of log-density against reward |  | -3 | 20 if in proportion |" in text
    report.write_text(json.dumps({**newer, "checkpoint": "epoch-0001"}))
    assert "## Measured" not in card(trained, Wishes(("a cat",)), load_plugins())
    report.unlink()
    assert "## Measured" not in card(trained, Wishes(("a cat",)), load_plugins())


@pytest.mark.parametrize(
    ("name", "aim"),
    [
        ("kl", "to draw pictures in proportion to exp(beta * reward)"),
        ("rtb", "to draw pictures in proportion to exp(beta * reward) times the base model's"),
        ("grpo", "to draw pictures with a higher reward"),
        ("reinforce", "with the objective reinforce"),
    ],
)
def test_the_card_claims_no_more_than_the_objective_aims_at(
    trained: Trained, name: str, aim: str
) -> None:
    objective = trained.config.objective.model_copy(update={"name": name})
    config = trained.config.model_copy(update={"objective": objective})
    text = card(replace(trained, config=config), Wishes(("a cat",)), load_plugins())
    assert aim in text.split("## Use")[0]
    assert ("in proportion" in text.split("## Use")[0]) == (name in ("kl", "rtb"))


def test_the_card_names_the_weights_that_rewards_read(trained: Trained) -> None:
    from dagflow_rewards.published import files

    tree = trained.config.model_dump()
    rewards = {"aesthetic": {"weight": 2.0}, "mine": {"name": "of-nobody"}}
    changed = replace(trained, config=config.resolve(merged(tree, {"rewards": rewards})))
    text = card(changed, Wishes(("a cat",)), load_plugins())
    due = [file for file in vars(files).values() if isinstance(file, files.WeightFile)]
    named = [
        file
        for file in due
        if f"| {file.name} | {file.revision} | {file.sha256 or 'not known'} |" in text
    ]
    assert named
    assert "| mine (of-nobody) | 1.0 |  | not installed where this card was written |" in text
    assert "of the files above" in text


@pytest.mark.parametrize("prompt", ['it\'s "so"\n```\n| blue', "{{ 7 * 7 }} \\ 'é'"])
def test_the_code_of_any_prompt_is_that_prompt(trained: Trained, prompt: str) -> None:
    text = card(trained, Wishes((prompt,)), load_plugins(), ["samples/0000.png"])
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    [listed] = re.findall(r"^prompts = \[.*?^\]", code, re.DOTALL | re.MULTILINE)
    names: dict[str, list[str]] = {}
    exec(listed, names)
    assert names["prompts"] == [prompt]
    assert ModelCard(text).data.widget[0]["text"] == prompt


def test_a_folder_as_base_model_whatever_its_scheduler(trained: Trained, tmp_path: Path) -> None:
    base = load_pipeline("tiny", torch.float32)
    base.scheduler = PNDMScheduler.from_config(base.scheduler.config, skip_prk_steps=True)
    base.save_pretrained(tmp_path / "base")
    settings = (trained.run / "config.toml").read_text()
    settings = settings.replace('model = "tiny"', f'model = "{tmp_path / "base"}"')
    (trained.run / "config.toml").write_text(settings)
    moved = export.find(trained.run, "", print)
    wishes = Wishes(PROMPTS)
    export.export(moved, wishes, load_plugins(), tmp_path / "out", draws=True)
    shown = snippet(tmp_path / "out", tmp_path / "plain")
    assert equal(shown, pictures(tmp_path / "out" / "samples"))
    assert ModelCard((tmp_path / "out" / "README.md").read_text()).data.base_model is None


def test_nothing_is_left_of_an_export_that_fails(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        export.export(trained, Wishes(("a cat",)), load_plugins(), tmp_path / "out", draws=False)
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_checkpoint_gives_way_and_one_that_was_asked_for_does_not(
    trained: Trained,
) -> None:
    weights = trained.checkpoint / export.LORA
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    said: list[str] = []
    assert export.find(trained.run, "", said.append).checkpoint.name == "epoch-0001"
    assert "DAMAGED" in said[0]
    for place in ("2", "latest"):
        with pytest.raises(UserError, match=r"pytorch_lora_weights\.safetensors is not what was"):
            export.find(trained.run, place, said.append)


def test_best_is_found_in_a_copy_without_links(trained: Trained) -> None:
    place = trained.run / "checkpoints"
    checkpoint.point(place / checkpoint.BEST, place / "epoch-0001")
    assert export.find(trained.run, "best", print).checkpoint.name == "epoch-0001"
    (place / checkpoint.BEST).unlink()
    shutil.copytree(place / "epoch-0001", place / checkpoint.BEST)
    assert export.find(trained.run, "best", print).checkpoint.name == "epoch-0001"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "run"), "'run/export' exists and is not empty"),
        (("export", "run", "--output", "run/config.toml"), "exists and is not empty"),
        (
            ("export", "run@7", "--output", "new"),
            "no checkpoint 'epoch-0007'. There are: epoch-0001",
        ),
        (("export", "run@", "--output", "new"), "an epoch's number must follow the @"),
        (("export", "run", "--base-model", "/sd", "--output", "new"), "an id such as owner/name"),
        (("export", "none"), "'none' is not a run directory"),
        (("sample", "run@7", "--prompt", "x"), "no checkpoint 'epoch-0007'"),
    ],
)
def test_bad_input_gets_one_message_and_writes_nothing(
    folder: Path, words: tuple[str, ...], message: str
) -> None:
    before = sorted(folder.rglob("*"))
    done = run_dagflow(folder, *words)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("model", ["world:2d", "ddpm:google/ddpm-cifar10-32"])
def test_a_model_without_a_lora_that_others_load_is_refused(tmp_path: Path, model: str) -> None:
    (tmp_path / "config.toml").write_text(f'model = "{model}"\n')
    with pytest.raises(UserError, match=r"`dagflow sample .*` draws with them"):
        export.find(tmp_path, "", print)
