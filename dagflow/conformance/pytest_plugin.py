"""`pytest --dagflow-reward NAME`: run the kit on an installed plugin, without a test file.

pytest loads this module in every project, so it imports nothing heavy until it is asked to.
"""

from __future__ import annotations

import tomllib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dagflow.plugins import Kind

KINDS: dict[Kind, str] = {"reward": "RewardContract", "prompts": "PromptSourceContract",
         "objective": "ObjectiveContract"}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dagflow", "conformance of dagflow plugins")
    for kind in KINDS:
        group.addoption(
            f"--dagflow-{kind}",
            metavar="NAME",
            help=f"Test the installed {kind} NAME. Without paths, nothing else is run.",
        )
    group.addoption(
        "--dagflow-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="An option to build it with, its value in TOML or plain text. May be repeated.",
    )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Add the kits to what was collected, or replace it if no path was given."""
    report = yield
    if isinstance(collector, pytest.Session) and report.result is not None:
        found = _kits(collector)
        if found and collector.config.args_source is not pytest.Config.ArgsSource.ARGS:
            report.result = []
        report.result += found
    return report


def _kits(session: pytest.Session) -> list[Kit]:
    asked = {kind: session.config.getoption(f"dagflow_{kind}") for kind in KINDS}
    named = {kind: name for kind, name in asked.items() if name}
    settings = session.config.getoption("dagflow_option")
    if settings and len(named) != 1:
        raise pytest.UsageError("--dagflow-option goes with exactly one --dagflow-KIND NAME")
    options = dict(_option(setting) for setting in settings)
    return [
        Kit.from_parent(
            session, name=name, nodeid=f"{kind} {name}", contract=_contract(kind, name, options)
        )
        for kind, name in named.items()
    ]


def _contract(kind: Kind, name: str, options: dict[str, Any]) -> type:
    """A contract for this plugin. Raises UsageError if there is no such plugin or option."""
    from dagflow import conformance
    from dagflow.errors import PluginError, UserError
    from dagflow.plugins import load_plugins

    try:
        load_plugins().maker(kind, name, options)
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    except PluginError:  # its checks will report it
        pass
    base: type = getattr(conformance, KINDS[kind])
    return type(base.__name__, (base,), {"name": name, "options": options})


def _option(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise pytest.UsageError(f"--dagflow-option {setting}: not of the form key=value")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text


class Kit(pytest.Collector):
    """All checks of one contract."""

    def __init__(self, contract: type, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.contract = contract

    def collect(self) -> Iterator[Check]:
        for name in dir(self.contract):
            if name.startswith("test_"):
                yield Check.from_parent(self, name=name.removeprefix("test_"))


class Check(pytest.Item):
    """One check of a contract."""

    def runtest(self) -> None:
        assert isinstance(self.parent, Kit)
        getattr(self.parent.contract(), f"test_{self.name}")()

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return self.path, None, self.nodeid
