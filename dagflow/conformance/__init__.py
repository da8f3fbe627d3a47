"""What every plugin must do, as tests: `pytest --dagflow-reward NAME`, or a class in a test file.

    from dagflow.conformance import RewardContract

    class TestRedness(RewardContract):
        name = "redness"

pytest loads this package in every project that has dagflow installed, so it imports nothing before
it is asked to.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagflow.conformance.objectives import ObjectiveContract
    from dagflow.conformance.prompts import PromptSourceContract
    from dagflow.conformance.rewards import RewardContract

__all__ = ["ObjectiveContract", "PromptSourceContract", "RewardContract"]

_HOMES = {
    "RewardContract": "dagflow.conformance.rewards",
    "PromptSourceContract": "dagflow.conformance.prompts",
    "ObjectiveContract": "dagflow.conformance.objectives",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(_HOMES[name]), name)
