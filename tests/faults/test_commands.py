"""Signals, dead processes, full disks and two runs in one place, by the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dagflow.engine.checkpoint import checkpoints, moment
from dagflow.folder import read_config
from tests.conftest import SHORT_OPTIONS
from tests.faults.conftest import TWO_REWARDS, WITH_REPLAY, WORLD, ended, wait_for
from tests.faults.killed import state

Begin = Callable[..., "subprocess.Popen[str]"]
IN = ["ip", "netns", "exec"]
DEVICE = "GLOO_SOCKET_IFNAME=wire"
GRACE = 20  # seconds that a scheduler gives at least
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_machines=1", "--mixed_precision=no")


def after(folder: Path, epoch: int) -> None:
    """Wait until a run has saved so many epochs."""
    wait_for(lambda: newest(folder) >= epoch, f"epoch {epoch} of {folder}")


def newest(folder: Path) -> int:
    """How many epochs the newest checkpoint has behind it."""
    return max((moment(path)[0] for path in checkpoints(folder / "checkpoints")), default=0)


def goes_on(begin: Begin, folder: Path) -> None:
    """Resume a run in one process, until it has saved another epoch."""
    epoch = newest(folder)
    run = begin("train", "--resume", folder.name)
    after(folder, epoch + 1)
    run.send_signal(signal.SIGTERM)
    assert ended(run)[0] == 130


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("objective", ["db", "kl"])
def test_a_run_killed_in_the_middle_resumes_to_the_same_bytes(
    begin: Begin, tmp_path: Path, objective: str, processes: str
) -> None:
    """Six epochs, against three, SIGKILL of everything, and the rest."""
    settings = [*WORLD, *TWO_REWARDS, "--objective", "kl", "-s", "epochs=6"]
    if objective == "db":
        settings += WITH_REPLAY[2:]
        settings[settings.index("kl")] = "db"
    count = ["--num-processes", processes]
    whole = begin(*settings, *count, "--output", "whole")
    killed = begin(*settings, *count, "--output", "killed", start_new_session=True)
    after(tmp_path / "killed", 3)
    family = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family[1:])
    assert ended(killed)[0] == -signal.SIGKILL
    assert ended(whole)[0] == 0
    code, said = ended(begin("train", "--resume", "killed", *count))
    assert code == 0, said
    assert state(tmp_path / "killed") == state(tmp_path / "whole")


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_may_end_a_run(
    begin: Begin, tmp_path: Path, number: signal.Signals, processes: str
) -> None:
    run = begin(*WORLD, "-s", "epochs=400", "--output", "run", "--num-processes", processes)
    after(tmp_path / "run", 2)
    began = time.monotonic()
    run.send_signal(number)
    code, said = ended(run)
    print(f"{number.name}, {processes}: {time.monotonic() - began:.1f} s")
    assert code == 130, said
    assert time.monotonic() - began < GRACE
    assert said.count("Interrupted and saved. Resume with: dagflow train --resume run") == 1
    assert "Traceback" not in said


def test_a_run_that_began_in_two_processes_ends_in_one(begin: Begin, tmp_path: Path) -> None:
    settings = [*WORLD, *TWO_REWARDS, *WITH_REPLAY, "-s", "epochs=30"]
    run = begin(*settings, "--output", "run", "--num-processes", "2")
    after(tmp_path / "run", 2)
    run.send_signal(signal.SIGTERM)
    assert ended(run)[0] == 130
    code, said = ended(begin("train", "--resume", "run"))
    assert code == 0, said
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    epochs = [line["epoch"] for line in map(json.loads, lines) if "reward_mean" in line]
    assert epochs == list(range(1, 31))


def test_the_death_of_one_process_ends_all_soon(begin: Begin, tmp_path: Path) -> None:
    run = begin(*WORLD, "-s", "epochs=400", "--output", "run", "--num-processes", "2")
    after(tmp_path / "run", 2)
    children = psutil.Process(run.pid).children()
    victim = next(child for child in children if child.environ().get("RANK") == "1")
    began = time.monotonic()
    victim.kill()
    code, said = ended(run)
    print(f"stopped {time.monotonic() - began:.1f} s after a process was killed")
    assert code == 1
    assert time.monotonic() - began < GRACE
    assert "process 1 was killed by SIGKILL; the others stopped" in said
    assert "dagflow train --resume run" in said
    assert not [child for child in children if child.is_running()]


def test_the_end_of_the_launcher_ends_its_processes(begin: Begin, tmp_path: Path) -> None:
    run = begin(*WORLD, "-s", "epochs=400", "--output", "run", "--num-processes", "2")
    after(tmp_path / "run", 2)
    children = psutil.Process(run.pid).children()
    run.kill()
    _, alive = psutil.wait_procs(children, timeout=GRACE)
    assert not alive
    goes_on(begin, tmp_path / "run")


def test_an_error_in_one_process_is_said_once_with_its_number(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.conftest import put_plugin

    put_plugin(
        tmp_path,
        "fragile",
        """
        import os

        import dagflow

        @dagflow.hookimpl
        def dagflow_register_rewards():
            return {"fragile": Fragile}

        class Fragile:
            def __call__(self, images, prompts):
                if os.environ.get("RANK") == "1":
                    raise OSError("the scorer went away")
                return images.mean((1, 2, 3))
        """,
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = [*WORLD, "--reward", "fragile", "--output", "run", "--num-processes", "2"]
    code, said = ended(begin(*settings))
    assert code == 1, said
    assert said.count("the scorer went away") == 1
    assert "process 1: reward 'fragile' raised OSError: the scorer went away" in said
    assert "Traceback" not in said


FOREIGN = """
    import os

    import dagflow

    @dagflow.hookimpl
    def dagflow_register_rewards():
        return {"leaving": Leaving}

    @dagflow.hookimpl
    def dagflow_register_prompt_sources():
        return {"turning": lambda: ["a", "b"] if os.environ.get("RANK") == "0" else ["b", "a"]}

    class Leaving:
        def __init__(self):
            if os.environ.get("RANK") == "1":
                os._exit(7)
"""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--prompts", "turning"], 2, "prompts 'turning': the processes of this run got different"),
        (["--reward", "leaving"], 1, "process 1 exited with 7; the others stopped"),
    ],
)
def test_what_a_plugin_does_in_one_process_alone_is_said(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words, code: int, message: str
) -> None:
    from tests.conftest import put_plugin

    put_plugin(tmp_path, "foreign", FOREIGN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done, said = ended(begin(*WORLD, *words, "--output", "run", "--num-processes", "2"))
    assert done == code, said
    assert said.count(message) == 1
    assert "Traceback" not in said
    assert "--resume" not in said
    assert not (tmp_path / "run" / "config.toml").exists()


def test_ctrl_c_before_a_run_is_prepared_ends_it_soon(begin: Begin, tmp_path: Path) -> None:
    run = begin(*WORLD, "--output", "run", "--num-processes", "2", start_new_session=True)
    wait_for(lambda: len(psutil.Process(run.pid).children()) == 2, "two processes")
    children = psutil.Process(run.pid).children()
    began = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    assert ended(run)[0] == 130
    assert time.monotonic() - began < GRACE
    assert not [child for child in children if child.is_running()]


def test_wrong_input_is_said_once(begin: Begin, tmp_path: Path) -> None:
    few = ["-s", "rollout.samples_per_epoch=2", "-s", "update.batch_size=5"]
    code, said = ended(begin(*WORLD, *few, "--output", "run", "--num-processes", "3"))
    assert code == 2
    assert said.count("Error:") == 1
    assert "samples_per_epoch = 2 leaves nothing to do for 1 of 3 processes" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_directory_has_one_run_at_a_time(begin: Begin, tmp_path: Path, processes: str) -> None:
    run = begin(*WORLD, "-s", "epochs=400", "--output", "run")
    after(tmp_path / "run", 1)
    code, said = ended(begin("train", "--resume", "run", "--num-processes", processes))
    assert code == 2
    assert f"process {run.pid} on {os.uname().nodename} is writing to 'run'" in said
    assert run.poll() is None


def test_a_full_disk_costs_nothing_that_was_saved(begin: Begin, small_disk: Path) -> None:
    output = str(small_disk / "run")
    run = begin(*WORLD, "-s", "epochs=30", "--output", output)
    after(small_disk / "run", 2)
    free = os.statvfs(small_disk)
    (small_disk / "others").write_bytes(bytes(free.f_bavail * free.f_bsize - 20_000))
    code, said = ended(run)
    assert code == 1, said
    assert "No space left on device" in said
    assert f"dagflow train --resume {output}" in said
    assert not list((small_disk / "run" / "checkpoints").glob(".*partial"))
    (small_disk / "others").unlink()
    code, said = ended(begin("train", "--resume", output))
    assert code == 0, said
    assert "DAMAGED" not in said


def test_an_output_that_cannot_be_written_is_said(begin: Begin) -> None:
    code, said = ended(begin(*WORLD, "--output", "/proc/run"))
    assert code in (1, 2)
    assert "/proc/run" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        [
            *(*ACCELERATE, "--multi_gpu", "--dynamo_backend=no", "--num_processes=2"),
        ],
    ],
    ids=["torchrun", "accelerate"],
)
def test_other_launchers_start_the_same_run(
    begin: Begin, tmp_path: Path, launcher: list[str]
) -> None:
    settings = [*WORLD, "-s", "epochs=2"]
    ours = begin(*settings, "--output", "ours", "--num-processes", "2")
    other = begin(
        *settings, "--output", "other", instead=[sys.executable, *launcher, "-m", "dagflow"]
    )
    assert ended(ours)[0] == ended(other)[0] == 0
    assert state(tmp_path / "ours") == state(tmp_path / "other")


def test_accelerates_wish_for_fsdp_is_granted(begin: Begin, tmp_path: Path) -> None:
    launcher = [sys.executable, *ACCELERATE, "--use_fsdp", "--dynamo_backend=no"]
    run = begin(
        *("train", *SHORT_OPTIONS, "--output", "run"),
        instead=[*launcher, "--num_processes=2", "-m", "dagflow"],
    )
    code, said = ended(run)
    assert code == 0, said
    assert read_config(tmp_path / "run").machine.shard


def test_accelerates_wish_for_deepspeed_is_refused(begin: Begin, tmp_path: Path) -> None:
    """By its variables: its launcher wants the package deepspeed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = begin(
        *(*WORLD, "--output", "run"),
        before=["env", "ACCELERATE_USE_DEEPSPEED=true"],
        instead=[*launcher, "--nproc-per-node=2", "-m", "dagflow"],
    )
    code, said = ended(run)
    assert code != 0
    assert "asks for DeepSpeed" in said
    assert "machine.shard" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str, str]]:
    """Two network namespaces, a cable between them, and the first one's address."""
    a, b, address = "dagflow-a", "dagflow-b", "10.213.0.1"
    commands = [
        *(
            f"netns add {a}",
            f"netns add {b}",
            f"link add wire netns {a} type veth peer wire netns {b}",
        ),
        *(f"-n {a} addr add {address}/24 dev wire", f"-n {b} addr add 10.213.0.2/24 dev wire"),
        *(f"-n {host} link set {device} up" for host in (a, b) for device in ("lo", "wire")),
    ]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need root, and the command ip")
    yield a, b, address
    for host in (a, b):
        subprocess.run(["ip", "netns", "del", host], check=False)


def test_a_host_that_is_cut_off_ends_the_run_on_the_other(
    begin: Begin, tmp_path: Path, two_hosts: tuple[str, str, str]
) -> None:
    *hosts, address = two_hosts
    settings = [*WORLD, "-s", "epochs=400", "-s", "machine.patience=5", "--output", "run"]
    settings += ["--nnodes", "2", "--master-addr", address]
    runs = [
        begin(
            *settings,
            "--node-rank",
            str(rank),
            before=[*IN, host, "env", "GLOO_SOCKET_IFNAME=wire"],
        )
        for rank, host in enumerate(hosts)
    ]
    after(tmp_path / "run", 2)
    began = time.monotonic()
    subprocess.run(["ip", "-n", hosts[1], "link", "set", "wire", "down"], check=True)
    said = [ended(run) for run in runs]
    print(f"both hosts stopped {time.monotonic() - began:.1f} s after the cable was cut")
    assert [code for code, _ in said] == [1, 1], said
    assert "another process of the run has died or does not answer" in said[0][1]
    assert "Traceback" not in said[0][1]
    goes_on(begin, tmp_path / "run")
