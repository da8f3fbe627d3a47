"""The three hooks of a plugin; each returns a mapping of name to factory.

A plugin is a module (or object) named by an entry point in the group `dagflow`. Mark its hooks
with `@dagflow.hookimpl`. Import torch inside the factories, so that listing stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from dagflow.types import ObjectiveFactory, PromptSourceFactory, RewardFactory

hookspec = pluggy.HookspecMarker("dagflow")
hookimpl = pluggy.HookimplMarker("dagflow")


@hookspec
def dagflow_register_rewards() -> Mapping[str, RewardFactory]:
    """Rewards by name, called once when plugins load; factories get only the user's options."""


@hookspec
def dagflow_register_prompt_sources() -> Mapping[str, PromptSourceFactory]:
    """Prompt sources by name, called once when plugins load; factories get only the options."""


@hookspec
def dagflow_register_objectives() -> Mapping[str, ObjectiveFactory]:
    """Objectives by name, called once when plugins load.

    A factory gets the policy's `PolicySpec` first and the user's options by keyword.
    """
