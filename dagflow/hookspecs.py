"""The three questions asked of a plugin, each answered with a mapping of name to factory.

A plugin is a module (or object) named by an entry point in the group `dagflow`; its functions
carry `@dagflow.hookimpl`. Import torch inside the factories, so that listing stays fast.
"""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

from dagflow.types import ObjectiveFactory, PromptSourceFactory, RewardFactory

hookspec = pluggy.HookspecMarker("dagflow")
hookimpl = pluggy.HookimplMarker("dagflow")


@hookspec
def dagflow_register_rewards() -> Mapping[str, RewardFactory]:
    """Rewards by name, asked once when plugins load; factories are called with options alone."""


@hookspec
def dagflow_register_prompt_sources() -> Mapping[str, PromptSourceFactory]:
    """Prompt sources by name, asked once when plugins load; called with options alone."""


@hookspec
def dagflow_register_objectives() -> Mapping[str, ObjectiveFactory]:
    """Objectives by name, asked once when plugins load.

    A factory is called with the policy's `PolicySpec` first and the user's options by keyword.
    """
