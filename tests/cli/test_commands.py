"""Everything here runs the installed command, as a person would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dagflow import PLUGIN_API
from tests.conftest import SHORT_OPTIONS


def test_train_sample_and_resume_from_the_command_line(dagflow, tmp_path: Path) -> None:
    done = dagflow("train", "--reward", "jpeg-compressibility", "--output", "run", *SHORT_OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # no colours outside a terminal
    for label in ("pictures  run/samples", "metrics   run/metrics.jsonl", "LoRA      run/checkp"):
        assert label in done.stdout
    assert "reward on 4 held-out seeds: base -" in done.stdout
    assert "page      run/report.html" in done.stdout
    assert "<h1>run</h1>" in (tmp_path / "run" / "report.html").read_text()

    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("warm_up" in line for line in lines) == 2
    updates = [line for line in lines if "update" in line]
    assert [line["update"] for line in updates] == list(range(1, len(updates) + 1))
    assert {"beta", "loss", "policy_grad_norm", "flow_grad_norm"} <= updates[0].keys()
    pictures = sorted(path.name for path in (run / "samples").iterdir())
    grids = [f"epoch-000{k}.png" for k in range(3)]
    ranked = ["ranked-base.png", "ranked-trained.png"]
    assert pictures == ["before-after.png", *grids, "prompts.json", *ranked]
    with Image.open(run / "samples" / "epoch-0002.png") as picture:
        assert picture.width > 96

    done = dagflow("sample", "run", "--prompt", "a cat", "--prompt", "a dog", "-n", "1",
                   "--output", "drawn")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "drawn")) == ["0000.png", "0001.png", "grid.png"]

    done = dagflow("train", "--resume", "run", "-s", "epochs=3")
    assert done.returncode == 0, done.stderr
    assert "epoch 3/3" in done.stderr
    assert (run / "checkpoints" / "epoch-0003").is_dir()


def test_a_run_that_has_gained_enough_says_so_and_may_go_on(dagflow) -> None:
    short = [*SHORT_OPTIONS, "-s", "evaluate.images=0", "-s", "evaluate.grid=0", "-s", "epochs=4"]
    gains = ["--seed", "3", "-s", "stop_at_gain=0.3"]  # about -1.1 and +0.7 with this seed
    done = dagflow("train", "--output", "run", *short, *gains)
    assert done.returncode == 0, done.stderr
    assert "stopped   after epoch 2 of 4: the reward rose by" in done.stdout
    done = dagflow("train", "--resume", "run", "-s", "stop_at_gain=0")
    assert done.returncode == 0, done.stderr
    assert "stopped" not in done.stdout
    assert "epoch 4/4" in done.stderr


def test_a_lora_folder_draws_like_its_run(dagflow, tmp_path: Path) -> None:
    assert dagflow("train", "--output", "run", "--objective", "db", *SHORT_OPTIONS).returncode == 0
    common = ("--prompt", "a cat", "-n", "2", "--num-inference-steps", "4", "--guidance-scale", "3")
    done = dagflow("sample", "run", *common, "--output", "one")
    assert (done.returncode, done.stderr) == (0, "")
    lora = "run/checkpoints/epoch-0002"
    assert dagflow("sample", lora, *common, "--output", "two").returncode == 0
    one, two = ((tmp_path / name / "grid.png").read_bytes() for name in ("one", "two"))
    assert one == two


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("dagflow")), "train", "--output", "run"]
    process = subprocess.Popen(
        [*command, *SHORT_OPTIONS, "-s", "epochs=500"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and "update" in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Resume with: dagflow train --resume run" in errors
    assert list((tmp_path / "run" / "checkpoints").iterdir())


BAD_INPUT = {
    "unknown reward": (
        ["train", "--reward", "jpeg-compresibility"],
        "no reward called 'jpeg-compresibility'. Did you mean 'jpeg-compressibility'?",
    ),
    "unknown objective": (
        ["train", "--objective", "kll"],
        "Did you mean 'kl'? Installed: db, ddpo,",
    ),
    "unknown prompts": (["train", "--prompts", "animal"], "Did you mean 'animals'?"),
    "unknown recipe": (["train", "tinny"], "Did you mean 'tiny'?"),
    "unknown key": (["train", "-s", "update.lr=3"], "there is no setting 'update.lr'."),
    "unknown option": (
        ["train", "-s", "objective.bta=3"],
        "objective 'kl' has no option 'bta'. Did you mean 'beta'?",
    ),
    "option of the other objective": (
        ["train", "--objective", "db", "-s", "objective.clip=1"],
        "objective 'db' has no option 'clip'.",
    ),
    "wrong type": (["train", "-s", "epochs=many"], "epochs = 'many': input should be a valid int"),
    "wrong weight": (["train", "--reward", "jpeg-compressibility=x"], "'x' is not a number"),
    "wrong widths": (["train", "-s", "objective.flow_channels=[12]"], "multiples of 8"),
    "missing file": (["train", "--prompts", "file:none.txt"], "'none.txt' cannot be read"),
    "no pipeline": (["train", "--model", "."], "has no model_index.json"),
    "no model": (["train", "--model", "./none"], "there is no model './none'"),
    "occupied output": (["train", "--output", "occupied"], "'occupied' exists and is not empty"),
    "other run": (["train", "--output", "other"], "already holds a run. Resume it with `dagflow"),
    "output is a file": (["train", "--output", "file"], "'file' exists and is not empty"),
    "resume of nothing": (["train", "--resume", "none"], "'none' is not a run directory"),
    "resume with options": (["train", "--resume", "other", "--seed", "3"], "it allows only -s"),
    "resume with changes": (["train", "--resume", "other", "-s", "seed=3"], "seed cannot change"),
    "not a number": (
        ["train", "-s", "objective.beta=nan"],
        "objective.beta: nan is neither a number",
    ),
    "infinite": (["train", "-s", "objective.beta=inf"], "objective.beta: inf is neither a number"),
    "option not a number": (
        ["train", "-s", "objective.clip=nan"],
        "objective 'kl', option 'clip': nan is not a number.",
    ),
    "clip below 0": (
        ["train", "-s", "objective.clip=-0.5"],
        "clip = -0.5: expected a number above 0",
    ),
    "away from the target": (
        ["train", "-s", "objective.coefficient=-1"],
        "coefficient = -1: expected a finite number from 0",
    ),
    "clip of ddpo": (
        ["train", "--objective", "ddpo", "-s", "objective.clip=0"],
        "clip = 0: expected a nu",
    ),
    "infinite penalty": (
        ["train", "--objective", "grpo", "-s", "objective.kl_coefficient=inf"],
        "kl_coefficient = inf: expected a finite number from 0",
    ),
    "infinite decay": (
        ["train", "--objective", "subtb", "-s", "objective.decay=inf"],
        "decay = inf: expected a finite number above 0",
    ),
    "divergence out of reach": (
        [
            *("train", "world-1d", "--objective", "rtb", "-s", "objective.beta=auto:KL=8"),
            *("-s", "rollout.samples_per_epoch=32", "-s", "update.batch_size=32"),
        ],
        "the first epoch's 32 images of 1 prompt can show 3.47 nats at most",
    ),
    "output below a file": (["train", "--output", "file/run"], "file' is a file, so it cannot"),
    "output is the root": (["sample", "other", "--prompt", "x", "--output", "/"], "is not empty"),
    "output with a NUL": (["train", "-s", 'output="a\\u0000b"'], r"'a\x00b': it is not plain"),
    "output is a link": (["train", "--output", "link"], "'link' is a broken link"),
    "output is no text": (
        ["train", "--output", "a\udcff"],
        r"output = 'a\udcff': it is not plain text",
    ),
    "too many steps": (
        ["train", "-s", "rollout.num_inference_steps=1000"],
        "1000 inference steps are too many",
    ),
    "sample of nothing": (["sample", "none", "--prompt", "x"], "neither a run directory nor"),
    "prompt is no text": (["sample", "other", "--prompt", "a\udcff"], "item 0 is not text"),
    "card's prompt is no text": (["export", "other", "--prompt", "a\udcff"], "item 0 is not text"),
    "no guidance": (
        ["sample", "other", "--prompt", "x", "--guidance-scale", "inf"],
        "--guidance-scale inf: give a finite number",
    ),
    "output in a file": (
        ["sample", "other", "--prompt", "x", "--output", "file/drawn"],
        "file' is a file, so it cannot hold a folder",
    ),
    "weight of what is measured": (
        ["train", "--eval-reward", "jpeg-incompressibility=5"],
        "--eval-reward jpeg-incompressibility=5: it is only measured, so it takes no weight",
    ),
    "no prompt": (["sample", "other"], "Missing option"),
    "no such command": (["trian"], "No such command"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_gets_one_message_and_writes_nothing(
    dagflow, tmp_path: Path, arguments: list[str], message: str
) -> None:
    for folder, file in (("occupied", "thing"), ("other", "config.toml")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("[rewards.jpeg-compressibility]\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")

    def content() -> dict[Path, bytes | bool]:
        return {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    before = content()
    done = dagflow(*arguments, COLUMNS="200")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert content() == before


WORLD = (
    *("train", "world-1d", "-s", "epochs=1", "-s", "rollout.samples_per_epoch=32"),
    *("-s", "update.batch_size=32", "-s", "evaluate.images=20"),
)


def test_a_folder_may_have_any_name_and_a_terminal_any_code(dagflow, tmp_path: Path) -> None:
    name = "a [/b] [red]\u00fc"
    done = dagflow(*WORLD, "--output", name, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert r"page      a [/b] [red]\xfc/report.html" in done.stdout
    assert (tmp_path / name / "report.html").exists()
    again = dagflow(*WORLD, "--output", name)
    assert f"--resume '{name}'`" in again.stderr
    resumed = dagflow("train", "--resume", name)
    assert resumed.returncode == 0, resumed.stderr


def test_runs_that_begin_together_get_a_folder_each(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("dagflow")), *WORLD]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    pages = sorted(tmp_path.glob("runs/*/report.html"))
    assert [page.parent.name[-4:] for page in pages] == ["-001", "-002"]


def test_processes_share_a_folder_that_nobody_named(dagflow, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    refused = dagflow(*WORLD, "--num-processes", "2", "-s", "objective.clip=-1")
    assert refused.returncode == 2
    assert not list((tmp_path / "runs").iterdir())
    done = dagflow(WORLD[0], "--num-processes", "2", *WORLD[2:], "--", WORLD[1])
    assert done.returncode == 0, done.stderr
    assert [page.parent.name for page in tmp_path.glob("runs/*/report.html")] == ["truth-kl-001"]


def test_the_page_is_there_though_nobody_reads_where(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("dagflow")), *WORLD, "--output", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=120)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_rank_that_no_launcher_gave_silences_nothing(dagflow) -> None:
    done = dagflow("train", "nosuch", RANK="1")
    assert (done.returncode, "no recipe or file 'nosuch'" in done.stderr) == (2, True)


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    command = str(Path(sys.executable).with_name("dagflow"))
    (tmp_path / "gone").mkdir()
    script = f"cd gone; rmdir ../gone; exec {command} train"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "the current folder no longer exists" in done.stderr) == (2, True)


def test_list_plugins_names_everything_and_speaks_json(dagflow) -> None:
    shown = dagflow("list-plugins", COLUMNS="200").stdout
    for word in ("jpeg-compressibility", "animals", "kl", "dagflow-align", "quality=95"):
        assert word in shown
    narrow = dagflow("list-plugins", COLUMNS="80", DAGFLOW_DISABLE_PLUGINS="remote").stdout
    assert "quality=95" in narrow  # not folded within a word
    assert "off     remote (by DAGFLOW_DISABLE_PLUGINS)" in narrow
    records = json.loads(dagflow("list-plugins", "--json").stdout)
    assert not records["broken"]
    assert tuple(records["plugin_api"]) == PLUGIN_API
    assert "plugin API {}.{}".format(*PLUGIN_API) in dagflow("list-plugins", "-v").stdout
    [file] = [item for item in records["plugins"] if item["name"] == "file"]
    assert file["kind"] == "prompts"
    assert file["options"] == {"path": "required"}


def test_recipes_are_listed(dagflow) -> None:
    assert "tiny" in dagflow("recipes", COLUMNS="200").stdout


def test_version_and_help(dagflow) -> None:
    assert dagflow("--version").stdout.startswith("dagflow ")
    for command in ("train", "sample", "serve", "list-plugins", "recipes"):
        done = dagflow(command, "--help")
        assert done.returncode == 0
        assert "Usage: dagflow" in done.stdout
