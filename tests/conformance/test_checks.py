"""Each check of the kit notices what it is for, and good plugins pass them all."""

from __future__ import annotations

import sys
import textwrap
from itertools import count
from pathlib import Path

import pytest

from dagflow.conformance import ObjectiveContract, PromptSourceContract, RewardContract
from dagflow.conformance.contract import Contract
from tests.conformance import defects
from tests.conftest import put_plugin

NUMBERS = count()
HOOKS = {
    RewardContract: "dagflow_register_rewards",
    PromptSourceContract: "dagflow_register_prompt_sources",
    ObjectiveContract: "dagflow_register_objectives",
}
HEADS = {RewardContract: "", PromptSourceContract: "", ObjectiveContract: defects.OBJECTIVE_HEAD}
GOOD = {
    RewardContract: defects.REWARD,
    PromptSourceContract: defects.PROMPTS_SOURCE,
    ObjectiveContract: defects.OBJECTIVE,
}
ALL = [
    *((RewardContract, *defect) for defect in defects.REWARDS),
    *((PromptSourceContract, *defect) for defect in defects.PROMPTS),
    *((ObjectiveContract, *defect) for defect in defects.OBJECTIVES),
]


def checks(contract: type[Contract]) -> list[str]:
    return [name.removeprefix("test_") for name in dir(contract) if name.startswith("test_")]


def installed(folder: Path, base: type[Contract], source: str) -> Contract:
    """A contract for a plugin of this source, put into the folder under a new name."""
    name = f"specimen_{next(NUMBERS)}"
    hook = f"""
import dagflow
@dagflow.hookimpl
def {HOOKS[base]}(): return {{"{name}": factory}}
"""
    put_plugin(folder, name, textwrap.dedent(HEADS[base]) + textwrap.dedent(source) + hook)
    return type("TestSpecimen", (base,), {"name": name})()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("base", "check", "advice", "source"), ALL, ids=[f"{base.kind}-{d[0]}" for base, *d in ALL]
)
def test_a_defect_is_noticed_with_advice(folder: Path, base, check, advice, source) -> None:
    contract = installed(folder, base, source)
    with pytest.raises(pytest.fail.Exception) as caught:
        getattr(contract, f"test_{check}")()
    assert advice in str(caught.value)
    assert caught.value.pytrace is False


@pytest.mark.parametrize("base", GOOD, ids=lambda base: base.kind)
def test_every_check_has_a_defect_that_it_notices(base: type[Contract]) -> None:
    assert {check for owner, check, *_ in ALL if owner is base} == set(checks(base))


@pytest.mark.parametrize(
    ("base", "check"),
    [(base, check) for base in GOOD for check in checks(base)],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_good_plugin_passes(folder: Path, base: type[Contract], check: str) -> None:
    if (base, check) == (ObjectiveContract, "import_is_light"):
        pytest.skip("the specimen imports torch at the top, to be short; the built-ins do not")
    getattr(installed(folder, base, GOOD[base]), f"test_{check}")()


def test_a_broken_plugin_and_wrong_options_are_explained(folder: Path) -> None:
    put_plugin(folder, "specimen_broken", "1 / 0")

    class Unknown(RewardContract):
        name = "specimen-broken"

    class Misspelt(RewardContract):
        name = "jpeg-compressibility"
        options = {"qualty": 3}  # noqa: RUF012

    with pytest.raises(pytest.fail.Exception, match=r"did not load.*specimen_broken.*installed"):
        Unknown().test_options_are_documented()
    with pytest.raises(pytest.fail.Exception, match=r"Did you mean 'quality'\?.*--dagflow-option"):
        Misspelt().test_empty_batch()


def test_a_tolerance_and_metadata_may_be_set(folder: Path) -> None:
    source = """
    class factory:
        "A score, and a little of the batch's mean."
        def __call__(self, images, prompts):
            values = images.mean((1, 2, 3))
            return values + 0.05 * (values.mean() - prompts[0].metadata["bias"])
    """
    contract = installed(folder, RewardContract, source)
    type(contract).metadata = {"bias": 0.5}
    with pytest.raises(pytest.fail.Exception, match="on its own"):
        contract.test_score_does_not_depend_on_the_neighbours()
    type(contract).tolerance = 0.1
    contract.test_score_does_not_depend_on_the_neighbours()


def test_light_import_is_asked_of_the_plugins_own_distribution_alone(folder: Path) -> None:
    installed(folder, RewardContract, "import torch\n" + textwrap.dedent(defects.REWARD))
    installed(folder, RewardContract, defects.REWARD).test_import_is_light()
    assert "torch" in sys.modules
