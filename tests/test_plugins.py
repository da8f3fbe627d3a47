from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path

import pytest

import dagflow
from dagflow import PluginError, UserError
from dagflow.cli.train import use
from dagflow.config import ObjectiveTable, PromptsTable, RewardTable
from dagflow.plugins import OWN_KEYS, load_plugins
from dagflow.recipe import read_recipe
from tests.conftest import put_plugin

GOOD = """
    import dagflow
    def zero(scale: float = 1.0, *, mode: str = "a"):
        "Zero for every image."
        return lambda images, prompts: images.sum((1, 2, 3)) * 0
    def raising():
        raise RuntimeError("no weights here")
    @dagflow.hookimpl
    def dagflow_register_rewards():
        return {"zero": zero, "raising": raising}
"""
BROKEN = {
    "import nothing_of_this_name": "ModuleNotFoundError: No module named 'nothing_of_this_name'",
    "import sys; sys.exit(3)": "SystemExit: 3",
    "def (": "SyntaxError",
    "1 / 0": "ZeroDivisionError",
    "x = 1": "no hook found",
    """
    import dagflow
    @dagflow.hookimpl
    def dagflow_register_reward(): return {}
    """: "unknown hook dagflow_register_reward. Did you mean 'dagflow_register_rewards'?",
    """
    import dagflow
    @dagflow.hookimpl
    def dagflow_register_rewards(colour): return {}
    """: "colour",
    """
    import dagflow
    @dagflow.hookimpl
    def dagflow_register_rewards(): return ["zero"]
    """: "returned list; expected a mapping",
    """
    import dagflow
    @dagflow.hookimpl
    def dagflow_register_rewards(): raise ValueError("boo")
    """: "ValueError: boo",
    """
    import dagflow
    @dagflow.hookimpl
    def dagflow_register_rewards(): return {"zero": 0}
    """: "is not a name and a factory",
    """
    import dagflow
    class Zero:
        def __call__(self, images, prompts): return images.sum((1, 2, 3))
    @dagflow.hookimpl
    def dagflow_register_rewards(): return {"zero": Zero()}
    """: "'zero' is itself a reward; register what makes it",
    """
    import dagflow
    class Zero: ...
    @dagflow.hookimpl
    def dagflow_register_rewards(): return {"a:b": Zero}
    """: "'a:b' cannot be said on the command line",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a distribution with one entry point on the path, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    return partial(put_plugin, tmp_path)


def test_own_plugins_are_found_and_none_is_broken() -> None:
    import dagflow_rewards.published.hpsv2  # noqa: F401  (a module must not hide a factory)

    registry = load_plugins()
    assert not registry.broken
    rewards, prompts = (set(registry.names(kind)) for kind in ("reward", "prompts"))
    assert rewards > {"hpsv2", "imagereward", "isolated", "jpeg-compressibility", "remote"}
    assert registry.names("objective") == [
        *("db", "ddpo", "grpo", "kl", "residual-db", "rtb", "subtb", "tb", "vargrad"),
    ]
    assert prompts > {"animals", "drawbench", "file", "texts"}
    assert all(item.help for item in registry.provided)


@pytest.mark.parametrize(("source", "reason"), BROKEN.items(), ids=BROKEN.values())
def test_a_broken_plugin_hides_no_other_and_says_why(install, source: str, reason: str) -> None:
    name = f"bad_{abs(hash(source))}"
    install("good_one", GOOD)
    install(name, source)
    registry = load_plugins()
    assert "zero" in registry.names("reward")
    assert "kl" in registry.names("objective")
    [broken] = registry.broken
    assert broken.entry_point == name
    assert broken.version == "1.5"
    assert reason in broken.reason
    assert "Traceback" in broken.traceback
    with pytest.raises(UserError, match=f"did not load.*{name}"):
        registry.find("reward", "nought")


def test_a_disabled_plugin_is_not_even_imported(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("hanging", "import os; os._exit(7)")
    install("other", GOOD, "other-dist")
    monkeypatch.setenv("DAGFLOW_DISABLE_PLUGINS", "hanging, other-dist")
    registry = load_plugins()
    assert not registry.broken
    assert "zero" not in registry.names("reward")
    with pytest.raises(UserError, match="Disabled by DAGFLOW_DISABLE_PLUGINS: hanging, other"):
        registry.find("reward", "zero")


def test_two_providers_of_one_name_are_both_named_when_it_is_asked_for(install) -> None:
    install("first_zero", GOOD, "dist-one")
    install("second_zero", GOOD, "dist-two")
    registry = load_plugins()
    registry.find("reward", "jpeg-compressibility")
    with pytest.raises(UserError, match=r"provided twice, by dist-one 1.5 and dist-two 1.5"):
        registry.find("reward", "zero")


def test_two_distributions_may_share_an_entry_points_name(install) -> None:
    install("first_shared", GOOD, "dist-one", "shared")
    install("second_shared", GOOD.replace('"zero"', '"nought"'), "dist-two", "shared")
    registry = load_plugins()
    assert {"zero", "nought"} <= set(registry.names("reward"))
    assert not registry.broken


def test_one_module_twice_is_used_once_and_said(install) -> None:
    install("twice", GOOD, "dist-one", "one")
    install("twice", GOOD, "dist-two", "two")
    registry = load_plugins()
    registry.find("reward", "zero")
    [broken] = registry.broken
    assert (broken.entry_point, broken.distribution) == ("two", "dist-two")
    assert broken.reason == "twice is already the plugin one of dist-one 1.5"


@pytest.mark.parametrize(
    ("requires", "loads"),
    [
        ("dagflow-align>=0.1", True),
        ("dagflow_align >= 99", False),
        ("dagflow-align>=99; extra == 'dev'", True),
        ("dagflow-align>=99; python_version < '3'", True),
    ],
)
def test_a_plugin_for_another_dagflow_is_not_imported(install, requires: str, loads: bool) -> None:
    source = GOOD if loads else "import os; os._exit(7)"
    install(f"needing_{abs(hash(requires))}", source, requires=requires)
    registry = load_plugins()
    assert ("zero" in registry.names("reward")) == loads
    reasons = [broken.reason for broken in registry.broken]
    assert reasons == ([] if loads else [f"needs dagflow-align>=99; this is {dagflow.__version__}"])


def test_what_a_foreign_plugin_costs_is_known(install) -> None:
    install("slow_one", "import time\ntime.sleep(0.05)\n" + textwrap.dedent(GOOD))
    [cost] = [cost for cost in load_plugins().costs if cost.entry_point == "slow_one"]
    assert cost.seconds >= 0.05
    assert cost.distribution == "dist-slow_one"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zeero", {}, "there is no reward called 'zeero'. Did you mean 'zero'? Installed: aest"),
        ("zero", {"scala": 2}, "reward 'zero' has no option 'scala'. Did you mean 'scale'?"),
        ("zero", {"wight": 2}, "reward 'zero' has no option 'wight'. Did you mean 'weight'?"),
        ("zero", {"scale": "big"}, "option 'scale': 'big' is not valid"),
    ],
)
def test_wrong_names_and_options_are_the_users_mistake(install, name, options, message) -> None:
    install("zeros", GOOD)
    with pytest.raises(UserError) as caught:
        load_plugins().maker("reward", name, options, beside=["weight"])
    assert message in str(caught.value)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(UserError, match="prompts 'file' needs the option 'path'"):
        load_plugins().maker("prompts", "file", {})


def test_a_factory_that_raises_is_reported_with_its_owner(install) -> None:
    install("zeros", GOOD)
    make = load_plugins().maker("reward", "raising", {})
    with pytest.raises(PluginError, match=r"'raising' of dist-zeros 1.5 raised RuntimeE.* line 7"):
        make()


TYPED = """
    from __future__ import annotations
    from dataclasses import dataclass
    from functools import cache, partial
    from typing import TYPE_CHECKING, Annotated, Literal
    import dagflow
    from pydantic import Field
    if TYPE_CHECKING:
        from somewhere import Heavy

    print("loaded")

    def lazy(number: float = 1.0, side: Literal["l", "r"] = "l") -> Heavy: ...
    def limited(number: Annotated[float, Field(ge=0)] = 1.0): ...
    def open(**options: int): ...
    @cache
    def kept(number: float = 1.0): ...
    class Made:
        def __new__(cls, number: float = 1.0): ...
    class Called:
        def __call__(self, number: float = 1.0): ...
    def own(weight: float = 1.0): ...
    def plain(number=1, flag=False, word="x"): return number, flag, word
    @dataclass
    class Pair: left: int = 0
    def nested(pair: Pair = Pair()): return pair

    @dagflow.hookimpl
    def dagflow_register_rewards():
        return {
            "lazy": lazy, "limited": limited, "open": open, "kept": kept,
            "part": partial(lazy, side="r"), "made": Made, "called": Called(), "own": own,
            "plain": plain, "nested": nested,
        }
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lazy", {"number": "x"}),
        ("lazy", {"side": "up"}),
        ("limited", {"number": -5}),
        ("open", {"anything": "x"}),
        ("kept", {"number": "x"}),
        ("part", {"number": "x"}),
        ("made", {"number": "x"}),
        ("called", {"number": "x"}),
        ("nested", {"pair": {"left": "x"}}),
    ],
)
def test_annotations_are_checked_wherever_they_stand(install, name: str, options) -> None:
    """Though another of them cannot be known without an import."""
    install("typed", TYPED)
    [key] = options
    with pytest.raises(UserError, match=f"reward '{name}', option '{key}': .* is not valid"):
        load_plugins().maker("reward", name, options)


def test_options_get_the_type_of_their_default(install) -> None:
    install("typed", TYPED)
    make = load_plugins().maker("reward", "plain", {"number": "5", "flag": "no", "word": "y"})
    assert make() == (5, False, "y")
    make = load_plugins().maker("reward", "plain", {"number": "all", "flag": 2, "word": 0.5})
    assert make() == ("all", 2, 0.5)
    with pytest.raises(UserError, match=r"option 'pair' has no 'lefft'\. Did you mean 'left'\?"):
        load_plugins().maker("reward", "nested", {"pair": {"lefft": 1}})


def test_no_option_has_a_name_that_the_engine_reads(install) -> None:
    tables = {"reward": RewardTable, "prompts": PromptsTable, "objective": ObjectiveTable}
    assert {kind: set(table.model_fields) for kind, table in tables.items()} == OWN_KEYS
    install("typed", TYPED)
    with pytest.raises(PluginError, match=r"'own' of dist-typed 1\.5 has an option 'weight'"):
        load_plugins().maker("reward", "own", {})


def test_what_a_plugin_prints_is_no_output(install, capsys: pytest.CaptureFixture[str]) -> None:
    install("talking", TYPED)
    load_plugins()
    assert capsys.readouterr() == ("", "loaded\n")


def test_options_of_a_recipe_are_for_plugins_of_the_same_author(install) -> None:
    install("soft", """
        import dagflow
        def soft(policy, clip: float = 0.2): ...
        @dagflow.hookimpl
        def dagflow_register_objectives(): return {"soft": soft}
    """)  # fmt: skip
    registry = load_plugins()
    tree = read_recipe("tiny")
    before = tree["objective"]
    use(tree, "objective", "db", registry)
    assert tree["objective"]["flow_channels"] == before["flow_channels"]
    use(tree, "objective", "soft", registry)
    assert tree["objective"] == {"name": "soft", "beta": 20.0, "anneal": 0.0}
