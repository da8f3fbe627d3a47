"""The runner, what can be told of CLIP's tokenizer, and the command as a person sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dagflow.checks.patient import Patient
from dagflow.checks.result import Check, Finding, ok
from dagflow.checks.runner import examine
from dagflow.checks.tokenizer import clip_merges, vocabulary
from dagflow.config import Config
from dagflow.plugins import load_plugins
from tests.checks.conftest import Answer


def patient(**settings: Any) -> Patient:
    return Patient(Config(**settings), load_plugins(), torch.device("cpu"), Path("runs"))


def test_a_check_that_crashes_is_named_and_hides_no_other() -> None:
    def crash(_: Patient) -> Finding:
        raise KeyError("lost")

    def leave(_: Patient) -> Finding:
        raise SystemExit(3)

    checks = [
        Check("machine", "one", crash, "the first setting"),
        Check("machine", "two", leave, "the second setting"),
        Check("machine", "three", lambda _: ok("well"), "", ("one",)),
        Check("machine", "four", lambda _: ok("well"), "", ("three",)),
        Check("machine", "five", lambda _: ok("well"), ""),
    ]
    results = list(examine(patient(), checks, lambda *_: None))
    assert [result.status for result in results] == [
        *("failed", "failed", "skipped", "skipped", "ok")
    ]
    assert "the check 'one' raised KeyError: 'lost'" in results[0].found
    assert "test_runner.py, line" in results[0].found
    assert [result.change for result in results[:2]] == ["the first setting", "the second setting"]
    assert results[3].found == "not asked, because 'one' failed"


class Tokenizer:
    """As many tokens as CLIP's, and these merges."""

    model_max_length = 77

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        import json

        tokens = {"".join(pair): 512 + k for k, pair in enumerate(merges)}
        self.get_vocab = lambda: tokens
        text = json.dumps({"model": {"merges": merges}})
        self.backend_tokenizer = SimpleNamespace(to_str=lambda: text)

    def __len__(self) -> int:
        return 49408


@pytest.mark.parametrize("changed", [False, True])
def test_another_tokenizer_of_clips_size_is_told(changed: bool) -> None:
    merges = list(clip_merges())
    if changed:
        merges[700], merges[900] = merges[900], merges[700]
    of = patient(model="somebody/something")
    config = SimpleNamespace(vocab_size=49408, max_position_embeddings=77)
    of.pipeline = SimpleNamespace(
        tokenizer=Tokenizer(merges), text_encoder=SimpleNamespace(config=config)
    )
    found = vocabulary(of)
    assert found.status == ("failed" if changed else "ok")
    assert ("merge 700 is" in found.found) == changed


def test_nothing_fails_where_nothing_is_wrong(dagflow: Callable[..., Any]) -> None:
    done = dagflow("doctor", COLUMNS="150")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert "failed" not in done.stdout
    assert "1 exactly in the rollout's batches of 4" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" ok")


def test_a_world_has_no_parts_to_check(inside: Callable[..., Answer]) -> None:
    answer = inside("world-2d")
    assert answer.code == 0
    assert answer.checks["save and load"]["status"] == "ok"
    assert answer.checks["sampler"]["status"] == "skipped"


def test_half_precision_is_held_to_a_wider_limit(inside: Callable[..., Answer]) -> None:
    """With a clip below rounding it is rounding that decides, which is said."""
    answer = inside("-s", "dtype=bfloat16")
    assert answer.code == 0
    assert answer.checks["ratio"]["limit"].startswith("within 0.001")
    warned = inside("-s", "objective.clip=1e-12").checks["ratio"]
    assert warned["status"] == "warning"
    assert "objective.clip above" in warned["change"]


def test_wrong_input_is_no_check(dagflow: Callable[..., Any]) -> None:
    for words in (["nothing-like-it"], ["-s", "epochs=none"], ["--gpus", "2"]):
        done = dagflow("doctor", *words)
        assert done.returncode == 2, words
        assert done.stdout == ""
