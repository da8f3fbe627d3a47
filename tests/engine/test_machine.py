"""How the machine is used changes no numbers."""

from __future__ import annotations

import os
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn

from dagflow import PolicySpec, UserError, train
from dagflow.config import MachineTable
from dagflow.engine.machine import prepare_device, prepare_learner
from dagflow.engine.update import update
from dagflow.objectives.flow_network import Bfloat16Attention, FlowNetwork
from dagflow.objectives.flows import PointFlowNetwork
from dagflow.policies.shapes import Shapes
from tests.conftest import first_window, short_config
from tests.engine.test_update import gradients, shake


def test_checkpointing_keeps_less_and_has_the_same_gradients(make_run) -> None:
    found, passes = [], []
    for checkpointing in (False, True):
        machine = {"gradient_checkpointing": checkpointing}
        run = make_run(machine=machine, objective={"returns": 0.0})
        calls = []
        block = run.policy.unet.up_blocks[-1].resnets[0]
        block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        window = first_window(run)
        shake(run)
        calls.clear()
        found.append(gradients(run, window))
        passes.append(len(calls))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    assert passes[1] == 2 * passes[0]
    settings = [short_config(machine={"gradient_checkpointing": on}) for on in (False, True)]
    plain, checkpointed = (Shapes(config).guided_pass().saved_bytes for config in settings)
    assert checkpointed < plain / 2


def test_trajectories_that_wait_elsewhere_give_the_same_run(make_run, tmp_path) -> None:
    for name, offload in (("here", False), ("elsewhere", True)):
        settings = {"objective": {"name": "kl", "normalise": True}, "machine": {"offload": offload}}
        train.start(make_run(output=str(tmp_path / name), **settings))
    files = [tmp_path / name / "metrics.jsonl" for name in ("here", "elsewhere")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_window_alone_has_its_trajectories_and_the_same_gradients(make_run) -> None:
    found = []
    for alone in (False, True):
        run = make_run(objective={"returns": 0.0})
        window = first_window(run).part(torch.tensor([[3, 0], [1, 2], [1, 3]]))
        shake(run)
        if alone:
            window = window.on(torch.device("cpu"))
            assert len(window.trajectories.prompts) == 2
            assert window.rows.tolist() == [[1, 0], [0, 2], [0, 3]]
        found.append(gradients(run, window))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_only_a_gpu_is_told_to_be_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    settings = MachineTable(deterministic=True)
    try:
        prepare_device(torch.device("cpu"), settings)
        assert not torch.are_deterministic_algorithms_enabled()
        prepare_device(torch.device("cuda"), settings)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        prepare_device(torch.device("cuda"), MachineTable())
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_slices_decode_to_the_same_images(make_run) -> None:
    latents = torch.randn(3, 4, 16, 16)
    plain, sliced = (
        make_run(machine={"vae_slicing": slicing}).policy.decode(latents)
        for slicing in (False, True)
    )
    torch.testing.assert_close(plain, sliced, rtol=0, atol=1e-5)


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "vae_slicing"])
def test_a_model_without_such_a_network_is_refused(make_run, setting) -> None:
    with pytest.raises(UserError, match=f"does not support machine.{setting}"):
        make_run(machine={setting: True}, model="world:gaussians-1d")


@pytest.mark.slow
def test_compiled_networks_have_the_same_gradients_and_are_captured_once(
    make_run, monkeypatch
) -> None:
    """By a backend that captures the graphs and runs them as they are; inductor takes minutes.

    Micro-batches are of two sizes.
    """
    from torch._dynamo.utils import counters

    monkeypatch.setattr("dagflow.engine.machine.BACKEND", "aot_eager")
    before = counters["stats"]["unique_graphs"]
    expected, found = [], []
    for compiled, seen in ((False, expected), (True, found)):
        run = make_run(machine={"compile": compiled}, update={"microbatch_size": 6})
        window = first_window(run)
        assert len(window.rows) % 6 > 1
        seen.extend(gradients(run, window))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) + 1e-9)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == before + 5  # decoder; UNet and flow network with gradient and without
    for _ in range(2):
        update(run.learner, first_window(run))
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("named", [False, True])
def test_one_graph_is_compiled_for_batches_of_any_size(
    monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setattr("dagflow.engine.machine.BACKEND", "aot_eager")
    plain = nn.Linear(3, 2)
    network = deepcopy(plain)
    policy = SimpleNamespace(networks=lambda: {"unet": network}, device=torch.device("cpu"))
    learner: Any = SimpleNamespace(policy=policy, objective=object())
    before = counters["stats"]["unique_graphs"]
    prepare_learner(learner, MachineTable(compile=True))
    for size in (4, 7, 2):
        x = torch.randn(size, 3)
        y = network(input=x) if named else network(x)
        torch.testing.assert_close(y, plain(x))
    assert counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.parametrize(
    ("device", "dtype", "rounded"),
    [
        ("cuda", torch.bfloat16, True),
        ("cuda", torch.float32, False),
        ("cpu", torch.bfloat16, False),
    ],
)
def test_a_flow_network_rounds_attention_beside_a_bfloat16_policy_on_cuda(
    device: str, dtype: torch.dtype, rounded: bool
) -> None:
    policy = SimpleNamespace(device=torch.device(device), dtype=dtype)
    flow = FlowNetwork(PolicySpec(4, 96, (16, 16)), (16, 32))
    points = PointFlowNetwork(2, (8,), from_normal=False)
    for objective in (SimpleNamespace(flow=flow), SimpleNamespace(flow=points), object()):
        learner: Any = SimpleNamespace(policy=policy, objective=objective)
        prepare_learner(learner, MachineTable())
    kinds = {type(layer.processor) for layer in flow.modules() if isinstance(layer, Attention)}
    assert kinds == {Bfloat16Attention if rounded else AttnProcessor2_0}
