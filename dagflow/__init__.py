"""dagflow: GFlowNet alignment of text-to-image diffusion models. All public API; no torch."""

from dagflow.errors import PluginError, RunError, UserError
from dagflow.hookspecs import hookimpl
from dagflow.types import (
    Needs,
    Objective,
    ObjectiveFactory,
    PolicySpec,
    Prompt,
    PromptSource,
    PromptSourceFactory,
    Reward,
    RewardFactory,
    Transitions,
)
from dagflow.weights import WeightFile, locate, reads

__version__ = "0.1.0"
PLUGIN_API = (1, 0)  # additions raise the second number, others the first; see docs/plugins.md

__all__ = [
    "PLUGIN_API",
    "Needs",
    "Objective",
    "ObjectiveFactory",
    "PluginError",
    "PolicySpec",
    "Prompt",
    "PromptSource",
    "PromptSourceFactory",
    "Reward",
    "RewardFactory",
    "RunError",
    "Transitions",
    "UserError",
    "WeightFile",
    "__version__",
    "hookimpl",
    "locate",
    "reads",
]
